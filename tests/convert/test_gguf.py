"""GGUF files, written by the ``gguf`` package and by hand; quantized blocks against ggml's published layout."""

import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_depth_convert.sources import LazyTensor, stage
from mlx_depth_convert.sources.gguf import ENCODINGS, OTHER_TYPES, read
from support import seeded

from mlx_depth.errors import CheckpointError

Type = gguf.GGMLQuantizationType

# As depth-anything.cpp's exporter names them, small; its values keep PyTorch's axis order.
SHAPES = {
    "vit.patch_embed.weight": (8, 3, 14, 14),
    "vit.cls_token": (1, 1, 8),
    "vit.pos_embed": (1, 5, 8),
    "vit.blk.0.attn_qkv.weight": (24, 8),
    "vit.blk.0.ls1": (8,),
    "head.resize.0.weight": (6, 4, 2, 2),
    "head.scratch.out2b.weight": (1, 4, 1, 1),
}
METADATA: dict[str, tuple[str, Any]] = {
    "depthanything3.arch": ("add_string", "depthanything2"),
    "depthanything3.vit.embed_dim": ("add_uint32", 8),
    "depthanything3.vit.alt_start": ("add_int32", -1),
    "depthanything3.vit.ln_eps": ("add_float32", 0.5),
    "depthanything3.vit.cat_token": ("add_bool", False),
    "depthanything3.vit.out_layers": ("add_array", [2, 5, 8, 11]),
    "depthanything3.img.mean": ("add_array", [0.25, 0.5, 0.75]),
    "some.words": ("add_array", ["a", "bc", ""]),
}


def written(path: Path, tensors: dict[str, tuple[np.ndarray, Type]], metadata: dict[str, tuple[str, Any]]) -> Path:
    writer = gguf.GGUFWriter(path, "depthanything3")
    for key, (method, value) in metadata.items():
        getattr(writer, method)(key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path: Path) -> Mapping[str, LazyTensor]:
    return read(path).parts[""].tensors


