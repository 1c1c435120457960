"""What a family's reference is: the contract that every file of ``references/`` keeps."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlx_depth.errors import OptionError
from mlx_depth.processor import Reference as Rules

Outputs = Mapping[str, Any]  # name of an output, as ``DepthOutputs`` has it → tensor in the axes that ours has


class Run(Protocol):
    """Runs a reference's network."""

    def __call__(self, network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
        """Compute the outputs.

        Args:
            network: What ``Reference.build`` made.
            pixel_values: Normalized, as our network takes them: a tensor, channels last.
            everything: With those that are made on request alone (``DepthNetwork.everything``).
        """


@dataclass(frozen=True)
class Reference:
    """A family's network in the code that it is proved against, unmodified."""

    name: str
    """Of the package, as ``--against`` takes it."""

    install: str
    """How to get it, for a message: a command."""

    dialect: str
    """The family's table of names that maps its tensors."""

    rules: Rules
    """Whose rules for position tables it follows."""

    build: Callable[[Any], Any]
    """Our config → ``torch.nn.Module``; its parameters may be on the meta device, as they are set from ours."""

    run: Run
    """Computes what ours does."""

    save: Callable[[Any, Path], None]
    """Writes the module to a folder as its users have it on disk."""

    load: Callable[[Any, Path, Any], Any]
    """Our config, that folder and a torch type → the module, as its users load it."""

    twins: Mapping[str, str]
    """Name of a stage of ours → path of the module that computes it there; ``{i}`` is the stage's number."""

    most_pixels: int | None = None
    """All images of a run together; beyond, it draws at random and gives other numbers each time."""

    def twin(self, stage: str) -> str:
        """Path of the module that computes what a stage of ours does."""
        if stage in self.twins:
            return self.twins[stage]
        number = re.search(r"\d+$", stage)
        if number is None:
            raise KeyError(stage)
        return self.twins[stage[: number.start()] + "{i}"].format(i=number[0])

    def missing(self, error: ImportError) -> OptionError:
        """What to say where a package is not there."""
        return OptionError(f"comparing with {self.name} needs it ({error}): {self.install}.")
