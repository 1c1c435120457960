"""What a family's reference is: the contract that every file of ``references/`` keeps."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reference:
    """A family's network in transformers."""

    build: Callable[[Any, Any], Any]
    """The module transformers and our config → ``torch.nn.Module`` on torch's default device, its weights not set."""

    depth: Callable[[Any], Any]
    """What the module returns → depth, a tensor ``(B, H, W)``."""

    twins: Mapping[str, str]
    """Name of a stage of ours → path of the module that computes it there; ``{i}`` is the stage's number."""

    def twin(self, stage: str) -> str:
        """Path of the module that computes what a stage of ours does."""
        if stage in self.twins:
            return self.twins[stage]
        number = re.search(r"\d+$", stage)
        if number is None:
            raise KeyError(stage)
        return self.twins[stage[: number.start()] + "{i}"].format(i=number[0])
