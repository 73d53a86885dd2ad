"""Move an explicit Pad into the convolution or pooling that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import (
    attribute_int,
    attribute_ints,
    constant_of,
    input_at,
    is_op,
    label,
    sole_consumer,
)
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._rewriter import Edit, Refusal, Rule, Scope, apply_rules, node_name, refuse, remove

_NONNEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Softplus"})


@dataclass(frozen=True)
class _Padding:
    begin: tuple[int, ...]
    end: tuple[int, ...]
    value: float


class _FusePad(Rule):
    name = "fuse-pad"
    ops = frozenset({"Pad"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        consumer = sole_consumer(node.outputs[0])
        if consumer is None or consumer.graph is not scope.graph:
            return None
        if not is_op(consumer, "Conv", "AveragePool", "MaxPool") or consumer.inputs[0] is not node.outputs[0]:
            return None
        padding = read_padding(node, scope)
        if isinstance(padding, str):
            return refuse(node, padding)
        where = f"is not fused into {label(consumer)}: "
        if any(padding.begin[:2]) or any(padding.end[:2]):
            return refuse(node, where + "it pads the batch or channel axis")
        if min(*padding.begin, *padding.end) < 0:
            return refuse(node, where + "it crops")
        problem = _value_problem(node, consumer, padding.value)
        if problem is not None:
            return refuse(node, where + problem)
        auto = consumer.attributes.get("auto_pad")
        if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
            return refuse(node, where + f"its padding is {auto.as_string()}")
        spatial = len(padding.begin) - 2
        explicit = auto is None or auto.as_string() == "NOTSET"
        own = attribute_ints(consumer, "pads", [0] * 2 * spatial) if explicit else (0,) * 2 * spatial
        problem = _pool_problem(consumer, own, padding)
        if problem is not None:
            return refuse(node, where + problem)
        pads = [a + b for a, b in zip(own, (*padding.begin[2:], *padding.end[2:]), strict=True)]

        def apply() -> None:
            source = node.inputs[0]
            consumer.attributes.pop("auto_pad", None)
            consumer.attributes.add(ir.AttrInt64s("pads", pads))
            if is_op(consumer, "AveragePool"):
                consumer.attributes.add(ir.AttrInt64("count_include_pad", 1))
            consumer.replace_input_with(0, source)
            remove(node)

        return Edit(node_name(node), apply)


def read_padding(node: ir.Node, scope: Scope) -> _Padding | str:
    """Padding per axis of a Pad node, or why it cannot be read. Opsets before 11 have attributes only."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return f"pads in mode {mode.as_string()!r}, not with a constant"
    if scope.opset() < 11:
        pads = list(attribute_ints(node, "pads", ()))
        attribute = node.attributes.get("value")
        value = 0.0 if attribute is None else float(attribute.as_float())
    else:
        amounts = constant_of(input_at(node, 1))
        if amounts is None:
            return "pads by amounts that are not constant"
        pads = [int(amount) for amount in amounts]
        fill = input_at(node, 2)
        array = constant_of(fill)
        if fill is not None and array is None:
            return "pads with a value that is not constant"
        value = 0.0 if array is None or array.size == 0 else float(array.reshape(-1)[0])
    axes_value = input_at(node, 3)
    if axes_value is None:
        half = len(pads) // 2
        return _Padding(tuple(pads[:half]), tuple(pads[half:]), value)
    axes = constant_of(axes_value)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or shape is None:
        return "pads axes that are not known"
    begin, end = [0] * len(shape), [0] * len(shape)
    for position, axis in enumerate(axes.tolist()):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    return _Padding(tuple(begin), tuple(end), value)


def _value_problem(node: ir.Node, consumer: ir.Node, value: float) -> str | None:
    if not is_op(consumer, "MaxPool"):
        return None if value == 0.0 else f"it pads with {value:g}, not with zero"
    # A pooling's own padding counts as -infinity. Zeros are the same only where nothing is below zero: each
    # window holds at least one real element.
    if value == -np.inf or value <= np.finfo(np.float32).min:
        return None
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if value == 0.0 and producer is not None and is_op(producer, *_NONNEGATIVE):
        return None
    return f"it pads with {value:g}, a maximum pads with -infinity"


def _pool_problem(consumer: ir.Node, own: tuple[int, ...], padding: _Padding) -> str | None:
    if is_op(consumer, "Conv"):
        return None
    if attribute_int(consumer, "ceil_mode", 0):
        return "its output size rounds up"
    if len(consumer.outputs) > 1:
        return "its indices would change"
    if is_op(consumer, "AveragePool") and any(own) and not attribute_int(consumer, "count_include_pad", 0):
        return "it does not count its own padding"
    kernel = attribute_ints(consumer, "kernel_shape", ())
    total = [a + b for a, b in zip(own, (*padding.begin[2:], *padding.end[2:]), strict=True)]
    if any(pad >= size for pad, size in zip(total, (*kernel, *kernel), strict=True)):
        return "a window would hold padding only"
    return None


@dataclass(frozen=True)
class FusePad(Pass):
    """Fuse zero padding into the `pads` of Conv and AveragePool, and -infinity padding into MaxPool."""

    name: ClassVar[str] = "fuse-pad"
    summary: ClassVar[str] = "fuse Pad into convolutions and poolings"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_FusePad(),))
