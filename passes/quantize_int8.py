"""Static INT8 quantization as QuantizeLinear/DequantizeLinear pairs, shaped for the target.

1. Placement (`_quantize_placement`): which nodes gain, from the target's `Int8Support`.
2. Ranges (`_calibrate`): one pass over the calibration data, in constant memory.
3. Scales (`_quantize_scales`): values that a data movement connects share one; a Concat's operands take the
   scale of its result where nobody else reads them, so that the runtime copies instead of requantizing.
4. Insertion (`_quantize_insert`): pairs, integer weights and INT32 biases.
5. Repair, where asked for: rounding anew (`_refine_rounding`) and bias correction (`_correct_bias`).

Sources: Jacob et al., CVPR 2018 (integer arithmetic, zero exact); Krishnamoorthi, arXiv 1806.08342
(per-channel weights, ranges).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.capabilities import Arithmetic, Capabilities, ElementType, Int8Support
from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._adaround import AdaRoundOptions, RoundingMethod
from greencc.passes._calibrate import Grid, RangeMethod, RangeOptions, observe_ranges
from greencc.passes._correct_bias import BiasCorrection, correct_bias
from greencc.passes._exclude import covered, unmatched
from greencc.passes._quantize_insert import dequantized_name, insert, release
from greencc.passes._quantize_nodes import quantized_form
from greencc.passes._quantize_placement import (
    FIXED_RANGES,
    MOVEMENT,
    Placement,
    constant,
    place,
    quantized_already,
)
from greencc.passes._quantize_scales import (
    ActivationScale,
    activation_scale,
    constant_range,
    weight_scales,
)
from greencc.passes._ranges import Range
from greencc.passes._refine_rounding import refine_rounding

__all__ = ["Bias", "QuantizeInt8", "RangeMethod", "Rounding", "dequantized_name"]

_RULE = "quantize"
# The first with pairs of FP16.
_HALF_OPSET = 19


class Rounding(Enum):
    """How weights are rounded; see `_refine_rounding`."""

    NEAREST = "nearest"
    GREEDY = "greedy"
    ADAROUND = "adaround"


class Bias(Enum):
    """How mean errors are corrected; see `_correct_bias`."""

    NONE = "none"
    ANALYTIC = "analytic"
    EMPIRICAL = "empirical"


@dataclass(frozen=True)
class QuantizeInt8(Pass):
    """Quantize weights and activations to 8 bits, with ranges from calibration data.

    Attributes:
        method: How ranges are chosen: `minmax` keeps every value seen, `moving-average` the ends of an average
            run, `percentile` cuts rare outliers off, `entropy` and `mse` lose the least for 8 bits.
        percentile: Share of the values kept by `percentile`, in percent, in (50, 100].
        ops: Operators to quantize; empty: all the target has integer kernels for.
        exclude: Names of nodes left in float.
        rounding: How weights are rounded: to nearest, or so that the outputs of the layer move least.
        bias: Whether the mean error of each layer is taken off its bias.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "quantize-int8"
    summary: ClassVar[str] = "Quantize weights and activations to INT8 with ranges from calibration data"
    lossy: ClassVar[bool] = True
    arithmetic: ClassVar[Arithmetic | None] = Arithmetic.INT8

    method: RangeMethod = RangeMethod.MINMAX
    percentile: float = 99.99
    ops: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rounding: Rounding = Rounding.NEAREST
    bias: Bias = Bias.NONE
    batch: int = 8

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UsageError(
                f"{self.name}: percentile is {self.percentile:g}", hint="give a value in (50, 100]"
            )
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    @property
    def spares(self) -> frozenset[str]:
        """The nodes that are excluded."""
        return frozenset(self.exclude)

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Quantize `model` in place.

        Raises:
            InputError: There is no calibration data, or it (or an activation on it) holds NaN or infinity.
        """
        outcome = Outcome()
        int8 = ctx.capabilities.int8
        refusal = _refusal(model, int8)
        if refusal is not None or int8 is None:
            outcome.findings.append(Finding("refused", refusal or "", rule=_RULE))
            return outcome
        if ctx.calibration is None:
            raise InputError(
                "static INT8 quantization needs calibration data",
                hint="pass --calibration with sample inputs, or choose another precision",
            )
        if model.opset_imports.get("", 1) < 13 and int8.per_channel:
            int8 = replace(int8, per_channel=False)
            outcome.findings.append(
                Finding(
                    "warning",
                    f"opset {model.opset_imports.get('', 1)} has no per-channel DequantizeLinear: weights get one "
                    "scale per tensor; run upgrade-opset first for one per channel",
                    rule=_RULE,
                )
            )
        infer_shapes(model)
        plan = self._decide(model, int8, ctx, outcome)
        if not plan.weighted:
            return outcome
        scales = self._scales(model, plan, int8, ctx)
        repairs = self.rounding is not Rounding.NEAREST or self.bias is not Bias.NONE
        float_model = model.clone() if repairs else model
        outcome.findings += insert(model.graph, plan, scales, int8)
        outcome.changed = len(plan.weighted) + len(plan.others)
        if repairs:
            self._repair(float_model, model, int8, ctx, outcome)
        return outcome

    def rehearsal(self, capabilities: Capabilities) -> QuantizeInt8 | None:
        """Integers in the same places: what they are does not change how long kernels take."""
        if capabilities.int8 is None:
            return None
        return replace(self, method=RangeMethod.MINMAX, rounding=Rounding.NEAREST, bias=Bias.NONE)

    def _repair(
        self, float_model: ir.Model, model: ir.Model, int8: Int8Support, ctx: Context, outcome: Outcome
    ) -> None:
        """Round the weights anew and correct the biases, in this order: the rounding changes the mean errors."""
        infer_shapes(model)
        done: list[Outcome] = []
        if self.rounding is not Rounding.NEAREST:
            options = AdaRoundOptions(method=RoundingMethod(self.rounding.value))
            done.append(refine_rounding(float_model, model, ctx, options, int8.weight_bits, self.batch))
        if self.bias is not Bias.NONE:
            done.append(correct_bias(float_model, model, ctx, BiasCorrection(self.bias.value), self.batch))
        for repair in done:
            outcome.changed += repair.changed
            outcome.findings += repair.findings

    def _decide(self, model: ir.Model, int8: Int8Support, ctx: Context, outcome: Outcome) -> Placement:
        """Place, announce every node, and place again without those the log refuses."""
        graph = model.graph
        outcome.findings += unmatched(model, self.exclude, _RULE) + self._unsupported(int8)
        excluded = covered(model, self.exclude)
        ops = int8.ops & frozenset(self.ops) if self.ops else int8.ops
        broken = _not_finite(place(graph, int8, ops, excluded), int8)
        outcome.findings += [
            Finding(
                "left-in-float", f"{node.op_type} {node.name!r}: its weight is not finite", node.name, _RULE
            )
            for node in broken
        ]
        hidden = excluded | {str(node.name) for node in broken}
        plan = place(graph, int8, ops, hidden)
        refused = [node for node in plan.nodes(graph) if not ctx.rewrites.allow(_RULE, str(node.name))]
        if refused:
            plan = place(graph, int8, ops, hidden | {str(node.name) for node in refused})
        broken_names = {str(node.name) for node in broken}
        outcome.findings += [finding for finding in plan.findings if finding.node not in broken_names]
        bodies = [node for node in graph if any(_is_body(value) for value in node.attributes.values())]
        if bodies:
            names = ", ".join(f"{node.op_type} {node.name!r}" for node in bodies[:3])
            more = f" and {len(bodies) - 3} more" if len(bodies) > 3 else ""
            outcome.findings.append(
                Finding("left-in-float", f"the bodies of {names}{more} stay in float", bodies[0].name, _RULE)
            )
        return plan

    def _unsupported(self, int8: Int8Support) -> list[Finding]:
        """Operators asked for that the target cannot quantize: said rather than silently ignored."""
        findings = []
        for op_type in self.ops:
            if op_type not in int8.ops:
                hint = did_you_mean(op_type, int8.ops)
                findings.append(
                    Finding(
                        "warning", f"the target has no integer kernel for {op_type!r} ({hint})", rule=_RULE
                    )
                )
        return findings

    def _scales(
        self, model: ir.Model, plan: Placement, int8: Int8Support, ctx: Context
    ) -> dict[ir.Value, ActivationScale]:
        """One scale per set of values that must share one."""
        groups = _ScaleGroups(model.graph, plan)
        fixed: dict[ir.Value, Range] = {}
        observed: list[ir.Value] = []
        for value in plan.values:
            producer = value.producer()
            if producer is not None and producer.op_type in FIXED_RANGES:
                fixed[value] = FIXED_RANGES[producer.op_type]
            elif producer is None or not _derived(producer, plan):
                observed.append(value)
        options = RangeOptions(self.method, self.percentile)
        names = [str(value.name) for value in observed]
        found = observe_ranges(model, names, ctx, options, Grid.of(int8), self.batch)
        ranges = fixed | {value: found[str(value.name)] for value in observed}
        for node in model.graph:
            if node.op_type == "Concat" and _derived(node, plan) and node.outputs[0] in plan.values:
                operands = [value for value in node.inputs if value is not None]
                ranges[node.outputs[0]] = _union(
                    constant_range(tensor)
                    if (tensor := constant(value)) is not None
                    else groups.range(value, ranges)
                    for value in operands
                )
        scales: dict[ir.Value, ActivationScale] = {}
        for value in plan.values:
            root = groups.root(value)
            if root not in scales:
                scales[root] = activation_scale(groups.range(value, ranges), int8)
            scales[value] = scales[root]
        return scales


class _ScaleGroups:
    """Sets of values that must share one scale (union-find over the values of a placement)."""

    def __init__(self, graph: ir.Graph, plan: Placement) -> None:
        self._parent: dict[ir.Value, ir.Value] = {value: value for value in plan.values}
        for node in graph:
            if node not in plan.others:
                continue
            if node.op_type in MOVEMENT:
                for output in node.outputs:
                    self._join(node.inputs[0], output)
            elif node.op_type == "Concat":
                # An operand read elsewhere keeps its own, finer scale.
                alone = [value for value in node.inputs if value is not None and len(value.uses()) == 1]
                shared = node.outputs[0] if node.outputs[0] in self._parent else next(iter(alone), None)
                for operand in alone:
                    self._join(shared, operand)
        self._members: dict[ir.Value, list[ir.Value]] = {}
        for value in self._parent:
            self._members.setdefault(self.root(value), []).append(value)

    def root(self, value: ir.Value) -> ir.Value:
        while self._parent[value] is not value:
            value = self._parent[value]
        return value

    def range(self, value: ir.Value, ranges: dict[ir.Value, Range]) -> Range:
        """The union of the known ranges in the group of a value."""
        return _union(ranges[member] for member in self._members[self.root(value)] if member in ranges)

    def _join(self, first: ir.Value | None, second: ir.Value) -> None:
        if first in self._parent and second in self._parent:
            self._parent[self.root(second)] = self.root(first)


def _union(ranges: Iterable[Range]) -> Range:
    return reduce(Range.union, ranges, Range(0.0, 0.0))


def _derived(node: ir.Node, plan: Placement) -> bool:
    """True when the outputs hold nothing but values of the inputs, so that their ranges need no observing."""
    return node in plan.others and (node.op_type in MOVEMENT or node.op_type == "Concat")


def _is_body(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _refusal(model: ir.Model, int8: Int8Support | None) -> str | None:
    """Why the model is not quantized at all, or None."""
    if int8 is None:
        return "the target has no INT8 kernels worth using"
    node = quantized_already(model.graph)
    if node is not None:
        return (
            f"the model is quantized already: {node.op_type} {node.name!r} holds {quantized_form(node)}; "
            "start from the float model"
        )
    opset = model.opset_imports.get("", 1)
    if opset < 10:
        return f"opset {opset} has no QuantizeLinear; run upgrade-opset before quantize-int8"
    least = max(int8.min_opset, _HALF_OPSET if _is_half(model, int8) else 0)
    if opset < least:
        return (
            f"the target's quantized graphs need opset {least}, the model has {opset}; run upgrade-opset "
            f"with target = {least} and below = {least} before quantize-int8"
        )
    return None


def _is_half(model: ir.Model, int8: Int8Support) -> bool:
    """True where pairs will be of FP16."""
    return int8.scale_type is ElementType.FLOAT16 and any(
        value.dtype is ir.DataType.FLOAT16 for node in model.graph for value in node.outputs
    )


def _not_finite(plan: Placement, int8: Int8Support) -> list[ir.Node]:
    """Weighted nodes whose weights hold NaN or infinity."""
    broken = []
    for node, planned in plan.weighted.items():
        tensors = [
            constant(node.inputs[index]) for index in (planned.weight, planned.bias) if index is not None
        ]
        for tensor in tensors:
            if tensor is not None:
                if weight_scales(np.atleast_1d(tensor.numpy()), None, int8.weight_bits) is None:
                    broken.append(node)
                    break
                release(tensor)
    return broken
