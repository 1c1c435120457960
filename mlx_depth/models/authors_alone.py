"""For families that only their authors' code computes: one set of rules, and no file that says how photos are made."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.processor import Processor, Reference


def follow(name: str) -> Callable[[Any, Processor, Reference], tuple[Any, Processor]]:
    """``Family.follow`` of a family, called ``name`` in the message to who wants other rules."""

    def follow_authors(config: Any, processor: Processor, reference: Reference) -> tuple[Any, Processor]:
        if reference != "original":
            raise OptionError(f"{reference} has no {name}: leave reference out, the rules are the authors'.")
        return config, processor

    return follow_authors


def no_processor(name: str) -> Callable[[Mapping[str, Any]], NoReturn]:
    """``Family.read_processor`` of a family whose checkpoints bring none."""

    def refuse(_: Mapping[str, Any]) -> NoReturn:
        raise CheckpointError(
            f"a preprocessor_config.json lies beside {name}'s weights, which have none: remove it, "
            "or take the original checkpoint."
        )

    return refuse
