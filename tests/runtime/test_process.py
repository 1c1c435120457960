"""Any thread may predict, and a process that was forked too late says so."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from support import seeded

import mlx_depth
from mlx_depth.model import DepthModel
from mlx_depth.runtime.process import computing

THREADS, PREDICTIONS = 4, 20
SIZES = [(40, 50), (50, 40), (30, 60), (64, 64)]


def photo(number: int) -> np.ndarray:
    return np.clip(seeded(f"photo {number}", (*SIZES[number % 4], 3), 60) + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return mlx_depth.load("mlx-depth-demo")


def test_threads_get_the_numbers_of_one_thread() -> None:
    """A model of its own, that has prepared nothing: what one thread builds another must not find half done."""
    expected = [mlx_depth.load("mlx-depth-demo").predict(photo(i), input_size=28).depth for i in range(4)]
    fresh = mlx_depth.load("mlx-depth-demo")

    def work(start: int) -> bool:
        numbers = [(start + i) % 4 for i in range(PREDICTIONS)]
        return all(np.array_equal(fresh.predict(photo(i), input_size=28).depth, expected[i]) for i in numbers)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [True] * THREADS


def test_main_thread_and_others_at_once(model: DepthModel) -> None:
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(model.predict, photo(1), input_size=28) for _ in range(6)]
        own = [model.predict(photo(1), input_size=28).depth for _ in range(6)]
    for result, depth in zip(others, own, strict=True):
        np.testing.assert_array_equal(result.result().depth, depth)


def test_loading_in_a_thread_and_predicting_in_another() -> None:
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        loaded = first.submit(mlx_depth.load, "mlx-depth-demo").result()
        depth = second.submit(loaded.predict, photo(0), input_size=28).result().depth
    np.testing.assert_array_equal(depth, loaded.predict(photo(0), input_size=28).depth)


def test_asyncio(model: DepthModel) -> None:
    async def all_at_once() -> list[np.ndarray]:
        results = await asyncio.gather(*(asyncio.to_thread(model.predict, photo(i), input_size=28) for i in range(4)))
        return [result.depth for result in results]

    for i, depth in enumerate(asyncio.run(all_at_once())):
        np.testing.assert_array_equal(depth, model.predict(photo(i), input_size=28).depth)


def test_infer_takes_an_array_that_its_thread_has_not_evaluated(model: DepthModel) -> None:
    def infer() -> np.ndarray:
        return np.array(model.infer(mx.ones((1, 28, 28, 3)) * 0.5).depth)

    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(infer).result(), infer())


def test_an_error_reaches_the_thread_that_asked(model: DepthModel) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(mlx_depth.OptionError, match="at least 14"):
        pool.submit(model.predict, photo(0), input_size=3).result()


def test_threads_share_one_owner() -> None:
    name = computing(lambda: threading.current_thread().name)
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: name(), range(9))) == {"mlx-depth-mlx"}
    assert name() == "MainThread"


EXIT = """
import mlx_depth, numpy as np
from concurrent.futures import ThreadPoolExecutor
model = mlx_depth.load("mlx-depth-demo")
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: model.predict(np.zeros((20, 30, 3), np.uint8), input_size=28), range(8)))
"""


def test_process_ends_well_after_its_threads() -> None:
    """MLX alone aborts at exit about every other time where a thread that computed has ended."""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, sys, mlx_depth, numpy as np
photo = np.zeros((20, 30, 3), np.uint8)
before = "before" in sys.argv
model = None if before else mlx_depth.load("mlx-depth-demo")
child = os.fork()
if child == 0:
    try:
        if "load" in sys.argv or before:
            model = mlx_depth.load("mlx-depth-demo")
        if "infer" in sys.argv:
            import mlx.core as mx
            model.infer(mx.ones((1, 28, 28, 3)))
        print(model.predict(photo, input_size=28).depth.shape, flush=True)
    except mlx_depth.OptionError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("what", ["predict", "load", "infer"])
def test_fork_after_computing_is_an_error(what: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, what], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("this process was forked after MLX had computed"), done.stderr
    assert done.stdout.endswith('multiprocessing.set_start_method("spawn").\n')


def test_fork_before_computing_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, "before"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "(20, 30)\n", done.stderr
