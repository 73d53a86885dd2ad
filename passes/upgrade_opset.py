"""Raise the model's opset, so that later passes can use what newer operators offer.

Per-channel DequantizeLinear needs opset 13. The conversion is onnxscript's where it supports the step, else
ONNX's own version converter, which sees the graph with its large weights left out, so models beyond 2 GB
convert too. Both rewrite operators whose meaning changed (Softmax's axis, Squeeze's axes, ...); the pipeline's gate
checks the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.capabilities import Capabilities
from greencc.core.errors import UsageError
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
        reason = _convert(model, target)
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


def _convert(model: ir.Model, target: int) -> str | None:
    """Convert in place; return why it failed, in which case the model is as it was."""
    from onnxscript.version_converter import ConvertVersionPass

    candidate = model.clone()
    names = [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]
    with _captured("onnxscript.version_converter") as messages:
        try:
            ConvertVersionPass(target_version=target, fallback=True)(candidate)
        except Exception as error:  # noqa: BLE001 - the converters raise anything; it becomes the reason
            return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if candidate.opset_imports.get("") != target:
        return (
            messages[-1] if messages else "the ONNX version converter does not support one of its operators"
        )
    graph = candidate.graph
    if ([value.name for value in graph.inputs], [value.name for value in graph.outputs]) != names:
        return "the ONNX version converter changed the model's inputs or outputs"
    model.graph = graph
    model.opset_imports.update(candidate.opset_imports)
    for key in [key for key in model.functions if key not in candidate.functions]:
        del model.functions[key]
    return None


@contextmanager
def _captured(name: str) -> Iterator[list[str]]:
    """Collect the errors a library logs instead of raising them."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                messages.append(str(record.exc_info[1]).strip().splitlines()[0])

    logger, handler = logging.getLogger(name), Collect()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
