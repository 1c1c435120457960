import json

import numpy as np
import pytest
import scenes
from scene_results import boxes, gaussians
from support import seeded

from mlx_depth.errors import SaveError
from mlx_depth.kinds import DepthKind


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_upstream_keys_hold_the_arrays_exactly(tmp_path):
    rendered = scenes.boxes()
    fields = read(boxes(rendered).save(tmp_path / "scene.npz"))
    expected = {
        "image": np.stack(rendered.images),
        "depth": rendered.depth,
        "conf": rendered.confidence,
        "extrinsics": rendered.extrinsics,
        "intrinsics": rendered.intrinsics,
        "sky": rendered.sky,
    }
    for name, values in expected.items():
        assert fields[name].dtype == values.dtype
        np.testing.assert_array_equal(fields[name], values)


def test_everything_that_is_set(tmp_path):
    scene = boxes(
        rays=seeded("rays", (3, 4, 5, 6)),
        ray_confidence=seeded("ray confidence", (3, 4, 5)),
        gaussians=gaussians(10),
        names=("a.jpg", "日本 b.jpg", "c.jpg"),
        revision="abc",
        license="Apache-2.0",
        scale_factor=2.5,
    )
    fields = read(scene.save(tmp_path / "scene.npz"))
    np.testing.assert_array_equal(fields.pop("rays"), scene.rays)
    np.testing.assert_array_equal(fields.pop("ray_conf"), scene.ray_confidence)
    for name in ("means", "scales", "rotations", "harmonics", "opacities"):
        np.testing.assert_array_equal(fields.pop(f"gaussian_{name}"), getattr(scene.gaussians, name))
    assert json.loads(str(fields.pop("mlx_depth"))) == scene.sidecar()
    assert tuple(fields.pop("names")) == scene.names
    for name in ("image", "depth", "conf", "extrinsics", "intrinsics", "sky"):
        fields.pop(name)
    assert {name: value.item() for name, value in fields.items()} == {
        "kind": "metric",
        "unit": "m",
        "model": "depth-anything-3-large",
        "revision": "abc",
        "dtype": "float32",
        "license": "Apache-2.0",
        "scale_factor": 2.5,
    }


def test_what_is_not_known_is_left_out(tmp_path):
    scene = boxes(confidence=None, sky=None, model=None, kind=DepthKind.RELATIVE)
    fields = read(scene.save(tmp_path / "scene.npz"))
    assert set(fields) == {"image", "depth", "extrinsics", "intrinsics", "kind", "unit", "dtype", "mlx_depth"}
    assert (str(fields["kind"]), str(fields["unit"])) == ("relative", "")


def test_overwriting(tmp_path):
    path = boxes().save(tmp_path / "scene.npz")
    with pytest.raises(SaveError, match="exists: pass overwrite=True"):
        boxes().save(path)
    boxes(model="other").save(path, overwrite=True)
    assert str(read(path)["model"]) == "other"
