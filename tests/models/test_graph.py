"""What each network asks of a GPU, read from its graph on any machine: operations and types that Metal has.

A trace raises where an array is evaluated, so NumPy and ``.item()`` show, too. Where there is no GPU, MLX's fused
operations stand in the graph as their parts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.dinov3 import DINOv3Config
from mlx_depth.backbones.efficientnet_lite import EfficientNetLiteConfig
from mlx_depth.backbones.hybrid_vit import HybridViTConfig
from mlx_depth.backbones.pyramid import PyramidConfig
from mlx_depth.backbones.vit import vit_config
from mlx_depth.heads.conv_stack import ConvStackConfig
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.heads.dual_dpt import DualDPTConfig
from mlx_depth.heads.multires import MultiresConfig
from mlx_depth.heads.sdt import SDTConfig
from mlx_depth.models.anydepth.network import AnyDepthConfig
from mlx_depth.models.base import DepthNetwork, DepthOutputs, NetworkConfig
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig
from mlx_depth.models.depth_anything_3.network import (
    DepthAnything3Config,
    DepthAnything3MonoConfig,
    DepthAnything3NestedConfig,
)
from mlx_depth.models.depth_pro.network import DepthProConfig
from mlx_depth.models.dpt.network import DPTHybridConfig, DPTMetricConfig, DPTNetworkConfig
from mlx_depth.models.families import FAMILIES
from mlx_depth.models.midas.network import MidasSmallConfig
from mlx_depth.models.moge.network import MoGeConfig
from mlx_depth.models.prompt_depth_anything.network import PromptDepthAnythingConfig
from mlx_depth.nn import ops

_PLAIN = DINOv2Config(embed_dim=32, num_layers=4, num_heads=2, out_layers=(0, 1, 2, 3))
_WINDOWS = DINOv2Config(
    embed_dim=32, num_layers=3, num_heads=2, out_layers=(0, 1, 2), raw_layers=(0, 1), patch_size=16, table_size=8
)
_DPT = DPTConfig(in_dim=32, features=16, out_channels=(8, 16, 24, 32))
_MIDAS = DPTNetworkConfig(
    vit_config(32, 4, 2, (0, 1, 2, 3), table_size=4),
    dataclasses.replace(_DPT, patch_size=16, readout="project", doubling=True),
)
_RESNET_VIT = HybridViTConfig(
    **{field.name: getattr(_MIDAS.backbone, field.name) for field in dataclasses.fields(DINOv2Config)}
    | {"out_layers": (2, 3), "raw_layers": (2, 3)},
    stem_channels=16,
    stage_channels=(64, 128, 256),
    stage_depths=(1, 1, 1),
    norm_groups=8,
)
_ANY_VIEW = DepthAnything3Config(
    AnyViewConfig(embed_dim=32, num_layers=4, num_heads=2, out_layers=(0, 1, 2, 3), alt_start=1),
    DualDPTConfig(in_dim=64, features=16, out_channels=(8, 16, 24, 32)),
    gaussians=True,
)
_STACK = ConvStackConfig((16, 12, 8, 8, 8), (0, 1, 0, 1, 0))
_MONO = DepthAnything3MonoConfig(_PLAIN, dataclasses.replace(_DPT, activation="exp"), metric=True)
TINY: dict[str, NetworkConfig] = {
    "depth_anything": DepthAnythingConfig(_PLAIN, _DPT),
    "depth_anything_3": _ANY_VIEW,
    "depth_anything_3_mono": _MONO,
    "depth_anything_3_nested": DepthAnything3NestedConfig(_ANY_VIEW, _MONO),
    "depth_pro": DepthProConfig(PyramidConfig(_WINDOWS, padding=1), MultiresConfig(32, (16, 16, 16), features=16)),
    "dpt": _MIDAS,
    "dpt_hybrid": DPTHybridConfig(
        _RESNET_VIT, dataclasses.replace(_MIDAS.head, given_maps=2, out_channels=(64, 128, 24, 32))
    ),
    "dpt_dinov2": DPTMetricConfig(
        dataclasses.replace(_PLAIN, raw_layers=_PLAIN.out_layers),
        dataclasses.replace(_DPT, readout="project", doubling=True, projection=True, residual_bias=False),
    ),
    "midas_small": MidasSmallConfig(EfficientNetLiteConfig(8, (8,) * 7, (1,) * 7), 8, 4),
    "anydepth": AnyDepthConfig(DINOv3Config(32, 4, 2, 64, (0, 1, 2, 3)), SDTConfig(32, features=16)),
    "prompt_depth_anything": PromptDepthAnythingConfig(_PLAIN, dataclasses.replace(_DPT, activation="sigmoid")),
    "moge": MoGeConfig(_PLAIN, _STACK, _STACK, normals=True),
}
OPTIONS: dict[str, dict[str, Any]] = {"image": {}, "views": {"gaussians": True}, "video": {}}
SHAPES_OF_CONDITIONS: dict[str, tuple[int, ...]] = {
    "extrinsics": (3, 4),
    "intrinsics": (3, 3),
    "prompt_depth": (19, 25),
    "aspect": (),
}
WITHOUT_PRODUCTS = {"midas_small": {"Matmul"}}  # it convolves alone
LEADING_AXES = {"image": (2,), "views": (1, 3), "video": (1, 4)}
# MLX's decompositions run on the CPU alone: ``mx.linalg`` refuses them a GPU's stream.
WITHOUT_GPU_KERNEL = {"Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"}
EVALUATED = "Attempting to eval an array during function transformations"

Graph = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac."""
    monkeypatch.setattr(ops, "kernels", None)


