"""Whole Depth Anything 3 networks against the unmodified upstream package, from the same pixels, output by output."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference_da3 as upstream
from mlx.utils import tree_flatten
from support import correlation, relative_error

from mlx_depth import CheckpointError, DepthKind, OptionError
from mlx_depth.backbones.any_view import ReferenceView, order_of_views
from mlx_depth.checkpoints.detect import detect
from mlx_depth.models.base import DepthNetwork, DepthOutputs, Evidence, Photo
from mlx_depth.models.depth_anything_3.metric import FOCAL_LENGTH, LEAST_SKY, fill_sky
from mlx_depth.models.depth_anything_3.weights import ARCHITECTURES, published_name
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import find_model
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4  # relative error, float32
POSE_GATE = 1e-4  # absolute
PIXEL_GATE = 1e-3  # of intrinsics, in network pixels
WAYS: tuple[ReferenceView, ...] = ("saddle_balanced", "saddle_sim_range", "middle", "first")
NAMES = {"depth": "depth", "confidence": "depth_conf", "sky": "sky"}  # ours → upstream's
ANY_VIEW_MODELS = [upstream.ANY_VIEW, upstream.GIANT]


def ours(name: str, *, tiny: bool = True) -> DepthNetwork:
    """Our network with the weights of upstream's, through the family's own table."""
    spec = find_model(name)
    family = FAMILIES[spec.family]
    network = family.network(upstream.tiny_config(name) if tiny else spec.config)
    weights = apply(family.dialects["original"].rules, upstream.tensors(upstream.model(name, tiny=tiny)))
    weights = to_mlx_layout(network, weights)
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


def check(found: DepthOutputs, expected: Mapping[str, Any]) -> None:
    """Every output that upstream gives, each by its gate."""
    for name, theirs in NAMES.items():
        values = getattr(found, name)
        assert (values is None) == (theirs not in expected) or name == "sky", name
        if theirs in expected:
            reference = expected[theirs].numpy().reshape(values.shape)
            assert reference.std() > 0.01 * np.abs(reference).mean(), "a reference that hardly varies proves nothing"
            assert relative_error(np.array(values), reference) <= GATE, name
            assert correlation(np.array(values), reference) >= 0.99999, name
    if "extrinsics" in expected:
        extrinsics = expected["extrinsics"].numpy()[..., :3, :]
        np.testing.assert_allclose(np.array(found.extrinsics), extrinsics, rtol=0, atol=POSE_GATE)
        np.testing.assert_allclose(np.array(found.intrinsics), expected["intrinsics"].numpy(), rtol=0, atol=PIXEL_GATE)


def known(V: int, size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """The same cameras for upstream and for us."""
    extrinsics, intrinsics = upstream.cameras(V, size)
    last = np.broadcast_to(np.float32([0, 0, 0, 1]), (V, 1, 4))
    square = upstream.torch.from_numpy(np.concatenate([extrinsics, last], axis=1))[None]
    theirs = {"extrinsics": square, "intrinsics": upstream.torch.from_numpy(intrinsics)[None]}
    return theirs, {"extrinsics": mx.array(extrinsics)[None], "intrinsics": mx.array(intrinsics)[None]}


@pytest.mark.parametrize("name", ANY_VIEW_MODELS)
@pytest.mark.parametrize(("V", "H", "W"), [(1, 70, 98), (2, 98, 56), (3, 56, 84), (5, 42, 70)])
def test_views_equal_upstream(name: str, V: int, H: int, W: int) -> None:
    network, pixel_values = ours(name), upstream.pixels(1, V, H, W)
    for way in WAYS if V > 2 else WAYS[:1]:
        expected = upstream.run(upstream.model(name, tiny=True), pixel_values, ref_view_strategy=way)
        check(network(mx.array(pixel_values), reference_view=way), expected)


@pytest.mark.parametrize("name", ANY_VIEW_MODELS)
@pytest.mark.parametrize(("V", "H", "W"), [(1, 70, 98), (3, 98, 56)])
def test_rays_equal_upstream(name: str, V: int, H: int, W: int) -> None:
    pixel_values = upstream.pixels(1, V, H, W)
    found = ours(name)(mx.array(pixel_values))
    for output, expected in upstream.rays(upstream.model(name, tiny=True), pixel_values).items():
        assert relative_error(np.array(getattr(found, output)), expected) <= GATE, output


@pytest.mark.parametrize("name", ANY_VIEW_MODELS)
@pytest.mark.parametrize("V", [1, 2, 4])
def test_known_cameras_equal_upstream(name: str, V: int) -> None:
    pixel_values = upstream.pixels(1, V, 56, 84)
    theirs, cameras = known(V, (56, 84))
    network = ours(name)
    found = network(mx.array(pixel_values), **cameras)
    check(found, upstream.run(upstream.model(name, tiny=True), pixel_values, **theirs))
    without = network(mx.array(pixel_values))
    assert relative_error(np.array(found.depth), np.array(without.depth)) > 10 * GATE, "the cameras have a say"


def test_a_batch_of_scenes_is_its_scenes() -> None:
    network, pixel_values = ours(upstream.ANY_VIEW), mx.array(upstream.pixels(2, 3, 56, 84))
    both = network(pixel_values)
    for scene in range(2):
        alone = network(pixel_values[scene : scene + 1])
        assert relative_error(np.array(both.depth[scene]), np.array(alone.depth[0])) <= 1e-5
        np.testing.assert_allclose(np.array(both.extrinsics[scene]), np.array(alone.extrinsics[0]), atol=1e-5)


def test_gaussians_equal_upstream() -> None:
    pixel_values = upstream.pixels(1, 2, 70, 98)
    expected = upstream.run(upstream.model(upstream.GIANT, tiny=True), pixel_values, infer_gs=True)["gaussians"]
    found = ours(upstream.GIANT)(mx.array(pixel_values), gaussians=True).gaussians
    for name in ("means", "scales", "rotations", "harmonics", "opacities"):
        assert relative_error(np.array(found[name]), getattr(expected, name).numpy()) <= GATE, name


@pytest.mark.parametrize("name", [upstream.MONO, upstream.METRIC])
@pytest.mark.parametrize(("H", "W"), [(70, 98), (126, 56)])
def test_single_views_equal_upstream(name: str, H: int, W: int) -> None:
    """Upstream fills the sky in its network, we where the photo is known: with the whole photo's quantile."""
    pixel_values = upstream.pixels(1, 1, H, W)
    expected = upstream.run(upstream.model(name, tiny=True), pixel_values)
    found = ours(name)(mx.array(pixel_values[0]))
    sky = np.array(found.sky)
    assert 0.02 < (sky >= LEAST_SKY).mean() < 0.98, "both sky and ground have to be there"
    filled = fill_sky(found.depth, found.sky)
    check(found._replace(depth=filled), expected)
    assert relative_error(np.array(found.depth), np.array(filled)) > 10 * GATE


