"""Ranks that share a folder: real processes, connected as ``mlx.launch`` connects them, on this machine."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support import seeded

from mlx_depth import cli
from mlx_depth.errors import OptionError
from mlx_depth.jobs import distributed
from mlx_depth.jobs.distributed import Ranks, join_ranks

DEMO = ["--model", "mlx-depth-demo", "--input-size", "28", "--format", "npy"]
SIZES = [(20, 30), (30, 20), (24, 24)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos of mixed shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        height, width = SIZES[number % len(SIZES)]
        pixels = np.clip(seeded(f"{number}", (height, width, 3), 40) + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """What ``mlx.launch`` writes for two ranks on one machine."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps(addresses))
    return file


@contextmanager
def launched(hosts: Path, *arguments: list[str | Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """``mlx-depth predict`` once for each list of arguments, as ranks."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mlx_depth", "predict", *map(str, mine)],
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, mine in enumerate(arguments)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; a traceback is never right."""
    outputs = [process.communicate(timeout=60) for process in processes]
    assert not any("Traceback" in stderr for _, stderr in outputs), outputs
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def images(stdout: str) -> list[str]:
    return [Path(json.loads(line)["image"]).name for line in stdout.splitlines()]


def test_two_ranks_do_every_image_once_then_resume(photos: Path, tmp_path: Path, hosts: Path) -> None:
    arguments = [photos, tmp_path / "missing.jpg", "-o", tmp_path / "out", *DEMO, "--batch-size", "2", "--json"]
    with launched(hosts, arguments, arguments) as processes:
        first, second = finish(processes)
    assert images(first[1]) == ["0.png", "2.png", "4.png", "6.png", "missing.jpg"]
    assert images(second[1]) == ["1.png", "3.png", "5.png", "7.png"]
    assert (first[0], second[0]) == (1, 0)
    assert first[2].endswith("rank 0 of 2: 4 done, 0 complete before, 1 failed\n")
    assert second[2].endswith("rank 1 of 2: 4 done, 0 complete before, 0 failed\n")
    assert "rank 1 of 2: 1/4 [" in second[2]  # progress
    assert sorted(file.name for file in (tmp_path / "out").glob("*.npy")) == [f"{number}.npy" for number in range(8)]

    for name in ("1.npy", "6.npy"):
        (tmp_path / "out" / name).unlink()
    with launched(hosts, [*arguments, "--resume"], [*arguments, "--resume"]) as processes:
        done = finish(processes)
    facts = [json.loads(line) for _, stdout, _ in done for line in stdout.splitlines()]
    written = {Path(fact["image"]).name for fact in facts if "settings" in fact}
    skipped = {Path(fact["image"]).name for fact in facts if "skipped" in fact}
    assert written == {"1.png", "6.png"}
    assert skipped == {f"{number}.png" for number in range(8)} - written


def test_killed_rank_then_resume(photos: Path, tmp_path: Path, hosts: Path) -> None:
    out = tmp_path / "out"
    last = (photos / "7.png").rename(tmp_path / "7.png")
    with slow_server(last.read_bytes()) as (url, answers):
        arguments = [photos, f"{url}/7.png", "-o", out, *DEMO]
        with launched(hosts, arguments, arguments) as processes:
            until(lambda: is_complete(out / "1.json"))
            processes[1].send_signal(signal.SIGKILL)  # it waits for 7.png
            code, _, stderr = finish(processes)[0]
        assert code == 2  # its own share is done, and it says that the other's is not
        assert "rank 0 of 2: 4 done" in stderr
        assert "a rank ended before its work was done" in stderr
        complete = {file.stem for file in out.glob("*.json") if is_complete(file)}
        assert {"0", "1", "2", "4", "6"} <= complete
        assert "7" not in complete
        answers.set()
        with launched(hosts, [*arguments, "--resume"], [*arguments, "--resume"]) as processes:
            first, second = finish(processes)
    assert (first[0], second[0]) == (0, 0)
    assert "rank 0 of 2: 0 done, 4 complete before" in first[2]
    written = [line.rpartition(" → ")[2] for line in (first[1] + second[1]).splitlines()]
    assert written == [f"{out}/{number}.npy" for number in (1, 3, 5, 7) if str(number) not in complete]
    assert len(list(out.glob("*.npy"))) == 8


def is_complete(sidecar: Path) -> bool:
    """It is there from the start, and has the sizes of the results once they are whole."""
    return sidecar.exists() and "file_bytes" in json.loads(sidecar.read_text())


@contextmanager
def slow_server(data: bytes) -> Iterator[tuple[str, threading.Event]]:
    """Answers with ``data``, once the event is set."""
    answers = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.wait(60)
            with suppress(OSError):  # who asked has been killed
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        answers.set()
        server.shutdown()
        thread.join()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ranks_that_see_different_images_refuse(photos: Path, tmp_path: Path, hosts: Path) -> None:
    out = tmp_path / "out"
    with launched(hosts, [photos, "-o", out, *DEMO], [photos / "[0-6].png", "-o", out, *DEMO]) as processes:
        done = finish(processes)
    assert [code for code, *_ in done] == [2, 2]
    assert all("the ranks see different images" in stderr for *_, stderr in done)
    assert not list(out.iterdir())


def test_existing_result_stops_all_ranks_before_any_work(photos: Path, tmp_path: Path, hosts: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "3.npy").write_text("mine")
    arguments = [photos, "-o", out, *DEMO]
    with launched(hosts, arguments, arguments) as processes:
        done = finish(processes)
    assert [code for code, *_ in done] == [2, 2]
    assert all(f"{out}/3.npy exists" in stderr for *_, stderr in done)
    assert [file.name for file in out.iterdir()] == ["3.npy"]


LAUNCHER = shutil.which("mlx.launch", path=Path(sys.executable).parent)
COMMAND = shutil.which("mlx-depth", path=Path(sys.executable).parent)


@pytest.mark.parametrize("count", [1, 2])
def test_command_of_mlx_launch(count: int, photos: Path, tmp_path: Path, hosts: Path) -> None:
    """Rank 0 fails early, at which the launcher ends the ranks that have not come to their end."""
    assert LAUNCHER is not None
    assert COMMAND is not None
    for name in ("2", "4", "6"):
        (photos / f"{name}.png").write_bytes(b"broken")
    port = json.loads(hosts.read_text())[0][0].partition(":")[2]
    arguments = [LAUNCHER, "--backend", "ring", "-p", port, "-n", str(count), COMMAND, "predict", str(photos)]
    reader, writer = os.pipe()  # the launcher spins where its stdin is at its end
    try:
        done = subprocess.run(
            [*arguments, "-o", str(tmp_path / "out"), *DEMO], stdin=reader, capture_output=True, text=True, timeout=60
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert sorted(file.stem for file in (tmp_path / "out").glob("*.npy")) == ["0", "1", "3", "5", "7"], done.stderr
    summaries = [line for line in done.stderr.splitlines() if "complete before" in line]
    if count == 1:
        assert summaries == ["5 done, 0 complete before, 3 failed"]
    else:
        assert sorted(summaries) == [
            "rank 0 of 2: 1 done, 0 complete before, 3 failed",
            "rank 1 of 2: 4 done, 0 complete before, 0 failed",
        ]


# One process.


def test_alone_nothing_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed._RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mx.distributed, "init", lambda *_: pytest.fail("MLX looked for other processes"))
    monkeypatch.setattr(mx.distributed, "all_gather", lambda *_: pytest.fail("MLX spoke to other processes"))
    alone = join_ranks()
    assert alone == Ranks(0, 1)
    assert alone.label == ""
    alone.check_same(["a", "b"])
    alone.wait()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_item_falls_to_one_rank(size: int) -> None:
    items = list(range(20))
    shares = [Ranks(rank, size).share(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_unreachable_ranks_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["127.0.0.1"]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(OptionError, match=r"start them all with mlx\.launch"):
        join_ranks()
    assert signal.getsignal(signal.SIGINT) is handler
    assert cli.main(["predict", str(tmp_path), "-o", str(tmp_path / "out"), *DEMO]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_ranks_join_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where signals cannot be set."""
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    joined: list[Ranks] = []
    thread = threading.Thread(target=lambda: joined.append(join_ranks()))
    thread.start()
    thread.join()
    assert joined == [Ranks(0, 1)]