def tiny(family: str) -> DepthNetwork:
    return FAMILIES[family].network(TINY[family])


def input_size(network: DepthNetwork) -> tuple[int, int]:
    return network.only_size or (2 * network.multiple_of, 3 * network.multiple_of)


def graph(network: DepthNetwork, call: Callable[..., Any], *inputs: mx.array) -> Graph:
    """The records of MLX's exporter; the parameters are inputs, so that evaluating one raises as well."""
    parameters = dict(tree_flatten(network.parameters()))
    records: Graph = []

    def traced(*inputs: mx.array, **parameters: mx.array) -> list[mx.array]:
        network.update(tree_unflatten(list(parameters.items())))
        return [array for _, array in tree_flatten(call(*inputs))]

    mx.export_function(records.append, traced, *inputs, **parameters)
    return records


def graph_of_call(network: DepthNetwork, dtype: mx.Dtype = mx.float16) -> Graph:
    network.set_dtype(dtype)
    leading = LEADING_AXES[network.takes]
    pixel_values = mx.zeros((*leading, *input_size(network), 3), dtype)
    conditions = [mx.ones((*leading, *SHAPES_OF_CONDITIONS[name])) for name in network.conditions]

    def call(pixel_values: mx.array, *conditions: mx.array) -> Any:
        given = dict(zip(network.conditions, conditions, strict=True))
        plain = network(pixel_values, **OPTIONS[network.takes]).present()
        return [plain, network(pixel_values, **given).present()] if given else plain

    return graph(network, call, pixel_values, *conditions)


def graph_of_prepare(network: DepthNetwork, dtype: mx.Dtype = mx.float16) -> Graph:
    network.set_dtype(dtype)
    return graph(network, lambda: network.prepare(input_size(network)))


def primitives(records: Graph) -> set[str]:
    return {record["name"] for record in records if record["type"] == "primitive"}


def types(records: Graph) -> set[mx.Dtype]:
    """Of all inputs, outputs and constants."""
    arrays = [array for record in records for key in ("inputs", "outputs") for array in record.get(key, ())]
    constants = [value for record in records for _, value in record.get("constants", ())]
    return {dtype for _, _, dtype in arrays} | {value.dtype for value in constants}


def faults(records: Graph) -> set[Any]:
    return (primitives(records) & WITHOUT_GPU_KERNEL) | (types(records) & {mx.float64})


def test_each_family_is_walked() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_has_all_that_a_network_takes(family: str, dtype: mx.Dtype) -> None:
    records = graph_of_call(tiny(family), dtype)
    assert {"Convolution"} | ({"Matmul"} - WITHOUT_PRODUCTS.get(family, set())) <= primitives(records)
    assert dtype in types(records)
    assert not faults(records)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_has_all_that_preparing_takes(family: str, dtype: mx.Dtype) -> None:
    records = graph_of_prepare(tiny(family), dtype)
    prepared = tiny(family).prepare(input_size(tiny(family)))
    assert bool(primitives(records)) == bool(prepared)
    assert not faults(records)


# Each kind of fault, injected


class Faulty(DepthAnything):
    """Does something to the pixels, and to the position table, first."""

    def __init__(self, fault: Callable[[mx.array], mx.array]):
        super().__init__(TINY["depth_anything"])
        self._fault = fault

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        return super().__call__(self._fault(pixel_values))

    def prepare(self, size: tuple[int, int]) -> list[mx.array]:
        return [self._fault(table) for table in super().prepare(size)]


WALKS = [graph_of_call, graph_of_prepare]


@pytest.mark.parametrize("walk", WALKS)
def test_float64_is_found(walk: Callable[[DepthNetwork], Graph]) -> None:
    assert faults(walk(Faulty(lambda x: x.astype(mx.float64).astype(x.dtype)))) == {mx.float64}


@pytest.mark.parametrize("walk", WALKS)
def test_a_float64_constant_is_found(walk: Callable[[DepthNetwork], Graph]) -> None:
    assert mx.float64 in faults(walk(Faulty(lambda x: x * mx.array(np.ones(x.shape[-1]), mx.float64))))


DECOMPOSITIONS: dict[str, Callable[[mx.array], Any]] = {
    "Inverse": mx.linalg.inv,
    "Cholesky": mx.linalg.cholesky,
    "Eig": mx.linalg.eigvals,
    "Eigh": mx.linalg.eigvalsh,
    "QRF": lambda x: mx.linalg.qr(x)[1],
    "SVD": lambda x: mx.linalg.svd(x)[1],
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_an_operation_of_the_cpu_is_found(walk: Callable[[DepthNetwork], Graph], name: str) -> None:
    def fault(x: mx.array) -> mx.array:
        square = mx.eye(3) * x.astype(mx.float32).mean()
        return x + DECOMPOSITIONS[name](square).real.astype(x.dtype).mean()

    assert faults(walk(Faulty(fault))) == {name}


@pytest.mark.parametrize("walk", WALKS)
def test_an_lu_decomposition_cannot_be_traced(walk: Callable[[DepthNetwork], Graph]) -> None:
    with pytest.raises(ValueError, match="LUF"):
        walk(Faulty(lambda x: x + mx.linalg.solve(mx.eye(3), mx.eye(3) * x.mean().astype(mx.float32)).mean()))


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    "fault",
    [lambda x: mx.array(np.array(x)), lambda x: x * x.mean().item(), lambda x: x if x.mean() > 0 else -x],
    ids=["NumPy", "item", "branch"],
)
def test_evaluating_is_found(walk: Callable[[DepthNetwork], Graph], fault: Callable[[mx.array], mx.array]) -> None:
    with pytest.raises(ValueError, match=EVALUATED):
        walk(Faulty(fault))
