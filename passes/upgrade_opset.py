"""Raise the model's opset, so that later passes can use what newer operators offer.

Per-channel DequantizeLinear needs opset 13. The pipeline's gate checks what the converters (`core.opsets`) made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.capabilities import Capabilities
from greencc.core.errors import UsageError
from greencc.core.opsets import raise_opset
from greencc.core.passes import Context, Finding, Outcome, Pass

_RULE = "upgrade-opset"
_OLDEST_TARGET = 13
_NEWEST_TARGET = 23


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Convert models below opset `below` to opset `target`.

    Attributes:
        target: The opset to convert to, in [13, 23].
        below: Only models with an older opset than this are converted.
    """

    name: ClassVar[str] = "upgrade-opset"
    summary: ClassVar[str] = "Convert models with an old opset to a newer one"

    target: int = 17
    below: int = 13

    def __post_init__(self) -> None:
        if not _OLDEST_TARGET <= self.target <= _NEWEST_TARGET:
            raise UsageError(
                f"{self.name}: target is {self.target}",
                hint=f"give an opset from {_OLDEST_TARGET} to {_NEWEST_TARGET}",
            )
        if self.below > self.target:
            raise UsageError(f"{self.name}: below is {self.below}, above the target {self.target}")

    def rehearsal(self, capabilities: Capabilities) -> UpgradeOpset:
        """The pass itself: what comes after it may need the opset."""
        return self

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Convert `model` in place, or leave it as it is with a finding that says why."""
        current = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
        target = min(self.target, ctx.capabilities.max_opset)
        if current >= self.below or current >= target:
            return Outcome()
        if not ctx.rewrites.allow(_RULE, f"opset {current}"):
            return Outcome()
        reason = raise_opset(model, target)
        if reason is not None:
            return Outcome(
                0,
                [
                    Finding(
                        "refused", f"opset {current} could not be raised to {target}: {reason}", rule=_RULE
                    )
                ],
            )
        return Outcome(1, [Finding("note", f"opset {current} was raised to {target}", rule=_RULE)])
