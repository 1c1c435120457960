"""3D Gaussians against Depth Anything 3's own adapter: every property, given poses, and a drift in each."""

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
import pytest
import reference_da3
from da3 import import_reference, torch
from support import relative_error, require, seeded

from mlx_depth.heads.gaussian_dpt import ORIGINAL, GaussianDPTConfig, GaussianDPTHead
from mlx_depth.models.depth_anything_3 import gaussians as ours
from mlx_depth.models.depth_anything_3.gaussians import POSE_SCALES, RAW_CHANNELS, rescaled, world_gaussians
from mlx_depth.nn.rotations import quaternion_to_matrix
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4
require("reference", "e3nn")
cfg, registry, geometry = (import_reference(name) for name in ("cfg", "registry", "utils.geometry"))
adapter = cfg.create_object(cfg.load_config(registry.MODEL_REGISTRY["da3-giant"]).gs_adapter)

Inputs = Mapping[str, np.ndarray]
PROPERTIES = ["means", "scales", "rotations", "constant", "linear", "quadratic", "opacities"]


def inputs(B: int, V: int, H: int, W: int, *, skew: float = 0.0, turn: float = 1.0, near: float = 1.5) -> dict:
    """A head's output and cameras; ``turn`` is how far they turn, ``near`` the nearest depth."""
    q = np.concatenate([turn * seeded("turn", (B, V, 3)), np.ones((B, V, 1))], axis=-1).astype(np.float32)
    rotation = np.array(quaternion_to_matrix(mx.array(q)))
    intrinsics = np.zeros((B, V, 3, 3), np.float32)
    intrinsics[..., 0, 0] = W * (0.9 + 0.1 * seeded("fx", (B, V)))
    intrinsics[..., 1, 1] = W * (1.1 + 0.1 * seeded("fy", (B, V)))
    intrinsics[..., 0, 1] = skew
    intrinsics[..., :2, 2] = np.array([W / 2, H / 2]) + seeded("center", (B, V, 2))
    intrinsics[..., 2, 2] = 1
    return {
        "depth": near + np.exp(seeded("depth", (B, V, H, W), 0.5)),
        "raw": seeded("raw", (B, V, H, W, RAW_CHANNELS), np.r_[np.ones(RAW_CHANNELS - 1), 0.2]).astype(np.float32),
        "confidence": 1 / (1 + np.exp(-seeded("confidence", (B, V, H, W), 2.0))),
        "extrinsics": np.concatenate([rotation, seeded("t", (B, V, 3, 1), 2.0)], axis=-1),
        "intrinsics": intrinsics,
    }