def floats(kind: Type = Type.F32) -> dict[str, tuple[np.ndarray, Type]]:
    dtype = np.float16 if kind == Type.F16 else np.float32
    return {name: (seeded(name, shape).astype(dtype), kind) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", [Type.F32, Type.F16])
def test_floats_keep_names_axes_and_bits(tmp_path: Path, kind: Type) -> None:
    tensors = floats(kind)
    found = tensors_of(written(tmp_path / "a.gguf", tensors, METADATA))
    assert list(found) == list(SHAPES)
    for name, (expected, _) in tensors.items():
        lazy = found[name]
        assert (lazy.shape, lazy.dtype) == (SHAPES[name], str(expected.dtype))
        np.testing.assert_array_equal(np.array(lazy.read()), expected)


def test_metadata_as_plain_values(tmp_path: Path) -> None:
    metadata = dict(read(written(tmp_path / "a.gguf", floats(), METADATA)).metadata)
    assert metadata.pop("general.architecture") == "depthanything3"
    assert metadata == {key: value for key, (_, value) in METADATA.items()}
    assert type(metadata["depthanything3.vit.cat_token"]) is bool


def test_bfloat16(tmp_path: Path) -> None:
    values = seeded("bfloat16", (3, 5))
    packed = gguf.quants.quantize(values, Type.BF16)
    lazy = tensors_of(written(tmp_path / "a.gguf", {"a": (packed, Type.BF16)}, {}))["a"]
    assert (lazy.shape, lazy.dtype) == ((3, 5), "bfloat16")
    expected = np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    np.testing.assert_array_equal(np.array(lazy.read().astype(mx.float32)), expected)


def test_q8_0_within_half_a_step(tmp_path: Path) -> None:
    values = seeded("q8_0", (5, 64))
    packed = gguf.quants.quantize(values, Type.Q8_0)
    lazy = tensors_of(written(tmp_path / "a.gguf", {"a": (packed, Type.Q8_0)}, {}))["a"]
    assert (lazy.shape, lazy.dtype) == ((5, 64), "float32")
    error = np.abs(np.array(lazy.read()) - values).reshape(5, 2, 32)
    step = np.abs(values).reshape(5, 2, 32).max(-1, keepdims=True) / 127
    # The step is stored in half precision (2**-11), and multiplies values of up to 127.
    assert (error <= step * (0.5 + 127 * 2**-11)).all()


def six_bit_scales(scales: np.ndarray, minima: np.ndarray) -> bytes:
    """Eight 6-bit scales and minima in 12 bytes, as `get_scale_min_k4` of ggml-quants.c unpacks them."""
    low = [scales[i] | (scales[i + 4] >> 4) << 6 for i in range(4)]
    middle = [minima[i] | (minima[i + 4] >> 4) << 6 for i in range(4)]
    high = [scales[i + 4] & 15 | (minima[i + 4] & 15) << 4 for i in range(4)]
    return bytes(int(value) for value in (*low, *middle, *high))


def q4_k(random: np.random.RandomState) -> tuple[bytes, np.ndarray]:
    scales, minima = random.randint(0, 64, (2, 8))
    codes = random.randint(0, 16, (8, 32))
    nibbles = codes[0::2] | codes[1::2] << 4
    block = struct.pack("<2e", 0.5, 0.25) + six_bit_scales(scales, minima) + nibbles.astype(np.uint8).tobytes()
    return block, 0.5 * scales[:, None] * codes - 0.25 * minima[:, None]


def q5_k(random: np.random.RandomState) -> tuple[bytes, np.ndarray]:
    scales, minima = random.randint(0, 64, (2, 8))
    codes = random.randint(0, 32, (8, 32))
    fifth = sum((codes[i] >> 4) << i for i in range(8))
    nibbles = codes[0::2] & 15 | (codes[1::2] & 15) << 4
    packed = fifth.astype(np.uint8).tobytes() + nibbles.astype(np.uint8).tobytes()
    block = struct.pack("<2e", 0.5, 0.25) + six_bit_scales(scales, minima) + packed
    return block, 0.5 * scales[:, None] * codes - 0.25 * minima[:, None]


def q6_k(random: np.random.RandomState) -> tuple[bytes, np.ndarray]:
    scales = random.randint(-128, 128, 16)
    codes = random.randint(0, 64, (2, 4, 32))  # halves, quarters of a half
    low, high = codes & 15, codes >> 4
    nibbles = low[:, :2] | low[:, 2:] << 4
    pairs = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    parts = (nibbles.astype(np.uint8), pairs.astype(np.uint8), scales.astype(np.int8), np.array([0.5], "<f2"))
    return b"".join(part.tobytes() for part in parts), 0.5 * scales[:, None] * (codes.reshape(16, 16) - 32)


@pytest.mark.parametrize("make", [q4_k, q5_k, q6_k])
def test_k_quants(tmp_path: Path, make: Callable[[np.random.RandomState], tuple[bytes, np.ndarray]]) -> None:
    random = np.random.RandomState(0)
    blocks = [make(random) for _ in range(3 * 2)]
    packed = np.frombuffer(b"".join(block for block, _ in blocks), np.uint8).reshape(3, -1)
    kind = Type[make.__name__.upper()]
    lazy = tensors_of(written(tmp_path / "a.gguf", {"a": (packed, kind)}, {}))["a"]
    assert (lazy.shape, lazy.dtype) == ((3, 512), "float32")
    expected = np.concatenate([values.ravel() for _, values in blocks]).reshape(3, 512)
    np.testing.assert_array_equal(np.array(lazy.read()), expected)


def test_sizes_are_those_of_ggml() -> None:
    for number, encoding in ENCODINGS.items():
        kind = Type(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (encoding.name, (encoding.block, encoding.nbytes))


def test_staged_file_holds_the_same_tensors(tmp_path: Path) -> None:
    tensors = floats() | {"q": (gguf.quants.quantize(seeded("q", (2, 32)), Type.Q8_0), Type.Q8_0)}
    found = tensors_of(written(tmp_path / "a.gguf", tensors, {}))
    stage(found, tmp_path / "a.safetensors")
    staged = mx.load(str(tmp_path / "a.safetensors"))
    assert isinstance(staged, dict)
    for name, lazy in found.items():
        np.testing.assert_array_equal(np.array(staged[name]), np.array(lazy.read()))


def test_other_alignment(tmp_path: Path) -> None:
    tensors = {"a": (np.ones(3, np.float32), Type.F32), "b": (np.full(2, 7, np.float32), Type.F32)}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "x")
    writer.add_custom_alignment(256)
    for name, (array, _) in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = read(tmp_path / "a.gguf")
    assert source.metadata["general.alignment"] == 256
    for name, (array, _) in tensors.items():
        np.testing.assert_array_equal(np.array(source.parts[""].tensors[name].read()), array)


# By hand: what the package does not write


def header(values: bytes = b"", value_count: int = 0, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, value_count) + values + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_tensor_that_ggml_rewrote_without_its_front_axes(tmp_path: Path) -> None:
    """depth-anything.cpp's quantizer stores ``vit.pos_embed`` (1, 5, 8) with two axes: the container says so."""
    path = tmp_path / "a.gguf"
    path.write_bytes(header(tensors=tensor("a", (8, 5)), tensor_count=1).ljust(96, b"\0") + bytes(160))
    assert tensors_of(path)["a"].shape == (5, 8)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    entries = tensor("scalar", ()) + tensor("empty", (4, 0))
    path.write_bytes(header(tensors=entries, tensor_count=2).ljust(128, b"\0") + struct.pack("<f", 2.5))
    tensors = tensors_of(path)
    assert tensors["scalar"].read().item() == 2.5
    assert tensors["empty"].read().shape == (0, 4)


BAD = {
    "empty": b"",
    "magic": b"GGML" + bytes(40),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "2**63 metadata values": header(value_count=2**63),
    "2**63 tensors": header(tensor_count=2**63),
    "string that claims 8 EB": header(struct.pack("<Q", 2**63), 1),
    "array that claims 8 EB": header(text("a") + struct.pack("<IIQ", 9, 0, 2**63), 1),
    "array of texts that claims 8 EB": header(text("a") + struct.pack("<IIQ", 9, 8, 2**63), 1),
    "array of arrays": header(text("a") + struct.pack("<IIQ", 9, 9, 1), 1),
    "unknown value type": header(text("a") + struct.pack("<I", 13), 1),
    "key twice": header((text("a") + struct.pack("<IB", 0, 1)) * 2, 2),
    "text that is no UTF-8": header(struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1), 1),
    "alignment of zero": header(text("general.alignment") + struct.pack("<II", 4, 0), 1),
    "alignment of three": header(text("general.alignment") + struct.pack("<II", 4, 3), 1),
    "alignment in words": header(text("general.alignment") + struct.pack("<I", 8) + text("32"), 1),
    "tensor twice": header(tensors=tensor("a", (1,)) * 2, tensor_count=2) + bytes(99),
    "five axes": header(tensors=tensor("a", (1,) * 5), tensor_count=1) + bytes(99),
    "axis of 2**40": header(tensors=tensor("a", (0, 2**40)), tensor_count=1) + bytes(99),
    "past the end": header(tensors=tensor("a", (2**30, 2**30)), tensor_count=1) + bytes(99),
    "offset past the end": header(tensors=tensor("a", (1,), offset=2**62), tensor_count=1) + bytes(99),
    "row that is no multiple of a block": header(tensors=tensor("a", (33,), kind=8), tensor_count=1) + bytes(99),
}


