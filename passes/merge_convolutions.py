"""Two 1x1 convolutions with nothing in between are one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_ints, is_op, label, sole_consumer
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._linear import Linear, linear_of
from greencc.passes._rewriter import Edit, Refusal, Rule, Scope, apply_rules, node_name, refuse, remove


class _MergePointwise(Rule):
    """W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""

    name = "merge-convolutions"
    ops = frozenset({"Conv"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if producer is None or not is_op(producer, "Conv") or producer.graph is not scope.graph:
            return None
        first, second = linear_of(producer), linear_of(node)
        if not isinstance(first, Linear) or not isinstance(second, Linear):
            return None
        if not _pointwise(first) or not _pointwise(second):
            return None
        if sole_consumer(producer.outputs[0]) is None:
            return refuse(node, f"is not merged with {label(producer)}: its output has other consumers")
        inner, outer = first.out_channels, second.out_channels
        if first.in_channels * outer > inner * (first.in_channels + outer):
            return refuse(node, f"is not merged with {label(producer)}: it would take more multiplications")
        w1 = first.weight.astype(np.float64).reshape(inner, -1)
        w2 = second.weight.astype(np.float64).reshape(outer, inner)
        weight = (w2 @ w1).reshape(outer, -1, *first.weight.shape[2:])
        bias = None
        if first.bias is not None or second.bias is not None:
            bias = np.zeros(outer) if second.bias is None else second.bias
            bias = bias if first.bias is None else bias + w2 @ first.bias
        if not second.fits(weight, bias):
            return refuse(node, f"is not merged with {label(producer)}: the weights would overflow")
        spatial = len(first.weight.shape) - 2
        strides = [
            a * b
            for a, b in zip(
                attribute_ints(producer, "strides", [1] * spatial),
                attribute_ints(node, "strides", [1] * spatial),
                strict=True,
            )
        ]

        def apply() -> None:
            node.replace_input_with(0, producer.inputs[0])
            remove(producer)
            node.attributes.add(ir.AttrInt64s("strides", strides))
            second.install(weight, bias, scope)

        return Edit(node_name(producer), apply)


def _pointwise(linear: Linear) -> bool:
    return linear.groups == 1 and all(size == 1 for size in linear.weight.shape[2:]) and not linear.pads


@dataclass(frozen=True)
class MergeConvolutions(Pass):
    """Merge consecutive ungrouped 1x1 convolutions when the merged one takes no more multiplications."""

    name: ClassVar[str] = "merge-convolutions"
    summary: ClassVar[str] = "merge consecutive 1x1 convolutions"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_MergePointwise(),))
