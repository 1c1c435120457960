"""Killing a run at random moments: ``python tests/benchmarks/kill_and_resume.py [--kills N] [--photos N] [--seed N]``.

A folder of photos is predicted once without disturbance. Then, each time into a folder that holds files of the user,
a run is killed (SIGKILL) at a random moment after its first result, and another with ``--resume`` goes on. The folder
then holds, byte by byte, what the undisturbed run wrote, and photos and files of the user are what they were. Ends with
an error at the first difference, and prints its figures.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PREDICT = [sys.executable, "-m", "mlx_depth", "predict", "--model", "mlx-depth-demo", "--input-size", "28"]
USER_FILES = {"mine.npy": b"mine", "mine.json": b'{"image": "mine"}', ".mlx-depth-notes.tmp": b"mine"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(kill_and_resume(Path(folder), options.kills, options.photos, random.Random(options.seed)))


def kill_and_resume(folder: Path, kills: int, photos: int, chance: random.Random) -> str:
    """The figures as a line; SystemExit where something is lost."""
    write_photos(folder / "photos", photos, chance)
    seconds = run_undisturbed(folder)
    before, whole = contents(folder / "photos"), contents(folder / "whole")
    done: list[int] = []
    halves = temporaries = 0
    for number in range(kills):
        out = folder / f"killed-{number}"
        out.mkdir()
        for name, data in USER_FILES.items():
            (out / name).write_bytes(data)
        kill(folder, out, chance.uniform(0, seconds))
        left = set(contents(out)) - set(USER_FILES)
        done.append(sum(name.endswith(".json") for name in left))
        halves += any(name.endswith(".json") and name[:-5] + "_color.png" not in left for name in left)
        temporaries += sum(name.endswith(".tmp") for name in left)
        run([*PREDICT, folder / "photos", "-o", out, "--resume"])
        check(contents(out) == whole | USER_FILES, f"after kill {number} the folder is not that of an undisturbed run")
        check(contents(folder / "photos") == before, f"after kill {number} a photo has changed")
    return (
        f"{kills} kills of runs over {photos} photos, with {min(done)} to {max(done)} of them begun; "
        f"{halves} left a half-written set, {temporaries} temporary files were left and removed. "
        f"Each time all {len(whole)} files were those of an undisturbed run, and no other file had changed."
    )


def write_photos(folder: Path, count: int, chance: random.Random) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        size = (chance.randrange(200, 400), chance.randrange(200, 400), 3)
        pixels = np.random.RandomState(number).randint(0, 256, size).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


def run_undisturbed(folder: Path) -> float:
    """Seconds from the first result to the last."""
    arguments = [*PREDICT, folder / "photos", "-o", folder / "whole"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        start = time.perf_counter()
        process.stdout.read()
        return time.perf_counter() - start


def kill(folder: Path, out: Path, seconds: float) -> None:
    arguments = [*PREDICT, folder / "photos", "-o", out]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()


def run(arguments: list[str | Path]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    check(done.returncode == 0, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {otherwise}")


if __name__ == "__main__":
    main()
