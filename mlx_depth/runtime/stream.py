"""Many images through one network: decoded ahead, grouped, handed out in order, in bounded memory."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import mlx.core as mx
import numpy as np

from mlx_depth.errors import ImageError
from mlx_depth.io.image import ImageSource, LoadedImage

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DECODING_THREADS = 4  # large photos take longer to decode than a small network on a GPU
WINDOW = 4  # batches' worth of images that may wait for others like them

T = TypeVar("T")
_Read = Callable[[ImageSource], LoadedImage]
_Decoded = tuple[ImageSource, LoadedImage | ImageError]
OnError = Callable[[ImageSource, ImageError], None]
# What belongs to the caller and may change, or can only be read in the caller's thread, is taken over at once.
_TAKEN_AT_ONCE = (np.ndarray, bytearray, memoryview, mx.array)


class Batches(Generic[T]):
    """Images by what those of a batch have in common, and their outcomes by number."""

    def __init__(
        self,
        terms_of: Callable[[LoadedImage], Hashable | ImageError],
        run: Callable[[Sequence[LoadedImage]], Sequence[T | ImageError]],
        batch_size: int,
    ):
        self._terms_of = terms_of
        self._run = run
        self._batch_size = batch_size
        self._waiting: dict[Hashable, dict[int, tuple[ImageSource, LoadedImage]]] = {}
        self._done: dict[int, tuple[ImageSource, T | Exception]] = {}
        self._due = 0  # number of the next image to hand out

    def add(self, number: int, source: ImageSource, loaded: LoadedImage | ImageError) -> None:
        """Take one image; run a batch where one is full, or where the next outcome has waited long enough."""
        terms = loaded if isinstance(loaded, ImageError) else self._terms_of(loaded)
        if isinstance(terms, ImageError):
            self._done[number] = (source, terms)
        else:
            group = self._waiting.setdefault(terms, {})
            group[number] = (source, cast(LoadedImage, loaded))
            if len(group) == self._batch_size:
                self._compute(terms)
        if number - self._due >= WINDOW * self._batch_size and self._due not in self._done:
            self._compute(next(terms for terms, group in self._waiting.items() if self._due in group))

    def ready(self) -> Iterator[tuple[ImageSource, T | Exception]]:
        """Outcomes whose turn it is."""
        while self._due in self._done:
            self._due += 1
            yield self._done.pop(self._due - 1)

    def finish(self) -> Iterator[tuple[ImageSource, T | Exception]]:
        """Run what waits, and hand out the rest."""
        while self._waiting:
            self._compute(next(iter(self._waiting)))
            yield from self.ready()

    def _compute(self, terms: Hashable) -> None:
        group = self._waiting.pop(terms)
        outcomes: Sequence[T | Exception]
        try:
            outcomes = self._run([loaded for _, loaded in group.values()])
        except Exception as error:  # raised when its turn comes, so that what came before it is not lost
            outcomes = [error] * len(group)
        for (number, (source, _)), outcome in zip(group.items(), outcomes, strict=True):
            self._done[number] = (source, outcome)


def stream(
    batches: Batches[T],
    images: Iterable[ImageSource],
    *,
    read: _Read,
    ahead: int,
    on_error: OnError | None,
) -> Iterator[T]:
    """Results in the order of the images; an error comes once the results before it are out.

    Args:
        batches: Groups and runs the images.
        images: Any iterator of them.
        read: Loads one image.
        ahead: How many are decoded, at the most, before they are asked for.
        on_error: Called with each image that cannot be read, and its error, in order; None: the error is raised.
    """

    def hand_out(outcomes: Iterator[tuple[ImageSource, T | Exception]]) -> Iterator[T]:
        for source, outcome in outcomes:
            if isinstance(outcome, ImageError) and on_error is not None:
                on_error(source, outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                yield outcome

    failure: Exception | None = None
    with _decoding(images, read, ahead) as decoded:
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
def _decoding(images: Iterable[ImageSource], read: _Read, ahead: int) -> Iterator[Iterator[_Decoded | Exception]]:
    """Threads that load images in order, at most ``ahead`` of them before they are asked for.

    Where the caller's iterator fails, its error is the last item.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and one image needs none

    pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="mlx-depth-decode")
    try:
        yield _decode_ahead(pool, images, read, ahead)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_ahead(
    pool: "ThreadPoolExecutor", images: Iterable[ImageSource], read: _Read, ahead: int
) -> Iterator[_Decoded | Exception]:
    queue: deque[tuple[ImageSource, Callable[[], LoadedImage | ImageError]]] = deque()
    failure: Exception | None = None
    sources = iter(images)
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


def _start_loading(
    pool: "ThreadPoolExecutor", read: _Read, source: ImageSource
) -> Callable[[], LoadedImage | ImageError]:
    if not isinstance(source, _TAKEN_AT_ONCE):
        return pool.submit(_try_load, read, source).result
    loaded = _try_load(read, source)
    return lambda: loaded


def _try_load(read: _Read, source: ImageSource) -> LoadedImage | ImageError:
    try:
        return read(source)
    except ImageError as error:
        return error