def upstream(given: Inputs, poses: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What the unmodified adapter makes of it; ``poses``: the caller's extrinsics, (B, V, 3, 4)."""
    x = {name: torch.from_numpy(value.copy()) for name, value in given.items()}
    assert adapter.d_in == RAW_CHANNELS
    found = adapter(
        extrinsics=geometry.as_homogeneous(x["extrinsics"]),
        intrinsics=x["intrinsics"],
        depths=x["depth"],
        opacities=geometry.map_pdf_to_opacity(x["confidence"]),
        raw_gaussians=x["raw"],
        image_shape=tuple(x["depth"].shape[2:]),
        gt_extrinsics=None if poses is None else geometry.as_homogeneous(torch.from_numpy(poses)),
    )
    return {name: getattr(found, name).numpy() for name in ("means", "scales", "rotations", "harmonics", "opacities")}


def run(given: Inputs) -> dict[str, mx.array]:
    return world_gaussians(**{name: mx.array(value) for name, value in given.items()})


def errors(found: Mapping[str, mx.array], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative errors; harmonics by degree, as the constant is a hundred times the others."""
    assert found.keys() == expected.keys()
    assert all(x.dtype == mx.float32 for x in found.values())
    figures = {
        name: relative_error(np.array(found[name]), value) for name, value in expected.items() if name != "harmonics"
    }
    for name, part in (("constant", slice(0, 1)), ("linear", slice(1, 4)), ("quadratic", slice(4, 9))):
        figures[name] = relative_error(np.array(found["harmonics"])[..., part], expected["harmonics"][..., part])
    return figures


def check(found: Mapping[str, mx.array], expected: Mapping[str, np.ndarray]) -> None:
    figures = errors(found, expected)
    assert sorted(figures) == sorted(PROPERTIES)
    assert max(figures.values()) <= GATE, figures
    # Files hold the logarithms of scales.
    assert np.abs(np.array(found["scales"]) / expected["scales"] - 1).max() <= GATE


@pytest.mark.parametrize("shape", [(1, 1, 14, 14), (1, 2, 9, 14), (2, 3, 28, 13)])
@pytest.mark.parametrize("skew", [0.0, 1.7])
def test_every_property(shape, skew):
    given = inputs(*shape, skew=skew)
    found = run(given)
    B, N = shape[0], int(np.prod(shape[1:]))
    shapes = {name: x.shape for name, x in found.items()}
    assert shapes == {
        "means": (B, N, 3),
        "scales": (B, N, 3),
        "rotations": (B, N, 4),
        "harmonics": (B, N, 3, 9),
        "opacities": (B, N),
    }
    check(found, upstream(given))


def test_from_tokens_as_the_authors_network_does_it():
    """Its head's input, its depth and its cameras; everything after that is ours."""
    network, pixels = reference_da3.model(reference_da3.GIANT, tiny=True), reference_da3.pixels(1, 3, 70, 98)
    kept: dict = {}
    handle = network.gs_head.register_forward_pre_hook(lambda _, __, options: kept.update(options), with_kwargs=True)
    try:
        outputs = reference_da3.run(network, pixels, infer_gs=True)
    finally:
        handle.remove()
    head = GaussianDPTHead(
        GaussianDPTConfig(2 * reference_da3.TINY_WIDTH, reference_da3.TINY_FEATURES, reference_da3.TINY_CHANNELS)
    )
    weights = to_mlx_layout(head, apply(ORIGINAL, reference_da3.tensors(network.gs_head)))
    check_complete(head, weights)
    head.load_weights(list(weights.items()))
    raw, confidence = head([mx.array(f[0][0].numpy()) for f in kept["feats"]], mx.array(pixels[0]), (5, 7))
    depth, extrinsics, intrinsics = (mx.array(outputs[x].numpy()) for x in ("depth", "extrinsics", "intrinsics"))
    found = world_gaussians(depth, raw[None], confidence[None], extrinsics, intrinsics)
    figures = errors(found, {name: getattr(outputs["gaussians"], name).numpy() for name in found})
    assert max(figures.values()) <= GATE, figures


def test_a_camera_that_hardly_turns():
    """Harmonics aside: upstream loses up to 5e-4 of them to an arc cosine of nearly 1, ``nn`` has the exact test."""
    given = inputs(1, 2, 9, 14, turn=1e-4)
    figures = errors(run(given), upstream(given))
    assert max(figures[name] for name in ("means", "scales", "rotations", "constant", "opacities")) <= GATE
    assert max(figures[name] for name in ("linear", "quadratic")) <= 1e-3


def test_offsets_beyond_the_depth_give_upstreams_negative_scales():
    given = inputs(1, 2, 9, 14, near=0.0)
    given["raw"][..., -1] -= 1
    expected = upstream(given)
    assert (expected["scales"] < 0).any()
    assert relative_error(np.array(run(given)["scales"]), expected["scales"]) <= GATE


def test_half_precision_inputs_are_computed_in_float32():
    given = inputs(1, 2, 9, 14)
    given["raw"] = given["raw"].astype(np.float16)
    check(run(given), upstream({**given, "raw": given["raw"].astype(np.float32)}))


def test_it_compiles():
    given = [mx.array(x) for x in inputs(1, 2, 9, 14).values()]
    plain, compiled = world_gaussians(*given), mx.compile(world_gaussians)(*given)
    assert max(relative_error(np.array(compiled[name]), np.array(plain[name])) for name in plain) <= 1e-6


@pytest.mark.parametrize(("V", "size"), [(2, 1.7), (4, 0.05), (4, 0.8), (4, 40.0)])
def test_given_poses_rescale(V, size):
    """Upstream multiplies camera centers and depths by the scale of the caller's poses; here that comes after."""
    given = inputs(1, V, 9, 14)
    poses = given["extrinsics"] * np.array([1, 1, 1, size], np.float32)
    expected = upstream(given, poses)
    factor = np.clip(size, *POSE_SCALES)
    plain = upstream(given)
    assert relative_error(plain["means"] * factor, expected["means"]) <= GATE
    check(rescaled(run(given), float(factor)), expected)


def test_one_given_pose_has_no_scale():
    given = inputs(1, 1, 9, 14)
    check(run(given), upstream(given, given["extrinsics"] * np.array([1, 1, 1, 2], np.float32)))


def test_one_scale_for_each_scene():
    found = run(inputs(2, 1, 3, 5))
    both = rescaled(found, mx.array([2.0, 3.0]))
    for name, dims in (("means", 3), ("scales", 3)):
        assert mx.array_equal(both[name], found[name] * mx.array([2.0, 3.0]).reshape(2, *(1,) * (dims - 1)))
    assert all(both[name] is found[name] for name in ("rotations", "harmonics", "opacities"))


def along_z(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
    rays = ours._rays
    monkeypatch.setattr(ours, "_rays", lambda *x: rays(*x) / rays(*x)[..., 2:])
    return given


def pixel_centers_at_integers(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
    intrinsics = given["intrinsics"].copy()
    intrinsics[..., :2, 2] += 0.5
    return {**given, "intrinsics": intrinsics}


def with_value(name: str, value: object) -> Callable[[pytest.MonkeyPatch, Inputs], Inputs]:
    def drift(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
        monkeypatch.setattr(ours, name, value)
        return given

    return drift


def quaternions_as_they_should_be(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
    raw = given["raw"].copy()
    raw[..., 5:9] = np.roll(raw[..., 5:9], -1, axis=-1)
    return {**given, "raw": raw}


def without_turning(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
    monkeypatch.setattr(ours, "rotate_harmonics", lambda harmonics, rotations: harmonics)
    return given


def a_warm_up(monkeypatch: pytest.MonkeyPatch, given: Inputs) -> Inputs:
    p, exponent = given["confidence"], 2**0.01
    return {**given, "confidence": 0.5 * (1 - (1 - p) ** exponent + p ** (1 / exponent))}


@pytest.mark.parametrize(
    ("drift", "seen"),
    [
        (along_z, "means"),
        (pixel_centers_at_integers, "means"),
        (with_value("_MAX_SCALE", 30.01), "scales"),
        (quaternions_as_they_should_be, "rotations"),
        (with_value("_HARMONIC_WEIGHTS", (1.001, *ours._HARMONIC_WEIGHTS[1:])), "constant"),
        (without_turning, "linear"),
        (without_turning, "quadratic"),
        (a_warm_up, "opacities"),
    ],
)
def test_a_drift_fails_the_gate(drift, seen, monkeypatch):
    given = inputs(1, 2, 9, 14)
    expected = upstream(given)
    figures = errors(run(drift(monkeypatch, given)), expected)
    assert figures[seen] > GATE
    assert all(figure <= GATE for name, figure in figures.items() if name != seen and drift is not without_turning)
