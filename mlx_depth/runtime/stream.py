"""Many photos through one network: decoded ahead, grouped, handed out in order, in bounded memory."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import ImageError
from mlx_depth.io.image import ImageSource, LoadedImage
from mlx_depth.io.prompt import PromptSource

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DECODING_THREADS = 4  # large photos take longer to decode than a small network on a GPU
WINDOW = 4  # batches' worth of images that may wait for others like them

T = TypeVar("T")


class Shot(NamedTuple):
    """A photo and what lies beside it, as the caller gives them."""

    image: ImageSource
    prompt: PromptSource | None = None


class LoadedShot(NamedTuple):
    """A photo and what lies beside it, read."""

    image: LoadedImage
    prompt: npt.NDArray[np.float32] | None = None  # (h, w), metres


_Read = Callable[[Shot], LoadedShot]
_Decoded = tuple[Shot, LoadedShot | ImageError]
OnError = Callable[[ImageSource, ImageError], None]
# What belongs to the caller and may change, or can only be read in the caller's thread, is taken over at once.
_TAKEN_AT_ONCE = (np.ndarray, bytearray, memoryview, mx.array)


class Batches(Generic[T]):
    """Photos by what has to be equal in a batch, and their outcomes by number."""

    def __init__(
        self,
        key_of: Callable[[LoadedShot], Hashable | ImageError],
        run: Callable[[Sequence[LoadedShot]], Sequence[T | ImageError]],
        batch_size: int,
    ):
        self._key_of = key_of
        self._run = run
        self._batch_size = batch_size
        self._waiting: dict[Hashable, dict[int, tuple[Shot, LoadedShot]]] = {}
        self._done: dict[int, tuple[Shot, T | Exception]] = {}
        self._due = 0  # number of the next image to hand out

    def add(self, number: int, source: Shot, loaded: LoadedShot | ImageError) -> None:
        """Take one photo; run a batch where one is full, or where the next outcome has waited long enough."""
        key = loaded if isinstance(loaded, ImageError) else self._key_of(loaded)
        if isinstance(key, ImageError):
            self._done[number] = (source, key)
        else:
            group = self._waiting.setdefault(key, {})
            group[number] = (source, cast(LoadedShot, loaded))
            if len(group) == self._batch_size:
                self._compute(key)
        if number - self._due >= WINDOW * self._batch_size and self._due not in self._done:
            self._compute(next(key for key, group in self._waiting.items() if self._due in group))

    def ready(self) -> Iterator[tuple[Shot, T | Exception]]:
        """Outcomes whose turn it is."""
        while self._due in self._done:
            self._due += 1
            yield self._done.pop(self._due - 1)

    def finish(self) -> Iterator[tuple[Shot, T | Exception]]:
        """Run what waits, and hand out the rest."""
        while self._waiting:
            self._compute(next(iter(self._waiting)))
            yield from self.ready()

    def _compute(self, key: Hashable) -> None:
        group = self._waiting.pop(key)
        outcomes: Sequence[T | Exception]
        try:
            outcomes = self._run([loaded for _, loaded in group.values()])
        except Exception as error:  # raised when its turn comes, so that what came before it is not lost
            outcomes = [error] * len(group)
        for (number, (source, _)), outcome in zip(group.items(), outcomes, strict=True):
            self._done[number] = (source, outcome)


def stream(
    batches: Batches[T],
    shots: Iterable[Shot],
    *,
    read: _Read,
    ahead: int,
    on_error: OnError | None,
) -> Iterator[T]:
    """Results in the order of the photos; an error comes once the results before it are out.

    Args:
        batches: Groups and runs the photos.
        shots: Any iterator of them.
        read: Loads one.
        ahead: How many are decoded, at the most, before they are asked for.
        on_error: Called with each image that cannot be read, and its error, in order; None: the error is raised.
    """

    def hand_out(outcomes: Iterator[tuple[Shot, T | Exception]]) -> Iterator[T]:
        for source, outcome in outcomes:
            if isinstance(outcome, ImageError) and on_error is not None:
                on_error(source.image, outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                yield outcome

    failure: Exception | None = None
    with _decoding(shots, read, ahead) as decoded:
        for number, item in enumerate(decoded):
            if isinstance(item, Exception):
                failure = item
                break
            batches.add(number, *item)
            yield from hand_out(batches.ready())
    yield from hand_out(batches.finish())
    if failure is not None:
        raise failure


@contextmanager
def _decoding(shots: Iterable[Shot], read: _Read, ahead: int) -> Iterator[Iterator[_Decoded | Exception]]:
    """Threads that load photos in order, at most ``ahead`` of them before they are asked for.

    Where the caller's iterator fails, its error is the last item.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and one image needs none

    pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="mlx-depth-decode")
    try:
        yield _decode_ahead(pool, shots, read, ahead)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_ahead(
    pool: "ThreadPoolExecutor", shots: Iterable[Shot], read: _Read, ahead: int
) -> Iterator[_Decoded | Exception]:
    queue: deque[tuple[Shot, Callable[[], LoadedShot | ImageError]]] = deque()
    failure: Exception | None = None
    sources = iter(shots)
    while True:
        try:
            queue.append((source := next(sources), _start_loading(pool, read, source)))
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        if len(queue) > ahead:
            source, loaded = queue.popleft()
            yield source, loaded()
    for source, loaded in queue:
        yield source, loaded()
    if failure is not None:
        yield failure


def _start_loading(pool: "ThreadPoolExecutor", read: _Read, source: Shot) -> Callable[[], LoadedShot | ImageError]:
    if not any(isinstance(part, _TAKEN_AT_ONCE) for part in source):
        return pool.submit(_try_load, read, source).result
    loaded = _try_load(read, source)
    return lambda: loaded


def _try_load(read: _Read, source: Shot) -> LoadedShot | ImageError:
    try:
        return read(source)
    except ImageError as error:
        return error