def test_nested_equals_upstream() -> None:
    pixel_values = upstream.pixels(1, 3, 70, 98)
    expected = upstream.run(upstream.model(upstream.NESTED, tiny=True), pixel_values)
    found = ours(upstream.NESTED)(mx.array(pixel_values))
    check(found, {name: value for name, value in expected.items() if name not in ("scale_factor", "is_metric")})
    assert found.scale.item() == pytest.approx(expected["scale_factor"], rel=GATE)
    assert abs(found.scale.item() - 1) > 0.1


def test_nested_with_known_cameras_equals_upstream() -> None:
    pixel_values = upstream.pixels(1, 2, 70, 98)
    theirs, cameras = known(2, (70, 98))
    check(
        ours(upstream.NESTED)(mx.array(pixel_values), **cameras),
        upstream.run(upstream.model(upstream.NESTED, tiny=True), pixel_values, **theirs),
    )


@pytest.mark.parametrize(("V", "H", "W"), [(1, 196, 252), (2, 126, 98), (3, 98, 126), (5, 56, 84)])
def test_full_small_equals_upstream(V: int, H: int, W: int) -> None:
    pixel_values = upstream.pixels(1, V, H, W)
    reference = upstream.model(upstream.ANY_VIEW)
    network = ours(upstream.ANY_VIEW, tiny=False)
    found = network(mx.array(pixel_values))
    outputs, rays = upstream.run_with_rays(reference, pixel_values)
    check(found, outputs)
    if V > 1:
        theirs, cameras = known(V, (H, W))
        check(network(mx.array(pixel_values), **cameras), upstream.run(reference, pixel_values, **theirs))
    for output, expected in rays.items():
        assert relative_error(np.array(getattr(found, output)), expected) <= GATE, output


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_has_its_place_at_full_size(name: str) -> None:
    spec = find_model(name)
    state = upstream.meta_network(name).state_dict()
    family = FAMILIES[spec.family]
    network = family.network(spec.config)
    check_complete(
        network, to_mlx_layout(network, apply(family.dialects["original"].rules, upstream.tensors_of(state)))
    )
    assert spec.parameters == upstream.count(state)


