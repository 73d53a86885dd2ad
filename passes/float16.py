"""Half precision: FP16 or BF16 weights and activations for the operators the target has kernels for.

Casts stand only at the borders between half and float regions. What half precision computes badly stays in float: sums
and exponentials (`keep`), and for FP16 whatever may leave its range: weights, or activations seen on the calibration
data, above `limit`. Regions without a product are left alone, because their casts cost more than they save.
See Micikevicius et al., arXiv 1710.03740.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from greencc.core.errors import UsageError
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._calibrate import RangeMethod, observe_ranges
from greencc.passes._quantize_placement import constant

_RULE = "half"
_FLOAT16_MAX = 65504.0
_PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})


class HalfType(Enum):
    """The 16-bit float format."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


_DTYPES = {HalfType.FLOAT16: ir.DataType.FLOAT16, HalfType.BFLOAT16: ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Convert weights and activations to FP16 or BF16 where the target computes in it.

    Attributes:
        element: The 16-bit format.
        keep: Operators that stay in float.
        exclude: Names of nodes that stay in float.
        limit: Largest magnitude that FP16 weights and activations may have, in (0, 65504]; below the format's own
            65504 it leaves room for values the calibration data did not show.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "convert-float16"
    summary: ClassVar[str] = "Compute in FP16 or BF16 where the target has kernels for it"
    lossy: ClassVar[bool] = True

    element: HalfType = HalfType.FLOAT16
    keep: tuple[str, ...] = (
        "Exp",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "Softmax",
    )
    exclude: tuple[str, ...] = ()
    limit: float = 16384.0
    batch: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.limit <= _FLOAT16_MAX:
            raise UsageError(f"{self.name}: limit is {self.limit:g}", hint="give a value in (0, 65504]")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Convert `model` in place.

        Raises:
            InputError: The calibration data, or an activation on it, holds NaN or infinity.
        """
        outcome = Outcome()
        facts = ctx.capabilities
        supported = facts.float16 if self.element is HalfType.FLOAT16 else facts.bfloat16
        if not supported:
            label = self.element.value.upper()
            outcome.findings.append(
                Finding(
                    "refused", f"the target has no {label} kernels: it would compute in float between casts"
                )
            )
            return outcome
        infer_shapes(model)
        graph = model.graph
        opset = model.opset_imports.get("", 1)
        chosen = {
            node
            for node in graph
            if node.op_type in supported
            and node.op_type not in self.keep
            and node.name not in self.exclude
            and _convertible(node, opset, self.element)
        }
        self._drop_overflowing(model, chosen, ctx, opset, outcome)
        chosen = _with_products(graph, chosen)
        chosen = {node for node in graph if node in chosen and ctx.rewrites.allow(_RULE, str(node.name))}
        _Converter(graph, chosen, _DTYPES[self.element], opset).run()
        outcome.findings += [
            Finding(
                "left-in-float", f"{node.op_type} {node.name!r} has no half-precision form", node.name, _RULE
            )
            for node in graph
            if node.op_type in _PRODUCTS and node not in chosen and not _told(node, outcome)
        ]
        outcome.changed = len(chosen)
        return outcome

    def _drop_overflowing(
        self, model: ir.Model, chosen: set[ir.Node], ctx: Context, opset: int, outcome: Outcome
    ) -> None:
        """Leave in float what FP16 cannot hold; BF16 has the range of float32."""
        if self.element is HalfType.BFLOAT16:
            return
        peaks = self._peaks(model, chosen, ctx, opset, outcome)
        for node in model.graph:
            if node not in chosen:
                continue
            for value in _half_values(node, opset):
                peak = peaks[value]
                # A NaN weight compares false and would pass for small.
                if not peak <= self.limit:
                    chosen.discard(node)
                    message = f"{node.op_type} {node.name!r}: {value.name!r} reaches {peak:.3g}, above {self.limit:g}"
                    outcome.findings.append(Finding("left-in-float", message, node.name, _RULE))
                    break

    def _peaks(
        self, model: ir.Model, chosen: set[ir.Node], ctx: Context, opset: int, outcome: Outcome
    ) -> dict[ir.Value, float]:
        """Largest magnitude of every value the chosen nodes touch; 0 where it cannot be known."""
        peaks: dict[ir.Value, float] = {}
        observed: list[ir.Value] = []
        for node in model.graph:
            for value in _half_values(node, opset) if node in chosen else ():
                if value in peaks:
                    continue
                tensor = constant(value)
                peaks[value] = 0.0
                if tensor is not None:
                    peaks[value] = float(np.max(np.abs(tensor.numpy()), initial=0.0))
                else:
                    observed.append(value)
        if ctx.calibration is None:
            outcome.findings.append(
                Finding(
                    "warning", "without calibration data no activation was checked for overflow", rule=_RULE
                )
            )
            return peaks
        names = [str(value.name) for value in observed]
        ranges = observe_ranges(model, names, ctx, RangeMethod.MINMAX, 100.0, self.batch)
        peaks.update(
            {
                value: max(-ranges[name].low, ranges[name].high)
                for value, name in zip(observed, names, strict=True)
            }
        )
        return peaks


class _Converter:
    """Retypes the chosen nodes and puts casts at the borders."""

    def __init__(self, graph: ir.Graph, chosen: set[ir.Node], dtype: ir.DataType, opset: int) -> None:
        self.graph = graph
        self.chosen = chosen
        self.dtype = dtype
        self.opset = opset
        self.halves: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        start = next(iter(self.graph), None)
        for node in [node for node in self.graph if node in self.chosen]:
            for index in _half_inputs(node, self.opset):
                value = node.inputs[index]
                if value is not None and value.dtype is not self.dtype:
                    node.replace_input_with(index, self._half(value, start))
            for value in node.outputs:
                if value.dtype is ir.DataType.FLOAT:
                    self._restore(value)
        for value in self.halves:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                del self.graph.initializers[str(value.name)]

    def _half(self, value: ir.Value, start: ir.Node | None) -> ir.Value:
        """The half-precision copy of a float value: another initializer, or a cast after its producer."""
        if value in self.halves:
            return self.halves[value]
        name = f"{value.name}_{self.dtype.name.lower()}"
        half = ir.Value(name=name, type=ir.TensorType(self.dtype), shape=value.shape)
        tensor = constant(value)
        producer = value.producer()
        if tensor is not None:
            storage = np.dtype(np.float16 if self.dtype is ir.DataType.FLOAT16 else ml_dtypes.bfloat16)
            half.const_value = ir.tensor(tensor.numpy().astype(storage), dtype=self.dtype, name=name)
            half.shape = ir.Shape(list(tensor.numpy().shape))
            self.graph.register_initializer(half)
        else:
            cast = ir.node("Cast", [value], {"to": self.dtype.value}, outputs=[half], name=f"{name}_Cast")
            if producer is not None:
                self.graph.insert_after(producer, cast)
            elif start is not None:
                self.graph.insert_before(start, cast)
        self.halves[value] = half
        return half

    def _restore(self, value: ir.Value) -> None:
        """Let float readers, and the model's outputs, read a cast of the node's half output."""
        float_uses = [
            use
            for use in value.uses()
            if use.node not in self.chosen or use.idx not in set(_half_inputs(use.node, self.opset))
        ]
        name = str(value.name)
        is_output = value.is_graph_output()
        value.type = ir.TensorType(self.dtype)
        if not float_uses and not is_output:
            return
        restored = ir.Value(name=f"{name}_float32", type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
        for use in float_uses:
            use.node.replace_input_with(use.idx, restored)
        if is_output:
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = restored
            value.name = f"{name}_{self.dtype.name.lower()}"
            restored.name = name
        cast = ir.node(
            "Cast", [value], {"to": ir.DataType.FLOAT.value}, outputs=[restored], name=f"{name}_Cast_float32"
        )
        producer = value.producer()
        assert producer is not None
        self.graph.insert_after(producer, cast)


def _told(node: ir.Node, outcome: Outcome) -> bool:
    return any(finding.node == node.name for finding in outcome.findings)


def _half_inputs(node: ir.Node, opset: int) -> list[int]:
    """Inputs of the type that the first output has, by the operator's schema."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    kind = schema.outputs[0].type_str
    found = []
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if value is not None and formal.type_str == kind:
            found.append(index)
    return found


def _half_values(node: ir.Node, opset: int) -> Iterator[ir.Value]:
    for index in _half_inputs(node, opset):
        value = node.inputs[index]
        if value is not None:
            yield value
    for value in node.outputs:
        if value.dtype is ir.DataType.FLOAT:
            yield value


def _convertible(node: ir.Node, opset: int, element: HalfType) -> bool:
    """True for a standard operator whose data are float32 and whose schema takes half precision for them."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    indices = _half_inputs(node, opset)
    if not indices or any(_dtype(node.inputs[index]) is not ir.DataType.FLOAT for index in indices):
        return False
    if any(value.dtype is not ir.DataType.FLOAT for value in node.outputs[:1]):
        return False
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints
    }
    return f"tensor({element.value})" in allowed.get(schema.outputs[0].type_str, [])


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    tensor = constant(value)
    return value.dtype if tensor is None else tensor.dtype


def _with_products(graph: ir.Graph, chosen: set[ir.Node]) -> set[ir.Node]:
    """The chosen nodes in connected regions that hold at least one product."""
    kept: set[ir.Node] = set()
    pending = [node for node in graph if node in chosen and node.op_type in _PRODUCTS]
    while pending:
        node = pending.pop()
        if node in kept:
            continue
        kept.add(node)
        pending += [near for near in (*node.predecessors(), *node.successors()) if near in chosen]
    return kept
