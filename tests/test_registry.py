"""The registry: names, aliases, licenses, and the demo that is bundled."""

import re

import pytest

from mlx_depth import DepthKind, ModelNotFoundError, find_model, list_models
from mlx_depth.registry import MODELS


def test_every_promised_entry_is_there():
    sizes = ("small", "base", "large")
    expected = {f"depth-anything-v2-{size}" for size in (*sizes, "giant")}
    expected |= {f"depth-anything-v1-{size}" for size in sizes}
    expected |= {f"depth-anything-v2-metric-{place}-{size}" for place in ("indoor", "outdoor") for size in sizes}
    several = ("small", "base", "large", "large-1.1", "giant", "giant-1.1")
    nested = ("nested-giant-large", "nested-giant-large-1.1")
    expected |= {f"depth-anything-3-{size}" for size in (*several, "mono-large", "metric-large", *nested)}
    expected |= {f"anydepth-{size}" for size in sizes} | {"depth-pro"}
    expected |= {f"prompt-depth-anything-{size}" for size in ("small", "small-transparent", "large")}
    expected |= {f"distill-any-depth-{size}" for size in sizes}
    expected |= {f"moge-2-{size}" for size in sizes}
    expected |= {"dpt-large", "dpt-hybrid-midas", "midas-v2.1-small"}
    expected |= {f"dpt-dinov2-{size}-{place}" for size in (*sizes, "giant") for place in ("nyu", "kitti")}
    assert set(MODELS) == expected | {"mlx-depth-demo"}


def test_names_are_kebab_and_unique():
    names = [name for spec in list_models() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9]+(-v2\.1)?(-[a-z0-9]+)*(-1\.1)?", name) for name in names)


def test_hub_ids_are_unique():
    ids = [spec.hub_id for spec in list_models() if spec.hub_id is not None]
    assert len(ids) == len(set(ids))
    without = {spec.name for spec in list_models() if spec.hub_id is None and spec.convert_from is None}
    assert without == {"depth-anything-v2-giant", "mlx-depth-demo"}


@pytest.mark.parametrize(
    ("name", "license", "commercial"),
    [
        ("depth-anything-v2-small", "Apache-2.0", True),
        ("depth-anything-v2-large", "CC-BY-NC-4.0", False),
        ("depth-anything-v2-metric-indoor-small", "Apache-2.0", True),
        ("depth-anything-v2-metric-outdoor-base", "CC-BY-NC-4.0", False),
        ("depth-anything-v1-large", "Apache-2.0", True),
        ("depth-anything-3-base", "Apache-2.0", True),
        ("depth-anything-3-large-1.1", "CC-BY-NC-4.0", False),
        ("depth-anything-3-giant", "CC-BY-NC-4.0", False),
        ("depth-anything-3-mono-large", "Apache-2.0", True),
        ("depth-anything-3-metric-large", "Apache-2.0", True),
        ("depth-anything-3-nested-giant-large-1.1", "CC-BY-NC-4.0", False),
        ("dpt-large", "Apache-2.0", True),
        ("midas-v2.1-small", "MIT", True),
        ("dpt-dinov2-giant-kitti", "Apache-2.0", True),
        ("anydepth-base", "CC-BY-NC-SA-4.0 AND LicenseRef-DINOv3", False),
        ("moge-2-large", "MIT", True),
        ("depth-pro", "apple-amlr", False),
        ("mlx-depth-demo", "Apache-2.0", True),
        ("prompt-depth-anything-large", "Apache-2.0", True),
        ("distill-any-depth-small", "MIT AND Apache-2.0", True),
        ("distill-any-depth-base", "MIT AND CC-BY-NC-4.0", False),
        ("distill-any-depth-large", "MIT AND CC-BY-NC-4.0", False),
    ],
)
def test_licenses(name, license, commercial):
    assert (MODELS[name].license, MODELS[name].commercial) == (license, commercial)


@pytest.mark.parametrize(("place", "metres"), [("indoor", 20.0), ("outdoor", 80.0)])
def test_metric_models_know_their_range(place, metres):
    spec = MODELS[f"depth-anything-v2-metric-{place}-base"]
    assert spec.depth_kind is DepthKind.METRIC
    assert spec.config.max_depth == metres


def test_v1_taps_the_last_four_layers():
    assert MODELS["depth-anything-v1-large"].config.backbone.out_layers == (20, 21, 22, 23)
    assert MODELS["depth-anything-v2-large"].config.backbone.out_layers == (4, 11, 17, 23)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("da2-small", "depth-anything-v2-small"),
        ("DA2-Small", "depth-anything-v2-small"),
        ("depth-anything-v2-small", "depth-anything-v2-small"),
        ("DA3-LARGE-1.1", "depth-anything-3-large-1.1"),
        ("DA3NESTED-GIANT-LARGE", "depth-anything-3-nested-giant-large"),
        ("da3_mono_large", "depth-anything-3-mono-large"),
        ("promptda-small", "prompt-depth-anything-small"),
        ("prompt-depth-anything-vitl", "prompt-depth-anything-large"),
        ("moge-2-vitl-normal", "moge-2-large"),
    ],
)
def test_aliases_lead_to_the_model(alias, name):
    assert find_model(alias) is MODELS[name]


def test_a_near_miss_is_named():
    with pytest.raises(ModelNotFoundError, match="no model 'da2small': did you mean 'depth-anything-v2-small'"):
        find_model("da2small")


def test_a_far_miss_still_has_a_next_step():
    with pytest.raises(ModelNotFoundError, match=r"no model 'zzz': `mlx-depth models` lists all; write \./zzz"):
        find_model("zzz")