@pytest.mark.parametrize("version", [2, 3])
def test_big_endian_files_are_called_so(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", version, 0, 0))
    with pytest.raises(CheckpointError, match=r"a\.gguf: .*big-endian.*: export it again") as caught:
        read(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("case", list(BAD))
def test_damaged_files(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(BAD[case])
    with pytest.raises(CheckpointError, match=r"damaged or no GGUF file .+ download it again"):
        read(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    raw = written(tmp_path / "a.gguf", {"a": (np.ones((4, 8), np.float32), Type.F32)}, METADATA).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, len(raw), 3):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize("number", sorted(OTHER_TYPES))
def test_type_that_cannot_be_read_is_named(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(header(tensors=tensor("weights", (32,), kind=number), tensor_count=1) + bytes(99))
    name = OTHER_TYPES[number]
    with pytest.raises(CheckpointError, match=rf"'weights' has the ggml type {name}; readable are F32, F16, Q4_0"):
        read(path)
    assert Type._value2member_map_.get(number, Type.F32).name in (name, "F32")


def test_a_type_of_the_future_is_told_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(header(tensors=tensor("weights", (32,), kind=999), tensor_count=1) + bytes(99))
    with pytest.raises(CheckpointError, match=r"'weights' has the ggml type 999; readable are"):
        read(path)


QUANTIZED = [number for number, encoding in ENCODINGS.items() if encoding.quantized]


@pytest.mark.parametrize("number", QUANTIZED, ids=[ENCODINGS[number].name for number in QUANTIZED])
def test_every_block_type_gives_what_the_package_expands(tmp_path: Path, number: int) -> None:
    """Random blocks, with scales that are finite; rows of two blocks."""
    encoding = ENCODINGS[number]
    packed = np.random.RandomState(number).randint(0, 60, (3, 2 * encoding.nbytes)).astype(np.uint8)
    lazy = tensors_of(written(tmp_path / "a.gguf", {"a": (packed, Type(number))}, {}))["a"]
    expected = gguf.quants.dequantize(packed, Type(number))
    assert (lazy.shape, lazy.dtype) == ((3, 2 * encoding.block), "float32")
    assert np.isfinite(expected).all()
    assert len(np.unique(expected)) > 4, "values that do not vary prove nothing"
    np.testing.assert_array_equal(np.array(lazy.read()), expected)


def test_nothing_that_the_package_expands_is_refused() -> None:
    expanded = {int(kind) for kind in gguf.quants._type_traits}
    assert expanded - ENCODINGS.keys() <= OTHER_TYPES.keys()
    assert {OTHER_TYPES[number] for number in expanded - ENCODINGS.keys()} <= {"NVFP4"}


def test_only_quantized_files_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = written(tmp_path / "plain.gguf", floats(), {})
    packed = gguf.quants.quantize(seeded("q", (2, 32)), Type.Q8_0)
    quantized = written(tmp_path / "quantized.gguf", {"q": (packed, Type.Q8_0)}, {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert tensors_of(plain)["vit.blk.0.ls1"].read().shape == (8,)
    with pytest.raises(CheckpointError, match=r"pip install 'mlx-depth\[gguf\]'"):
        read(quantized)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="check the path"):
        read(tmp_path / "none.gguf")
