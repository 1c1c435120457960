"""Exports in a third of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def validated_once() -> Iterator[None]:
    """Within it, coremltools checks a graph after the last of its passes, not after each, and prints none to no one."""
    from coremltools.converters.mil.mil import Block, Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    def apply(program: Program, pipeline: Any) -> None:
        for name in pipeline.passes:
            graph_pass = PASS_REGISTRY[name]
            graph_pass.set_options(pipeline.get_options(name))
            graph_pass(program)
        program.validate(check_essential_scope=True)

    propagate = Block._propagate_nonreplaceable_vars

    def propagate_what_there_is(block: Block) -> None:
        if any(operation.op_type.startswith("constexpr_") for operation in block.operations):
            propagate(block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassPipelineManager, "apply_pipeline", apply)
        patch.setattr(Block, "_propagate_nonreplaceable_vars", propagate_what_there_is)
        yield
