"""What can be asked of an image."""

import sys

import pytest

from mlx_depth.errors import OptionError
from mlx_depth.jobs.settings import Settings


@pytest.mark.parametrize("formats", [(), ("",), ("jpg",), ("npy", "color16")])
def test_unknown_format(formats: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="choose from npy, npz"):
        Settings("m", "float32", formats=formats)


def test_unknown_color_map() -> None:
    with pytest.raises(OptionError, match="jet"):
        Settings("m", "float32", cmap="jet")


def test_missing_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Settings("m", "float32", formats=("exr",))
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(OptionError, match=r"pip install 'mlx-depth\[exr\]'"):
        Settings("m", "float32", formats=("npy", "exr"))
