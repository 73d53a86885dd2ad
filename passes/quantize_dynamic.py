"""Dynamic INT8 quantization: weights are rounded offline, activations at run time; needs no calibration data.

MatMul and Gemm with a constant weight become integer products (`_dynamic_products`), an LSTM becomes the runtime's
quantized one (`_dynamic_recurrent`), in the main graph and in the bodies of If, Loop and Scan. A run takes the range
of an activation from the values of that run, so outliers never clip, and the cost is one pass over each activation.
Products of two activations (attention scores) stay in float. What an earlier pass has quantized is left alone, so
that `quantize-int8` may have taken the other layers. Tables read by Gather are the business of
`quantize-weights`, which a recipe runs after this pass.

Sources: Jacob et al., CVPR 2018; ONNX Runtime, "Quantize ONNX models" (dynamic quantization: transformers and RNNs).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.capabilities import Arithmetic, Capabilities, Int8Support
from greencc.core.errors import UsageError, did_you_mean
from greencc.core.graph import is_op, opset_of
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._dynamic_insert import DynamicInserter
from greencc.passes._dynamic_products import INTEGER_OPS, Product, describe, quantize_product
from greencc.passes._dynamic_recurrent import (
    KERNEL,
    RECURRENT,
    Recurrent,
    describe_recurrent,
    has_kernel,
    quantize_lstm,
    store_weights,
)
from greencc.passes._exclude import is_excluded, unmatched
from greencc.passes._quantize_nodes import has_quantized_weight, quantized_already

_RULE = "quantize-dynamic"
_OPS = (*INTEGER_OPS, *RECURRENT)
_MIN_OPSET = 11


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize weights to INT8 offline and activations at run time.

    Attributes:
        ops: Operators to quantize. Conv is possible but not among them: ONNX Runtime's ConvInteger fuses with
            nothing and is slower than the float convolution.
        exclude: Names of nodes left in float.
        min_elements: Products with smaller weights stay in float: quantizing their input costs more than they do.
        per_channel: One weight scale per output channel, where the target can.
    """

    name: ClassVar[str] = "quantize-dynamic"
    summary: ClassVar[str] = "Quantize weights to INT8 and activations at run time; needs no calibration data"
    lossy: ClassVar[bool] = True
    arithmetic: ClassVar[Arithmetic | None] = Arithmetic.DYNAMIC_INT8

    ops: tuple[str, ...] = ("Gemm", "GRU", "LSTM", "MatMul", "RNN")
    exclude: tuple[str, ...] = ()
    min_elements: int = 16384
    per_channel: bool = True

    def __post_init__(self) -> None:
        for op_type in self.ops:
            if op_type not in _OPS:
                raise UsageError(
                    f"{self.name}: ops has {op_type!r}, which has no dynamic form",
                    hint=did_you_mean(op_type, _OPS),
                )
        if self.min_elements < 0:
            raise UsageError(f"{self.name}: min_elements is {self.min_elements}", hint="give 0 or more")

    @property
    def spares(self) -> frozenset[str]:
        """The nodes that are excluded."""
        return frozenset(self.exclude)

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Quantize `model` in place."""
        outcome = Outcome()
        facts = ctx.capabilities
        refusal = _refusal(model, facts)
        before = quantized_already(model.graph)
        if refusal is not None or facts.int8 is None:
            outcome.findings.append(Finding("refused", refusal or "", rule=_RULE))
            return outcome
        infer_shapes(model)
        outcome.findings += unmatched(model, self.exclude, _RULE)
        outcome.findings += _unasked(model, self.ops)
        inserter = DynamicInserter(model, facts.int8.weight_bits)
        for node in list(model.graph.all_nodes()):
            if is_op(node, *_OPS):
                self._node(node, inserter, ctx, facts.int8, outcome)
        if any(node.domain == KERNEL[0] for node in model.graph.all_nodes()):
            model.opset_imports.setdefault(KERNEL[0], 1)
        if before is not None and not outcome.changed:
            message = f"the model is quantized already ({before.op_type} {before.name!r}); start from the float model"
            outcome.findings.insert(0, Finding("refused", message, rule=_RULE))
        return outcome

    def rehearsal(self, capabilities: Capabilities) -> QuantizeDynamic | None:
        """The pass itself, which needs no data."""
        return None if capabilities.int8 is None else self

    def _node(
        self, node: ir.Node, inserter: DynamicInserter, ctx: Context, int8: Int8Support, outcome: Outcome
    ) -> None:
        found = self._describe(node, ctx.capabilities, int8)
        if found is None:
            return
        name, op_type = str(node.name), node.op_type
        if isinstance(found, str):
            message = f"{op_type} {name!r}: {found}"
            outcome.findings.append(Finding("left-in-float", message, name, _RULE))
            return
        if not ctx.rewrites.allow(_RULE, name):
            return
        outcome.changed += 1
        per_channel = self.per_channel and int8.per_channel
        if isinstance(found, Product):
            quantize_product(found, inserter)
        elif has_kernel(node) and ctx.capabilities.runs(*KERNEL):
            quantize_lstm(found, inserter, per_channel)
        else:
            store_weights(found, inserter, per_channel)
            message = f"{op_type} {name!r} has no integer kernel: INT8 weights, computed in float"
            outcome.findings.append(Finding("left-in-float", message, name, _RULE))

    def _describe(
        self, node: ir.Node, facts: Capabilities, int8: Int8Support
    ) -> Product | Recurrent | str | None:
        """How a node is quantized, why not, or None where nobody expects it to be."""
        if is_excluded(node, self.exclude):
            return "excluded by the options"
        if node.op_type not in self.ops or has_quantized_weight(node):
            return None
        if node.op_type in RECURRENT:
            return describe_recurrent(node, self.min_elements, int8.weight_bits)
        integer = INTEGER_OPS[node.op_type]
        for needed in ("DynamicQuantizeLinear", integer):
            if not facts.runs("", needed):
                return f"the target has no kernel for {needed}"
        return describe(node, self.min_elements, self.per_channel and int8.per_channel, int8.weight_bits)


def _refusal(model: ir.Model, facts: Capabilities) -> str | None:
    """Why the model is not quantized at all, or None."""
    if facts.int8 is None:
        return "the target has no INT8 kernels worth using"
    opset = opset_of(model)
    if opset < _MIN_OPSET:
        return f"opset {opset} has no DynamicQuantizeLinear; run upgrade-opset before quantize-dynamic"
    return None


def _unasked(model: ir.Model, ops: tuple[str, ...]) -> list[Finding]:
    """One finding for each operator that has a dynamic form but is not among those asked for."""
    left = Counter(
        node.op_type
        for node in model.graph.all_nodes()
        if is_op(node, *_OPS) and not has_quantized_weight(node)
    )
    return [
        Finding("left-in-float", f"{count} x {op_type}: not among the operators asked for", rule=_RULE)
        for op_type, count in sorted(left.items())
        if op_type not in ops
    ]