# Injected drifts


def drifted(network: DepthNetwork, path: str) -> DepthNetwork:
    parameters = dict(tree_flatten(network.parameters()))
    assert path in parameters
    network.load_weights([(path, parameters[path] * 1.01 + 0.01)], strict=False)
    return network


@pytest.mark.parametrize(
    ("path", "outputs"),
    [
        ("backbone.camera_token", ("depth", "extrinsics")),
        ("backbone.blocks.3.attn.query_norm.weight", ("depth",)),
        ("backbone.blocks.2.attn.key_norm.bias", ("depth",)),
        ("backbone.norm.bias", ("depth",)),
        ("head.norm.weight", ("depth", "rays")),
        ("head.conv3.bias", ("depth", "confidence")),
        ("head.ray_norm.weight", ("rays", "ray_confidence")),
        ("head.ray_conv1.2.bias", ("rays",)),
        ("camera_decoder.center.bias", ("extrinsics",)),
        ("camera_decoder.field_of_view.bias", ("intrinsics",)),
    ],
)
def test_a_drift_of_a_component_is_seen(path: str, outputs: tuple[str, ...]) -> None:
    pixel_values = mx.array(upstream.pixels(1, 3, 56, 84))
    right, wrong = ours(upstream.ANY_VIEW)(pixel_values), drifted(ours(upstream.ANY_VIEW), path)(pixel_values)
    for name in outputs:
        assert relative_error(np.array(getattr(wrong, name)), np.array(getattr(right, name))) > GATE, name


def test_a_drift_of_the_camera_encoder_is_seen() -> None:
    pixel_values, (_, cameras) = mx.array(upstream.pixels(1, 2, 56, 84)), known(2, (56, 84))
    right = ours(upstream.ANY_VIEW)(pixel_values, **cameras)
    wrong = drifted(ours(upstream.ANY_VIEW), "camera_encoder.embed.fc1.weight")(pixel_values, **cameras)
    assert relative_error(np.array(wrong.depth), np.array(right.depth)) > GATE


def test_a_drift_of_the_metric_network_is_seen() -> None:
    pixel_values = mx.array(upstream.pixels(1, 2, 56, 84))
    right = ours(upstream.NESTED)(pixel_values)
    wrong = drifted(ours(upstream.NESTED), "metric.head.conv3.bias")(pixel_values)
    assert abs(wrong.scale.item() / right.scale.item() - 1) > GATE


