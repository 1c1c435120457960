"""Which results are complete, and which files a run may replace."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_depth.errors import SaveError
from mlx_depth.io.atomic import remove_stale
from mlx_depth.io.find import absolute, is_url
from mlx_depth.io.ours import named_files, read_sidecar
from mlx_depth.jobs.naming import Job
from mlx_depth.jobs.settings import Settings

DIGEST_BYTES = 1 << 16  # at each end of a photo


def unfinished(
    jobs: Sequence[Job], out: Path, settings: Settings, *, resume: bool = False, overwrite: bool = False
) -> list[Job]:
    """Choose what is to be done, and refuse before any work if a file is in the way.

    Args:
        jobs: From ``find_images``.
        out: The output folder, made where needed; what killed runs left of unfinished files goes.
        settings: What is asked of every image.
        resume: Leave out images whose files are all there and whole, made from the same photo with the same settings.
        overwrite: Results that exist may be replaced; with ``resume`` those that are not complete.
    Returns:
        The jobs that are to be done, in order.
    Raises:
        SaveError: If a file is in the way that no sidecar of ours names as its result, or that is an input image; if a
            result exists and neither ``resume`` nor ``overwrite`` is set; if, resuming, a result belongs to another
            image; or if the folder cannot be made.
    """
    waiting = [job for job in jobs if not (resume and is_complete(job, out, settings))]
    present = [(job, file) for job in waiting for file in job.files(out, settings.formats) if os.path.lexists(file)]
    _refuse_foreign(present, out, [job.source for job in jobs])
    if not overwrite:
        _refuse_results(present, out, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"cannot make the folder {out} ({error.strerror}): choose another with -o.") from error
    for folder in {job.sidecar(out).parent for job in jobs}:
        remove_stale(folder)
    return waiting


def is_complete(job: Job, out: Path, settings: Settings) -> bool:
    """Whether all that is asked for an image is there: from this very photo, with these settings, and whole."""
    facts = read_sidecar(job.sidecar(out))
    return (
        facts is not None
        and _is_of(job, out, facts)
        and facts["settings"] == settings.facts()
        and set(settings.formats) <= set(facts["files"])
        and _are_whole(job, out, settings, facts.get("file_bytes"))
        and _is_same_photo(job, facts.get("photo"))
        and facts.get("prompt") == prompt_facts(job, out)
    )


def photo_facts(source: str) -> dict[str, Any] | None:
    """What tells a photo from another one in its place, at the cost of two short reads.

    Args:
        source: Path or URL.
    Returns:
        ``bytes``, ``mtime_ns``, and ``digest``: BLAKE2b, 16 bytes in hex, of the size (8 bytes, little-endian) and of
        the first and the last 64 KiB. None for a URL, and for what is no readable file.
    """
    if is_url(source):
        return None
    try:
        facts = Path(source).stat()
        if not stat.S_ISREG(facts.st_mode):
            return None
        with Path(source).open("rb") as stream:
            digest = hashlib.blake2b(facts.st_size.to_bytes(8, "little"), digest_size=16)
            digest.update(stream.read(DIGEST_BYTES))
            stream.seek(max(facts.st_size - DIGEST_BYTES, 0))
            digest.update(stream.read(DIGEST_BYTES))
    except (OSError, ValueError):
        return None
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "digest": digest.hexdigest()}


def prompt_facts(job: Job, out: Path) -> dict[str, Any] | None:
    """``photo_facts`` of the depth prompt, with its ``file`` as seen from the sidecar; None where there is none."""
    if job.prompt is None:
        return None
    return {"file": os.path.relpath(job.prompt, job.sidecar(out).parent), **(photo_facts(job.prompt) or {})}


def image_path(job: Job, out: Path) -> str:
    """Seen from the sidecar, so that it holds from any working folder."""
    return job.source if is_url(job.source) else os.path.relpath(job.source, job.sidecar(out).parent)


def bytes_of(file: Path) -> int | None:
    """Size of a file; None where there is none."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def replaceable(sidecar: Path) -> set[Path]:
    """The files that a sidecar of ours names as its results, and itself; none where it is not ours."""
    facts = read_sidecar(sidecar)
    return set() if facts is None else {sidecar} | {sidecar.parent / name for name in named_files(facts)}


def _refuse_foreign(present: Sequence[tuple[Job, Path]], out: Path, sources: Sequence[str]) -> None:
    if not present:
        return
    inputs = {_identity(Path(source)) for source in sources if not is_url(source)} - {None}
    images = [file for _, file in present if _identity(file) in inputs]
    if images:
        raise SaveError(f"{images[0]}{_others(images)} is an input image: choose another output folder with -o.")
    foreign = [file for job, file in present if file not in replaceable(job.sidecar(out)) or _is_folder(file)]
    if foreign:
        raise SaveError(
            f"{foreign[0]} exists{_others(foreign)}, and no sidecar of mlx-depth names it as a result: "
            "move it away, or take another folder with -o."
        )


def _refuse_results(present: Sequence[tuple[Job, Path]], out: Path, resume: bool) -> None:
    if resume:
        present = [(job, file) for job, file in present if file == job.sidecar(out) and not _is_own(job, out)]
    files = [file for _, file in present]
    if files:
        instead = "belongs to another image" if resume else "exists"
        keep = "" if resume else "--resume keeps what is complete, "
        raise SaveError(
            f"{files[0]} {instead}{_others(files)}: {keep}--overwrite replaces it, -o takes another folder."
        )


def _others(files: Sequence[Path]) -> str:
    return f" (and {len(files) - 1} more)" if len(files) > 1 else ""


def _identity(file: Path) -> tuple[int, int] | None:
    """The same for all names of a file: through links, and in either case on a Mac's volumes."""
    try:
        facts = file.stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino


def _is_folder(file: Path) -> bool:
    return file.is_dir() and not file.is_symlink()


def _is_own(job: Job, out: Path) -> bool:
    facts = read_sidecar(job.sidecar(out))
    return facts is not None and _is_of(job, out, facts)


def _is_of(job: Job, out: Path, facts: dict[str, Any]) -> bool:
    recorded = facts["image"]
    if is_url(job.source):
        return bool(recorded == job.source)
    return absolute(job.sidecar(out).parent / recorded) == absolute(job.source)


def _are_whole(job: Job, out: Path, settings: Settings, recorded: Any) -> bool:
    if not isinstance(recorded, dict):
        return False
    files = job.files(out, settings.formats)[:-1]  # the sidecar, which could be read, is whole
    sizes = [(bytes_of(file), recorded.get(file.name)) for file in files]
    return all(size is not None and size == expected for size, expected in sizes)


def _is_same_photo(job: Job, recorded: Any) -> bool:
    return is_url(job.source) or (recorded is not None and photo_facts(job.source) == recorded)
