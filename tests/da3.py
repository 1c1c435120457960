"""The authors' Depth Anything 3, unmodified, importable without the packages that none of its numbers needs."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from support import require

torch = require("reference", "torch")

PACKAGE = "depth_anything_3"


def import_reference(module: str = "api") -> ModuleType:
    """A module of ``depth_anything_3``: ``api``, ``model.da3``, ``utils.io.input_processor`` …

    Where torchvision or moviepy 1 is missing, the package sees a stand-in while it is imported, and no one else does:
    transformers asks sys.modules what is installed.
    """
    require("reference", PACKAGE)
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # omegaconf's, about a resolver that upstream registers
        require("reference", f"{PACKAGE}.api")  # imports all that asks for a stand-in
        return require("reference", f"{PACKAGE}.{module}")


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """What cannot be imported is replaced inside the block."""
    parts = {
        ("torchvision", "transforms"): {"ToTensor": ToTensor, "Normalize": Normalize, "CenterCrop": CenterCrop},
        ("moviepy", "editor"): {},
    }
    missing = {names: members for names, members in parts.items() if not _importable(".".join(names))}
    before = {name: sys.modules.get(name) for names in missing for name in (names[0], ".".join(names))}
    for (parent, child), members in missing.items():
        sys.modules[parent], sys.modules[f"{parent}.{child}"] = ModuleType(parent), ModuleType(child)
        setattr(sys.modules[parent], child, sys.modules[f"{parent}.{child}"])
        vars(sys.modules[f"{parent}.{child}"]).update(members)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return False
    return True


# torchvision.transforms, as its documentation states it.


class ToTensor:
    """A PIL image (H, W, C) of 0..255 becomes a float tensor (C, H, W) of 0..1."""

    def __call__(self, image: Any) -> Any:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


class Normalize:
    """``(x - mean) / std`` for each channel of (C, H, W)."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, x: Any) -> Any:
        return (x - self.mean) / self.std


class CenterCrop:
    """The middle of (C, H, W), no larger than it; odd borders are rounded as ``int(round(border / 2))``."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, x: Any) -> Any:
        height, width = self.size
        top, left = round((x.shape[-2] - height) / 2), round((x.shape[-1] - width) / 2)
        assert min(top, left) >= 0, "torchvision pads here; this stand-in does not"
        return x[..., top : top + height, left : left + width]
