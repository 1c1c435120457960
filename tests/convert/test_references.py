"""References as data: every stage of a family has its twin, and a family without a reference is told so."""

import dataclasses
import sys

import pytest
from coreml.tiny import tiny
from mlx_depth_convert.references import REFERENCES, reference_of
from mlx_depth_convert.references.network import reference_network

from mlx_depth.errors import OptionError
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS, ModelSpec


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (MODELS["depth-anything-v2-small"], 2 + 4 + 4 + 4 + 1),
        (MODELS["depth-anything-v1-large"], 2 + 4 + 4 + 4 + 1),
        (MODELS["depth-pro"], 1 + 3 + 1 + 5 + 1 + 4 + 5 + 1 + 2),
    ],
)
def test_every_stage_has_a_twin(spec: ModelSpec, count: int) -> None:
    network = reference_of(spec).build(spec.config)
    twins = [reference_of(spec).twin(stage.name) for stage in FAMILIES[spec.family].stages(spec.config)]
    assert len(set(twins)) == count
    assert set(twins) <= set(dict(network.named_modules()))


def test_numbers_of_stages_are_filled_in() -> None:
    twins = {"layer {i}": "encoder.{i}.out", "head 2": "head"}
    found = dataclasses.replace(REFERENCES["depth_anything"], twins=twins)
    assert [found.twin(name) for name in ("layer 0", "layer 23", "head 2")] == [
        "encoder.0.out",
        "encoder.23.out",
        "head",
    ]
    with pytest.raises(KeyError):
        found.twin("neck")


def test_a_family_without_a_reference_is_told_so_before_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(REFERENCES) <= set(FAMILIES)
    spec = dataclasses.replace(tiny().spec, family="unheard_of")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OptionError, match=r"tiny-depth cannot be compared with a reference, .*--against SOURCE"):
        reference_network(dataclasses.replace(tiny(), spec=spec))
