"""Weights that are listed among the model's inputs stop being inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.passes import Context, Finding, Outcome, Pass

_FIRST_VERSION_WITHOUT = 4


@dataclass(frozen=True)
class FreezeInitializers(Pass):
    """Remove inputs that have an initializer.

    Before IR version 4 every initializer had to be listed as an input, so there it means nothing; from 4 on
    it makes a default that callers may override. An input that the sample feeds name is always kept.

    Attributes:
        overridable: Also freeze the defaults that callers may override.
    """

    name: ClassVar[str] = "freeze-initializers"
    summary: ClassVar[str] = "stop listing weights among the model's inputs"

    overridable: bool = False

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        outcome = Outcome()
        fed = {name for feeds in ctx.samples for name in feeds}
        listed = [value for value in model.graph.inputs if value.is_initializer() and value.name not in fed]
        if not listed:
            return outcome
        if model.ir_version >= _FIRST_VERSION_WITHOUT and not self.overridable:
            message = (
                f"{len(listed)} weights are inputs that callers may override, so nothing is folded into them"
            )
            return Outcome(
                0, [Finding("note", f"{message}; freeze-initializers with overridable = true freezes them")]
            )
        for value in listed:
            if not ctx.rewrites.allow("freeze-initializer", value.name or ""):
                return outcome
            model.graph.inputs.remove(value)
            model.ir_version = max(model.ir_version, _FIRST_VERSION_WITHOUT)
            outcome.changed += 1
        return outcome
