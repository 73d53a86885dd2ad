"""Half precision: FP16 or BF16, to compute in where the target has kernels, else to store weights in.

Computing: casts stand at the borders between half and float regions only, where they move the fewest bytes
(`_half_placement`). What half precision computes badly stays in float: sums and exponentials (`keep`), and for FP16
whatever may leave its range (`_half_ranges`). BF16 has the range of float32 and needs no such analysis.

Storing: weights alone are halved, and the arithmetic stays in float (`_half_storage`).

See Micikevicius et al., arXiv 1710.03740; Kalamkar et al., arXiv 1905.12322 (BF16).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import onnx_ir as ir

from greencc.core.errors import UsageError
from greencc.core.graph import ONNX_DOMAINS, constant_tensor, label, opset_of, subgraphs_of
from greencc.core.model import infer_shapes
from greencc.core.operators import KEPT_FROM_HALF
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._calibrate import observe_ranges
from greencc.passes._exclude import covered, is_excluded, unmatched
from greencc.passes._half_convert import Converter
from greencc.passes._half_masks import clamp_masks, mask_factors
from greencc.passes._half_placement import place
from greencc.passes._half_ranges import Overflow, infinite_values, seen_shapes
from greencc.passes._half_schema import (
    FLOAT16_MAX,
    MOVEMENT,
    PRODUCTS,
    HalfType,
    convertible,
    half_outputs,
    half_values,
)
from greencc.passes._half_storage import store
from greencc.passes._ranges import Range

__all__ = ["Borders", "ConvertFloat16", "HalfType", "Scope"]

_RULE = "half"
_BF16_OPSET = 13


class Scope(Enum):
    """What is done in half precision."""

    AUTO = "auto"
    """Compute where the target has kernels, else storage."""
    COMPUTE = "compute"
    STORAGE = "storage"


class Borders(Enum):
    """The type of the model's float inputs and outputs."""

    KEEP = "keep"
    HALF = "half"


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Convert weights and activations to FP16 or BF16 where the target computes in it, else weights alone.

    Attributes:
        element: The 16-bit format.
        scope: Compute in it, store weights in it, or whichever the target can.
        keep: Operators that stay in float.
        exclude: Names of nodes that stay in float; with `storage`, of nodes whose weights do.
        limit: Largest magnitude that FP16 weights and activations may have, in (0, 65504]; below the format's own
            65504 it leaves room for values the calibration data did not show.
        batch: Calibration samples run at once, where the model's batch is dynamic.
        io: Whether the model's float inputs and outputs keep their type; counts for `compute`.
        min_elements: With `storage`, smaller weights stay as they are.
    """

    name: ClassVar[str] = "convert-float16"
    summary: ClassVar[str] = (
        "Compute in FP16 or BF16 where the target has kernels for it, else store weights so"
    )
    lossy: ClassVar[bool] = True

    element: HalfType = HalfType.FLOAT16
    scope: Scope = Scope.AUTO
    keep: tuple[str, ...] = KEPT_FROM_HALF
    exclude: tuple[str, ...] = ()
    limit: float = 16384.0
    batch: int = 8
    io: Borders = Borders.KEEP
    min_elements: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.limit <= FLOAT16_MAX:
            raise UsageError(f"{self.name}: limit is {self.limit:g}", hint="give a value in (0, 65504]")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")
        if self.min_elements < 1:
            raise UsageError(f"{self.name}: min_elements is {self.min_elements}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Convert `model` in place.

        Raises:
            InputError: The calibration data, or an activation on it, holds NaN or infinity.
        """
        outcome = Outcome()
        facts = ctx.capabilities
        kernels = facts.float16 if self.element is HalfType.FLOAT16 else facts.bfloat16
        label_ = self.element.value.upper()
        refusal = None
        if self.element is HalfType.BFLOAT16 and opset_of(model) < _BF16_OPSET:
            refusal = f"opset {opset_of(model)} has no {label_}; run upgrade-opset before {self.name}"
        elif self.scope is Scope.COMPUTE and not kernels:
            refusal = f"the target has no {label_} kernels: it would compute in float between casts"
        if refusal is not None:
            outcome.findings.append(Finding("refused", refusal, rule=_RULE))
            return outcome
        outcome.findings += unmatched(model, self.exclude, _RULE)
        if self.scope is Scope.COMPUTE or (self.scope is Scope.AUTO and kernels):
            self._compute(model, kernels, ctx, outcome)
        else:
            store(model, self.element, self.min_elements, covered(model, self.exclude), ctx, outcome)
        return outcome

    def _compute(self, model: ir.Model, kernels: frozenset[str], ctx: Context, outcome: Outcome) -> None:
        infer_shapes(model)
        graph, opset = model.graph, opset_of(model)
        half_borders = self.io is Borders.HALF
        candidates = [node for node in graph if self._candidate(node, kernels, opset, graph)]
        if self.element is HalfType.FLOAT16:
            candidates = self._without_overflow(model, candidates, opset, ctx, outcome)
        else:
            message = "BFLOAT16 keeps 8 significant bits: every value is rounded by up to 0.4 % of itself"
            outcome.findings.append(Finding("note", message, rule=_RULE))
        placed = place(graph, candidates, opset, half_borders=half_borders)
        chosen = {node for node in graph if node in placed and ctx.rewrites.allow(_RULE, str(node.name))}
        outcome.findings += self._left(graph, chosen, outcome)
        # Without a half node the borders stay too: nothing would compute on what they carry.
        if chosen:
            Converter(model, chosen, self.element, opset, half_borders=half_borders).run()
        outcome.changed += len(chosen)

    def _candidate(self, node: ir.Node, kernels: frozenset[str], opset: int, graph: ir.Graph) -> bool:
        if node.domain not in ONNX_DOMAINS or node.op_type in self.keep or is_excluded(node, self.exclude):
            return False
        if node.op_type not in kernels and node.op_type not in MOVEMENT:
            return False
        if subgraphs_of(node) or not convertible(node, opset, self.element):
            return False
        # A body may name an outer value as its own output; that one cannot be replaced by a cast.
        return all(
            not value.is_graph_output() or any(value is output for output in graph.outputs)
            for value in half_outputs(node, opset)
        )

    def _without_overflow(
        self, model: ir.Model, candidates: list[ir.Node], opset: int, ctx: Context, outcome: Outcome
    ) -> list[ir.Node]:
        """The candidates that FP16 can compute; the others become findings."""
        infinite = infinite_values(model.graph)
        reasons: dict[ir.Node, str] = {}
        for node in candidates:
            reached = next((value for value in half_values(node, opset) if value in infinite), None)
            if reached is not None:
                reasons[node] = f"an infinite constant reaches {reached.name!r}, so its range is not known"
        finite = [node for node in candidates if node not in reasons]
        values = [value for node in finite for value in half_values(node, opset)] + mask_factors(finite)
        ranges = self._observe(model, [value for value in values if value not in infinite], ctx, outcome)
        clamped, masked = clamp_masks(model, finite, ranges, ctx)
        outcome.changed += clamped
        overflow = Overflow(ranges, masked, self.limit, opset, seen_shapes(model, finite, ctx))
        for node in finite:
            reason = overflow.reason(node)
            if reason is not None:
                reasons[node] = reason
        outcome.findings += [
            Finding("left-in-float", f"{node.op_type} {node.name!r}: {reason}", node.name, _RULE)
            for node, reason in reasons.items()
        ]
        return [node for node in candidates if node not in reasons]

    def _observe(
        self, model: ir.Model, values: list[ir.Value], ctx: Context, outcome: Outcome
    ) -> dict[ir.Value, Range]:
        """Ranges of the activations among these values; none without calibration data."""
        if ctx.calibration is None:
            message = "without calibration data no activation was checked for overflow"
            outcome.findings.append(Finding("warning", message, rule=_RULE))
            return {}
        observed = [value for value in dict.fromkeys(values) if constant_tensor(value) is None]
        found = observe_ranges(model, [str(value.name) for value in observed], ctx, batch=self.batch)
        return {value: found[str(value.name)] for value in observed}

    def _left(self, graph: ir.Graph, chosen: set[ir.Node], outcome: Outcome) -> list[Finding]:
        """Products and bodies that stay in float without a reason given so far."""
        told = {finding.node for finding in outcome.findings}
        findings = []
        for node in graph:
            if node in chosen or node.name in told:
                continue
            if subgraphs_of(node):
                message = f"the bodies of {label(node)} stay in float"
            elif node.op_type in PRODUCTS:
                message = f"{node.op_type} {node.name!r} has no half-precision form"
            else:
                continue
            findings.append(Finding("left-in-float", message, node.name, _RULE))
        return findings
