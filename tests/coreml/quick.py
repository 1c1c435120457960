"""Exports in a third of the time, and what tells that their bytes are the same."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlx_depth_convert.coreml.package import PASSES


@contextmanager
def validated_once() -> Iterator[None]:
    """Within it, coremltools checks a graph after the last of its passes, not after each, and writes no debug text.

    Passes that ``export_coreml`` leaves out are left out by coremltools' own conversions, too: of compressed weights.
    """
    from coremltools.converters.mil.mil import Block, Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    def apply(program: Program, pipeline: Any) -> None:
        for name in pipeline.passes:
            if str(pipeline) == "default" and name not in PASSES:
                continue
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


def digest(package: Path) -> str:
    """Of the names and the bytes of a package's files."""
    total = hashlib.sha256()
    for file in sorted(path for path in package.rglob("*") if path.is_file()):
        total.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return total.hexdigest()
