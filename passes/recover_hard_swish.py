"""Recognize hard-sigmoid and hard-swish written out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import is_op, sole_consumer
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._polynomial import matches, operands, path_from, polynomial
from greencc.passes._rewriter import Edit, Rule, Scope, apply_rules, node_name, replace_path
from greencc.passes.eliminate_no_ops import same_shape
from greencc.passes.normalize_clips import bounds_of

_HARD_SWISH_OPSET = 14


class _RecoverHardSigmoid(Rule):
    """c * clip(x + b, 0, 1/c) -> HardSigmoid(alpha=c, beta=b c); the usual one has b = 3, c = 1/6."""

    name = "recover-hard-sigmoid"
    ops = frozenset({"Clip"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        bounds = bounds_of(node, scope)
        if bounds is None or bounds.low != 0.0 or not np.isfinite(bounds.high) or bounds.high <= 0.0:
            return None
        inner = bounds.x.producer()
        if inner is None or not is_op(inner, "Add", "Sub") or sole_consumer(bounds.x) is None:
            return None
        for x in operands([inner]):
            shifted = polynomial(bounds.x, (x,))
            if shifted is None or set(shifted) != {(0,), (1,)} or shifted[1,] != 1.0:
                continue
            scale = 1.0 / bounds.high
            path = path_from(node.outputs[0], scope)
            last = next((n for n in path if _scales(n, node, scale) and same_shape(x, n.outputs[0])), None)
            if last is None:
                continue
            return Edit(node_name(node), partial(_emit, node, x, last, scale, shifted[0,] * scale, scope))
        return None


class _CommuteScale(Rule):
    """(x * clip(..)) / c -> x * (clip(..) / c), which is where a hard-sigmoid is recognized."""

    name = "commute-scale"
    ops = frozenset({"Mul", "Div"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        product = node.inputs[0].producer() if node.inputs[0] is not None else None
        if product is None or not is_op(product, "Mul") or product.graph is not scope.graph:
            return None
        if sole_consumer(product.outputs[0]) is not node or not same_shape(
            node.outputs[0], product.outputs[0]
        ):
            return None
        for index in (0, 1):
            clipped, x = product.inputs[index], product.inputs[1 - index]
            clip = clipped.producer() if clipped is not None else None
            if clipped is None or x is None or clip is None or sole_consumer(clipped) is not product:
                continue
            bounds = bounds_of(clip, scope) if is_op(clip, "Clip") else None
            if (
                bounds is None
                or not np.isfinite(bounds.high)
                or not _scales(node, product, 1.0 / bounds.high)
            ):
                continue
            if not matches(polynomial(bounds.x, (x,)), {(0,): bounds.high / 2, (1,): 1.0}):
                continue
            return Edit(node_name(node), partial(_commute, node, product, index))
        return None


class _RecoverHardSwish(Rule):
    """x * HardSigmoid(x, 1/6, 1/2) -> HardSwish(x)."""

    name = "recover-hard-swish"
    ops = frozenset({"HardSigmoid"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        if scope.opset() < _HARD_SWISH_OPSET or any(a.is_ref() for a in node.attributes.values()):
            return None
        alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.2
        beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 0.5
        last, x = sole_consumer(node.outputs[0]), node.inputs[0]
        if not np.isclose(alpha, 1 / 6, rtol=1e-5) or not np.isclose(beta, 0.5, rtol=1e-5):
            return None
        if last is None or x is None or last.graph is not scope.graph or not is_op(last, "Mul"):
            return None
        if x not in last.inputs or not same_shape(x, last.outputs[0]):
            return None

        def apply() -> None:
            result = scope.node(
                "HardSwish", [x], like=last.outputs[0], name=f"{node_name(node)}/HardSwish", before=last
            )
            replace_path(last, result, node)

        return Edit(node_name(node), apply)


def _scales(node: ir.Node, source: ir.Node, factor: float) -> bool:
    return matches(polynomial(node.outputs[0], (source.outputs[0],)), {(1,): factor})


def _commute(node: ir.Node, product: ir.Node, index: int) -> None:
    """node(product(a, b), c) -> product(node(a, c), b); both keep their names and the last output its name."""
    graph = node.graph
    inner, outer = product.outputs[0], node.outputs[0]
    clipped = product.inputs[index]
    outer.replace_all_uses_with(inner, replace_graph_outputs=True)
    outer.name, inner.name = inner.name, outer.name
    node.replace_input_with(0, clipped)
    product.replace_input_with(index, outer)
    if graph is not None:
        graph.remove(node)
        graph.insert_before(product, node)


def _emit(node: ir.Node, x: ir.Value, last: ir.Node, alpha: float, beta: float, scope: Scope) -> None:
    attributes = [ir.AttrFloat32("alpha", alpha), ir.AttrFloat32("beta", beta)]
    name = f"{node_name(node)}/HardSigmoid"
    result = scope.node(
        "HardSigmoid", [x], like=last.outputs[0], name=name, attributes=attributes, before=last
    )
    replace_path(last, result, node)


@dataclass(frozen=True)
class RecoverHardSwish(Pass):
    """Turn hard-sigmoid and hard-swish (Howard et al., arXiv:1905.02244) written out into one operator each.

    HardSwish needs opset 14 and a target that runs it; before that x * HardSigmoid(x) remains.
    """

    name: ClassVar[str] = "recover-hard-swish"
    summary: ClassVar[str] = "recognize hard-sigmoid and hard-swish written out"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        rules: list[Rule] = [_CommuteScale(), _RecoverHardSigmoid()]
        if ctx.capabilities.runs("", "HardSwish"):
            rules.append(_RecoverHardSwish())
        return apply_rules(model, ctx, rules)
