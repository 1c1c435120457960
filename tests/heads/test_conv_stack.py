"""The pyramid of convolutions alone, on features of its own."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference_moge
from support import relative_error, require, seeded

from mlx_depth.errors import CheckpointError
from mlx_depth.heads.conv_stack import ORIGINAL, ConvStack, ConvStackConfig, ConvStackHead, largest_map
from mlx_depth.nn.conv import EdgeConv2d
from mlx_depth.weights.rules import apply, to_mlx_layout

torch = require("reference", "torch")
CONFIG = ConvStackConfig((12, 10, 8, 6, 4), (1, 2, 0, 1, 0))
INPUTS = (5, 2, 3, 2, 4)


def features() -> list[np.ndarray]:
    return [seeded(f"x{i}", (2, 3 << i, 2 << i, channels)) for i, channels in enumerate(INPUTS)]


def pair(values: int | None) -> tuple[Any, ConvStack]:
    """Upstream's stack and ours with its weights."""
    theirs = reference_moge.import_reference("model.modules").ConvStack(
        dim_in=list(INPUTS),
        dim_res_blocks=list(CONFIG.channels),
        dim_out=[None] * 4 + [values],
        resamplers=["conv_transpose"] * 3 + ["bilinear"],
        num_res_blocks=list(CONFIG.num_blocks),
        res_block_in_norm="none",
        res_block_hidden_norm="none",
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.from_numpy(reference_moge.weight(name, tuple(parameter.shape))))
    ours = ConvStack(INPUTS, CONFIG) if values is None else ConvStackHead(INPUTS, CONFIG, values)
    weights = apply(ORIGINAL, {name: mx.array(value.numpy()) for name, value in theirs.state_dict().items()})
    ours.load_weights(list(to_mlx_layout(ours, weights).items()))
    return theirs, ours


def run(theirs: Any) -> list[np.ndarray]:
    with torch.no_grad():
        maps = theirs([torch.from_numpy(x).permute(0, 3, 1, 2) for x in features()])
    return [x.permute(0, 2, 3, 1).numpy() for x in maps]


def test_every_level() -> None:
    theirs, ours = pair(None)
    expected, found = run(theirs), ours([mx.array(x) for x in features()])
    assert [x.shape for x in found] == [x.shape for x in expected]
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert np.std(theirs_) > 0.1
        assert relative_error(np.array(ours_), theirs_) <= 1e-5


def test_what_is_read_out() -> None:
    theirs, ours = pair(3)
    found = ours([mx.array(x) for x in features()])
    assert found.shape == (2, 48, 32, 3)
    assert relative_error(np.array(found), run(theirs)[-1]) <= 1e-5
    ours.levels[3].blocks[0].conv2.bias += 1e-3  # a drift
    assert relative_error(np.array(ours([mx.array(x) for x in features()])), run(theirs)[-1]) > 1e-4


def test_the_border_goes_on() -> None:
    """A convolution that pads with zeros would differ at the border alone."""
    layer = EdgeConv2d(3, 2)
    x, weight, bias = seeded("x", (2, 5, 4, 3)), seeded("w", (2, 3, 3, 3)), seeded("b", (2,))
    layer.weight, layer.bias = mx.array(weight.transpose(0, 2, 3, 1)), mx.array(bias)
    theirs = torch.nn.Conv2d(3, 2, 3, padding=1, padding_mode="replicate")
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(weight))
        theirs.bias.copy_(torch.from_numpy(bias))
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert relative_error(np.array(layer(mx.array(x))), expected) <= 1e-6


def test_the_largest_map() -> None:
    assert largest_map((3, 2), CONFIG) == 48 * 32 * 6


@pytest.mark.parametrize(
    ("channels", "num_blocks", "message"),
    [
        ((8, 8, 8, 8), (0, 0, 0, 0, 0), r"not of 5 levels: take the config\.json of the original"),
        ((8, 8, 8, 8, 8), (0, 0, 0), r"not of 5 levels"),
        ((8, 8, 8, 8, 0), (0, 0, 0, 0, 0), "channels is .*not made of whole numbers from 1"),
        ((8, 8, 8, 8, 8), (0, 0, 0, 0, -1), "num_blocks is .*not made of whole numbers from 0"),
    ],
)
def test_sizes_that_cannot_be(channels: tuple[int, ...], num_blocks: tuple[int, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ConvStackConfig(channels, num_blocks)
