"""Exports in half the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def validated_once() -> Iterator[None]:
    """Within it, coremltools checks a graph after the last of a hundred passes, not after each."""
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    apply_pipeline = PassPipelineManager.apply_pipeline

    def apply(program: Program, pipeline: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Program, "validate", lambda *_, **__: None)
            apply_pipeline(program, pipeline)
        program.validate(check_essential_scope=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassPipelineManager, "apply_pipeline", apply)
        yield
