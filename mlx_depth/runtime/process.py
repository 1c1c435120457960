"""Which thread and which process MLX computes in.

MLX's streams belong to the thread that made them, on every device: an array is evaluated where it was built. So each
computation runs whole in one thread, one at a time: in the main thread where that asks, else in one thread that never
ends. A thread that ends after computing can abort the process at exit (MLX's own fault), and after a fork MLX hangs.
"""

import functools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mlx_depth.errors import OptionError

if TYPE_CHECKING:
    from concurrent.futures import Future

P = ParamSpec("P")
T = TypeVar("T")


class _Process:
    """What belongs to one process; a child by fork gets its own."""

    def __init__(self, *, forked_too_late: bool = False) -> None:
        self.lock = threading.RLock()
        self.has_computed = forked_too_late
        self.forked_too_late = forked_too_late
        self.owner: threading.Thread | None = None
        self.tasks: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()


_process = _Process()


def computing(f: Callable[P, T]) -> Callable[P, T]:
    """Let a function that evaluates MLX arrays be called from any thread.

    Args:
        f: Builds its arrays itself, and returns none that is not evaluated.
    Returns:
        The function; calls wait for one another. Raises ``OptionError`` in a process that was forked after MLX had
        computed, where it would hang.
    """

    @functools.wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        check_fork()
        _process.has_computed = True
        if threading.current_thread() in (threading.main_thread(), _process.owner):
            with _process.lock:
                return f(*args, **kwargs)
        return _in_owner(lambda: call(*args, **kwargs))

    return call


def check_fork() -> None:
    """Raise OptionError in a process that was forked after MLX had computed."""
    if _process.forked_too_late:
        raise OptionError(
            "this process was forked after MLX had computed, and MLX would hang in it: "
            'start workers with multiprocessing.set_start_method("spawn").'
        )


def _in_owner(task: Callable[[], T]) -> T:
    from concurrent.futures import Future  # slow to import, and the main thread needs none

    future: Future[T] = Future()
    with _process.lock:
        _process.tasks.put((task, future))
        if _process.owner is None:
            # A daemon: it must not end before the process does.
            _process.owner = threading.Thread(target=_work, args=(_process.tasks,), name="mlx-depth-mlx", daemon=True)
            _process.owner.start()
    return future.result()


def _work(tasks: SimpleQueue[tuple[Callable[[], Any], "Future[Any]"]]) -> None:
    while True:
        _run(*tasks.get())


def _run(task: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        result = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _after_fork() -> None:
    global _process
    _process = _Process(forked_too_late=_process.has_computed)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
