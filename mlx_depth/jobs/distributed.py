"""Several processes that share one job: the ranks that ``mlx.launch`` starts, on one machine or on many."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

# Set for each process by mlx.launch (its ring, JACCL and NCCL back ends) and by Open MPI.
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")
_HOSTS_VARIABLE = "MLX_HOSTFILE"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are; the default is one that works alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def label(self) -> str:
        """Before what this process says: ``"rank 0 of 2: "``; empty for one that works alone."""
        return f"rank {self.rank} of {self.size}: " if self.size > 1 else ""

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th item, from this rank's own number on: each item falls to exactly one rank."""
        return list(items[self.rank :: self.size])

    def check_same(self, names: Iterable[str]) -> None:
        """Wait for all ranks, and make sure that they divide the same list.

        Args:
            names: The names of what is divided, in order.
        Raises:
            OptionError: If the lists of the ranks differ, or a rank has gone.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, names))).digest()
        digests = self._gather(list(digest))
        if (digests != digests[0]).any():
            raise OptionError("the ranks see different images: give paths that hold the same files on each machine.")

    def wait(self) -> None:
        """Wait for all ranks: ``mlx.launch`` ends the others as soon as one has ended with an error code.

        Raises:
            OptionError: If a rank has gone.
        """
        if self.size > 1:
            self._gather([0])

    def _gather(self, values: list[int]) -> npt.NDArray[np.uint8]:
        """Small numbers of each rank, ``(size, len(values))``."""
        gathered = mx.distributed.all_gather(mx.array(values, dtype=mx.uint8))
        try:
            with _default_interrupt():
                mx.eval(gathered)  # reading the array alone would not raise
        except RuntimeError as error:
            raise OptionError(f"a rank ended before its work was done ({error}): start all with --resume.") from error
        return np.array(gathered).reshape(self.size, len(values))


def join_ranks() -> Ranks:
    """Find the other processes that ``mlx.launch`` has started.

    Returns:
        This process among them; a rank that works alone where nothing was launched, at no cost.
    Raises:
        OptionError: If the others cannot be reached.

    MLX's ``mlx.core.distributed``.
    """
    if not _is_launched():
        return Ranks()
    try:
        with _default_interrupt():
            group = mx.distributed.init()
    except RuntimeError as error:
        raise OptionError(f"the other ranks cannot be reached ({error}): start them all with mlx.launch.") from error
    return Ranks(group.rank(), group.size())


def _is_launched() -> bool:
    hosts = os.environ.get(_HOSTS_VARIABLE)
    if hosts is not None and Path(hosts).is_file() and not Path(hosts).read_text().strip():
        return False  # mlx.launch -n 1 writes an empty file, which MLX does not read
    return any(name in os.environ for name in _RANK_VARIABLES)


@contextmanager
def _default_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once: Python's own handler would not run before MLX has heard of all ranks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
