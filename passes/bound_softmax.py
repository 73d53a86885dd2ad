"""Keep the exponentials of masked scores out of the denormal numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.errors import UsageError
from greencc.core.graph import attribute_int, is_op, sole_consumer
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._rewriter import (
    Edit,
    Refusal,
    Rule,
    Scope,
    apply_rules,
    local_producer,
    node_name,
    refuse,
)

_OPSET = 13
_AXES_INPUT_OPSET = 18
_DEPTH = 80.0
"""exp(-80) = 1.8e-35 is normal even after a division by 1000, and far below what float32 adds to 1."""
_SLOW = 87.0
"""exp(-87.4) is the smallest normal number."""
_AT_ONCE = 4
"""Inputs observed in one run: scores grow with the square of the sequence length."""


class _BoundSoftmax(Rule):
    """Softmax(x) -> Softmax(Max(x, ReduceMax(x) - 80)) after a mask."""

    name = "bound-softmax"
    ops = frozenset({"Softmax"})

    def __init__(self, shares: Mapping[str, float], least: float) -> None:
        self.shares = shares
        self.least = least

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        x = masked_input(node)
        if x is None or x.graph is not scope.graph or local_producer(x, scope, "Add", "Where") is None:
            return None
        if scope.opset() < _OPSET or str(x.name) not in self.shares:
            return None
        share = self.shares[str(x.name)]
        if share < self.least:
            return refuse(node, f"stays as it is: {share:.0%} of its scores are masked on the sample inputs")

        def apply() -> None:
            name = node_name(node)
            inputs, attributes = [x], [ir.AttrInt64("keepdims", 1)]
            if scope.opset() >= _AXES_INPUT_OPSET:
                inputs.append(scope.constant(np.array([-1], np.int64), f"{name}/axes", node))
            else:
                attributes.append(ir.AttrInt64s("axes", [-1]))
            largest = scope.node(
                "ReduceMax", inputs, like=x, name=f"{name}/ReduceMax", attributes=attributes, before=node
            )
            depth = scope.constant(np.array(_DEPTH, np.float32), f"{name}/depth", node)
            floor = scope.node("Sub", [largest, depth], like=x, name=f"{name}/Sub", before=node)
            if x.shape is not None:
                largest.shape = floor.shape = ir.Shape([*list(x.shape)[:-1], 1])
            bounded = scope.node("Max", [x, floor], like=x, name=f"{name}/Max", before=node)
            node.replace_input_with(0, bounded)

        return Edit(node_name(node), apply)


def masked_input(node: ir.Node) -> ir.Value | None:
    """What a Softmax over the last axis reads, when that is the float result of an Add or Where of its own."""
    x = node.inputs[0] if is_op(node, "Softmax") else None
    if x is None or x.shape is None or len(x.shape) < 3 or x.dtype is not ir.DataType.FLOAT:
        return None
    if attribute_int(node, "axis", -1) not in (-1, len(x.shape) - 1) or sole_consumer(x) is not node:
        return None
    return x if is_op(x.producer(), "Add", "Where") else None


def masked_shares(model: ir.Model, ctx: Context) -> dict[str, float]:
    """For each masked Softmax input of the main graph, how much of it ends in denormal numbers on the samples."""
    found = [masked_input(node) for node in model.graph]
    names = [str(value.name) for value in found if value is not None and value.name]
    if not names or not ctx.samples:
        return {}
    below, count = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    engine = ctx.build(model, outputs=names)
    try:
        for feeds in ctx.samples:
            for start in range(0, len(names), _AT_ONCE):
                for name, scores in engine.run(feeds, names[start : start + _AT_ONCE]).items():
                    if scores.size:
                        with np.errstate(invalid="ignore"):
                            below[name] += int(np.sum(scores.max(-1, keepdims=True) - scores > _SLOW))
                        count[name] += scores.size
    finally:
        engine.close()
    return {name: below[name] / max(1, count[name]) for name in names}


@dataclass(frozen=True)
class BoundSoftmax(Pass):
    """Raise what an attention mask pushed far below the largest score of a row to 80 below it.

    A mask that adds -10000 makes every masked exponential a denormal number, which x86 CPUs compute many times
    slower. ONNX Runtime 1.31 on AVX-512, one thread, 12 x 64 x 64 scores half of which are masked: Softmax takes
    160 us, and 26 us after this pass, which itself costs 45 us (with nothing masked it takes 28 us to begin with).
    Masked weights become at most exp(-80) = 2e-35, whatever the input, so the outputs are those of before to
    float32 rounding.

    Attributes:
        least: Share of the scores that must be masked on the sample inputs for this to pay, in [0, 1].
    """

    name: ClassVar[str] = "bound-softmax"
    summary: ClassVar[str] = "keep masked attention scores out of the denormal numbers"

    least: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise UsageError(f"{self.name}: least is {self.least:g}", hint="give a share in [0, 1]")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        if not ctx.capabilities.slow_denormals:
            return Outcome()
        if not ctx.samples and any(masked_input(node) is not None for node in model.graph):
            reason = "no sample inputs show how much is masked"
            return Outcome(0, [Finding("refused", reason, rule=_BoundSoftmax.name)])
        return apply_rules(model, ctx, (_BoundSoftmax(masked_shares(model, ctx), self.least),))
