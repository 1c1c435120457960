"""Work in parts: equal numbers, one part a core, products of one thread meanwhile; only where that helps."""

import json
import subprocess
import sys
import threading

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, seeded

from mlx_depth.linux_cpu import openblas, streams
from mlx_depth.linux_cpu.streams import all_cores, in_parts
from mlx_depth.models.depth_anything.network import DepthAnything, depth_anything_config

linux = pytest.mark.skipif(sys.platform != "linux", reason="work is spread on Linux only")


@pytest.fixture(params=[2, 3])
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As if OpenBLAS had that many threads."""
    monkeypatch.setattr(openblas, "threads", lambda: request.param)
    return request.param


def ranges(length: int) -> list[tuple[int, int]]:
    """What ``in_parts`` asks for."""
    asked = []

    def part(start: int, stop: int) -> mx.array:
        asked.append((start, stop))
        assert streams.cores() == 1 or length == 1  # a part is not divided again
        return mx.zeros(1)

    assert len(in_parts(part, length)) == len(asked)
    return asked


@linux
def test_ranges(count: int) -> None:
    assert ranges(7) == [(0, 7)]
    with all_cores():
        assert streams.cores() == count
        assert ranges(7) == ([(0, 3), (3, 7)] if count == 2 else [(0, 2), (2, 4), (4, 7)])
        assert ranges(1) == [(0, 1)]
        with all_cores():
            assert streams.cores() == count
    assert ranges(7) == [(0, 7)]


@linux
def test_each_part_has_a_stream(count: int) -> None:
    with all_cores():
        streams = []
        in_parts(lambda start, stop: streams.append(mx.default_stream(mx.cpu)) or mx.zeros(1), 9)
    assert len(set(map(str, streams))) == count
    assert mx.default_stream(mx.cpu) == streams[0]


@linux
def test_no_more_streams_than_one_thread_can_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "threads", lambda: 64)
    with all_cores():
        assert streams.cores() == 8


@linux
@pytest.mark.parametrize("size", [(28, 42), (154, 98)])
def test_network(count: int, size: tuple[int, int]) -> None:
    network = DepthAnything(depth_anything_config("small"))
    pixel_values = mx.array(seeded("pixels", (2, *size, 3)))
    tokens = [layer.patch_tokens for layer in network.backbone(pixel_values)]
    path = mx.array(seeded("path", (2, 2 * size[0] // 14, 2 * size[1] // 14, 64)))
    expected = [*tokens, network.head.read_out(path, (size[0] // 14, size[1] // 14))]
    mx.eval(expected)
    with all_cores():
        tokens = [layer.patch_tokens for layer in network.backbone(pixel_values)]
        found = [*tokens, network.head.read_out(path, (size[0] // 14, size[1] // 14))]
        mx.eval(found)
    for ours, plain in zip(found, expected, strict=True):
        assert np.array(plain).std() > 0
        assert relative_error(np.array(ours), np.array(plain)) <= 1e-5


@pytest.mark.parametrize("platform", ["darwin", "gpu"])
def test_other_devices_are_left_alone(count: int, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin" if platform == "darwin" else "linux")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu if platform == "gpu" else mx.cpu))
    with all_cores():
        assert streams.cores() == 1


def test_other_threads_are_left_alone(count: int) -> None:
    found = []

    def run() -> None:
        with all_cores():
            found.append(streams.cores())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [1]


@linux
def test_products_take_one_thread_within_and_as_many_as_before_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeBlas(4)
    monkeypatch.setattr(openblas, "_library_in_use", lambda: library)
    assert openblas.threads() == 4
    with all_cores():
        assert (streams.cores(), library.threads) == (4, 1)
        with openblas.one_thread():
            assert library.threads == 1
        assert library.threads == 1
    assert library.threads == 4
    with pytest.raises(RuntimeError), all_cores():
        raise RuntimeError
    assert (library.threads, streams.cores()) == (4, 1)


def test_without_openblas_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "_library_in_use", lambda: None)
    assert openblas.threads() == 1
    with all_cores(), openblas.one_thread():
        assert streams.cores() == 1


class FakeBlas:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def openblas_get_num_threads(self) -> int:
        return self.threads

    def openblas_set_num_threads(self, threads: int) -> None:
        self.threads = threads


CODE = """
import json, sys, mlx_depth, numpy as np
from mlx_depth.linux_cpu import openblas
openblas.threads = lambda: int(sys.argv[1])
photo = (np.indices((40, 50)).sum(axis=0)[..., None] * [1, 2, 0]).astype(np.uint8)
model = mlx_depth.load("mlx-depth-demo", dtype="float32")
print(json.dumps(model.predict(photo, input_size=28).depth.tolist()))
"""


@linux
def test_a_prediction_on_two_cores_is_that_of_one_and_its_process_ends_well() -> None:
    depths = []
    for cores in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", CODE, cores], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        depths.append(np.array(json.loads(done.stdout)))
    assert depths[0].std() > 0
    assert relative_error(depths[1], depths[0]) <= 1e-5