# The reference view


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("V", [3, 4, 7])
def test_views_are_ordered_as_upstream_orders_them(way: ReferenceView, V: int) -> None:
    selector = upstream.import_reference("model.reference_view_selector")
    select = functools.partial(selector.select_reference_view, strategy=way)
    for seed in range(50):
        theirs = upstream.torch.from_numpy(upstream.seeded(f"tokens {V} {seed}", (2, V, 1, 16)))
        noise = [upstream.torch.from_numpy(upstream.seeded(f"noise {i}", (2, V, 1, 16), 1e-4)) for i in range(8)]
        chosen = select(theirs)
        if all((select(theirs + each) == chosen).all() for each in noise):
            break  # two views that are nearly as good are told apart by rounding, in upstream, too
    else:
        pytest.fail("no tokens tell one view from the others")
    numbers = upstream.torch.arange(V).reshape(1, V, 1, 1).repeat(2, 1, 1, 1)
    expected = selector.reorder_by_reference(numbers, chosen)[:, :, 0, 0]
    found = order_of_views(mx.array(theirs.numpy())[:, :, 0], way)
    assert found.tolist() == expected.tolist()


def test_another_view_is_the_reference_and_the_order_comes_back() -> None:
    """Where the last view is the reference, each output still belongs to its own photo."""
    network, pixel_values = ours(upstream.ANY_VIEW), upstream.pixels(1, 5, 42, 70)
    expected = upstream.run(upstream.model(upstream.ANY_VIEW, tiny=True), pixel_values, ref_view_strategy="middle")
    found = network(mx.array(pixel_values), reference_view="middle")
    first = network(mx.array(pixel_values), reference_view="first")
    assert relative_error(np.array(found.depth), np.array(first.depth)) > 10 * GATE, "the reference has a say"
    check(found, expected)


# What cannot be


def test_what_a_network_of_views_refuses() -> None:
    network, pixel_values = ours(upstream.ANY_VIEW), mx.zeros((1, 2, 28, 28, 3))
    extrinsics, intrinsics = mx.zeros((1, 2, 3, 4)), mx.zeros((1, 2, 3, 3))
    with pytest.raises(OptionError, match="has extrinsics and intrinsics: give both, or none"):
        network(pixel_values, extrinsics)
    with pytest.raises(OptionError, match=r"extrinsics have shape \(1, 1, 3, 4\): give \(1, 2, 3, 4\), one for each"):
        network(pixel_values, extrinsics[:, :1], intrinsics)
    with pytest.raises(OptionError, match="no reference_view 'best': choose one of saddle_balanced"):
        network(pixel_values, reference_view="best")
    with pytest.raises(OptionError, match=r"no 3D Gaussians: take depth-anything-3-giant-1\.1"):
        network(pixel_values, gaussians=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt_start": 0}, "alt_start is 0"),
        ({"alt_start": 6}, "alt_start is 6, with 6 layers"),
        ({"out_layers": (0, 2, 3, 4), "alt_start": 3}, "alt_start is 3"),
        ({"embed_dim": 68, "num_heads": 2}, "heads of 34 channels cannot turn"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
)
def test_what_a_backbone_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(upstream.tiny_config(upstream.ANY_VIEW).backbone, **change)


# Metres and sky


def test_nothing_but_sky_has_no_metres() -> None:
    pixel_values = mx.array(upstream.pixels(1, 2, 56, 84))
    network = ours(upstream.NESTED)
    network.load_weights([("metric.head.sky_conv3.bias", mx.array([100.0]))], strict=False)
    found = network(pixel_values)
    assert np.isnan(np.array(found.depth)).all()
    assert np.isnan(found.scale.item())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sky_alone_or_none_leaves_depth_as_it_is(share: float) -> None:
    depth = mx.random.uniform(shape=(2, 20, 20), key=mx.random.key(0))
    assert mx.array_equal(fill_sky(depth, mx.full((2, 20, 20), share)), depth)


def test_sky_is_filled_photo_by_photo() -> None:
    depth = mx.random.uniform(shape=(2, 20, 20), key=mx.random.key(0)) * mx.array([1.0, 50.0])[:, None, None]
    sky = (mx.arange(20) < 5).astype(mx.float32) * mx.ones((2, 20, 1))
    filled = np.array(fill_sky(depth, sky))
    for photo in range(2):
        ground = np.array(depth[photo])[:, 5:]
        np.testing.assert_allclose(filled[photo][:, :5], np.quantile(ground, 0.99), rtol=1e-5)
        np.testing.assert_array_equal(filled[photo][:, 5:], ground)


def test_metres_go_with_the_focal_length_that_the_network_sees() -> None:
    family = FAMILIES["depth_anything_3_mono"]
    config = upstream.tiny_config(upstream.METRIC)
    outputs = DepthOutputs(mx.full((1, 28, 42), 2.0), sky=mx.zeros((1, 28, 42)))
    photo = Photo((56, 84), (28, 42), focal_length_px=1200.0)
    metres = family.postprocess(config, outputs, family.processor, photo).depth
    np.testing.assert_allclose(np.array(metres), 2.0 * (1200 / 2) / FOCAL_LENGTH, rtol=1e-6)
    relative = family.postprocess(upstream.tiny_config(upstream.MONO), outputs, family.processor, photo).depth
    np.testing.assert_allclose(np.array(relative), 2.0, rtol=1e-6)


# Checkpoints


def evidence(name: str, config: dict[str, Any] | None = None) -> Evidence:
    return Evidence(
        {key: tuple(value.shape) for key, value in upstream.meta_network(name).state_dict().items()}, config
    )


@pytest.mark.parametrize("name", ["da3-small", "da3mono-large", "da3nested-giant-large"])
def test_each_checkpoint_is_one_familys(name: str) -> None:
    for config in (None, {"model_name": name}):
        family, dialect = detect(evidence(name, config), Path("x"))
        assert (family.name, dialect) == (find_model(name).family, "original")
        reading = family.dialects[dialect].read(evidence(name, config))
        assert reading.certain == (config is not None or "mono" not in name)
        assert reading.config == ARCHITECTURES[name]


def test_a_config_of_another_model_is_an_error() -> None:
    small = evidence("da3-small", {"model_name": "da3mono-large"})
    with pytest.raises(CheckpointError, match="says model_name 'da3mono-large', but the tensors are not that model's"):
        FAMILIES["depth_anything_3"].dialects["original"].read(small)
    with pytest.raises(CheckpointError, match="says model_name 'da4-small': the known ones are da3-small"):
        FAMILIES["depth_anything_3"].dialects["original"].read(evidence("da3-small", {"model_name": "da4-small"}))
    with pytest.raises(CheckpointError, match="is not Depth Anything 3's, which holds a model_name"):
        FAMILIES["depth_anything_3"].dialects["original"].read(evidence("da3-small", {"encoder": "vits"}))


@pytest.mark.parametrize(
    ("official", "name"),
    [
        ("DA3-SMALL", "depth-anything-3-small"),
        ("DA3-LARGE-1.1", "depth-anything-3-large-1.1"),
        ("da3_giant", "depth-anything-3-giant"),
        ("DA3MONO-LARGE", "depth-anything-3-mono-large"),
        ("DA3METRIC-LARGE", "depth-anything-3-metric-large"),
        ("DA3NESTED-GIANT-LARGE-1.1", "depth-anything-3-nested-giant-large-1.1"),
        ("my-da3-small", None),
        ("da3-small-finetuned", None),
        ("model", None),
    ],
)
def test_official_names(official: str, name: str | None) -> None:
    assert published_name(official) == name


def test_kinds() -> None:
    kinds = {name: find_model(name).depth_kind for name in ARCHITECTURES}
    metric = {name for name, kind in kinds.items() if kind is DepthKind.METRIC}
    assert metric == {"da3metric-large", "da3nested-giant-large"}
    assert {kind for name, kind in kinds.items() if name not in metric} == {DepthKind.RELATIVE}
