"""Linear operators with constant weights: composing them with a per-channel `scale * x + shift`.

For y = W x + b:  s * y + t = (s W) x + (s b + t), exact for every linear operator; and
W (s x + t) + b = (W s) x + (W t + b), exact for convolutions only where no padding is added to x, because
padding zeros would become t. All of it is computed in float64 and cast back once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import (
    attribute_int,
    attribute_ints,
    constant_of,
    input_at,
    is_op,
    label,
    sole_consumer,
)
from greencc.passes._affine import FLOAT_TYPES, Float64, affine_of, per_channel
from greencc.passes._rewriter import Scope

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights.

    Attributes:
        node: The operator.
        weight: As stored, in the weights' own type.
        bias: float64 of shape [output channels], None without bias.
        bias_node: For MatMul, the Add that adds the bias; otherwise None.
    """

    node: ir.Node
    weight: NDArray[Any]
    bias: Float64 | None
    bias_node: ir.Node | None = None

    @property
    def tail(self) -> ir.Node:
        """The node whose output is the result, bias included."""
        return self.bias_node or self.node

    @property
    def groups(self) -> int:
        return attribute_int(self.node, "group", 1)

    @property
    def out_channels(self) -> int:
        kind, shape = self.node.op_type, self.weight.shape
        if kind == "Conv":
            return int(shape[0])
        if kind == "ConvTranspose":
            return int(shape[1]) * self.groups
        return int(shape[0 if self._transposed else 1])

    @property
    def in_channels(self) -> int:
        kind, shape = self.node.op_type, self.weight.shape
        if kind == "Conv":
            return int(shape[1]) * self.groups
        if kind == "ConvTranspose":
            return int(shape[0])
        return int(shape[1 if self._transposed else 0])

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in input and output; negative when counted from the right."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1

    @property
    def rank(self) -> int | None:
        """Rank of input and output, where it is known."""
        if self.node.op_type in ("Conv", "ConvTranspose"):
            return self.weight.ndim
        if self.node.op_type == "Gemm":
            return 2
        shape = self.node.inputs[0].shape if self.node.inputs[0] is not None else None
        return None if shape is None else len(shape)

    @property
    def pads(self) -> bool:
        """Whether zeros are added around the input (or, for ConvTranspose, positions see different taps)."""
        if self.node.op_type == "ConvTranspose":
            return True
        if self.node.op_type != "Conv":
            return False
        auto = self.node.attributes.get("auto_pad")
        if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
            return True
        return any(attribute_ints(self.node, "pads", ())) and (auto is None or auto.as_string() == "NOTSET")

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "Gemm" and bool(attribute_int(self.node, "transB", 0))

    @property
    def _alpha(self) -> float:
        return _float(self.node, "alpha", 1.0)

    def scaled_after(self, scale: Float64, shift: Float64) -> tuple[Float64, Float64 | None]:
        """(weight, bias) of `scale * y + shift`; arrays of shape [out_channels]."""
        kind, w = self.node.op_type, self.weight.astype(np.float64)
        if kind == "Conv":
            w = w * scale.reshape(-1, *[1] * (w.ndim - 1))
        elif kind == "ConvTranspose":
            grouped = w.reshape(self.groups, -1, *w.shape[1:])
            w = (grouped * scale.reshape(self.groups, 1, w.shape[1], *[1] * (w.ndim - 2))).reshape(w.shape)
        else:
            w = w * (scale.reshape(-1, 1) if self._transposed else scale)
        bias = shift if self.bias is None else self.bias * scale + shift
        return w, (bias if self.bias is not None or shift.any() else None)

    def scaled_before(self, scale: Float64, shift: Float64) -> tuple[Float64, Float64 | None]:
        """(weight, bias) with `scale * x + shift` applied to the input; arrays of shape [in_channels]."""
        kind, w = self.node.op_type, self.weight.astype(np.float64)
        if kind == "Conv":
            spatial = [1] * (w.ndim - 2)
            grouped = w.reshape(self.groups, -1, *w.shape[1:])
            by_group = (self.groups, 1, w.shape[1], *spatial)
            moved = (grouped * shift.reshape(by_group)).sum(axis=tuple(range(2, grouped.ndim))).reshape(-1)
            w = (grouped * scale.reshape(by_group)).reshape(w.shape)
        elif kind == "ConvTranspose":
            w, moved = w * scale.reshape(-1, *[1] * (w.ndim - 1)), np.zeros(self.out_channels)
        else:
            inward = w.T if self._transposed else w
            moved = self._alpha * (shift @ inward)
            w = inward * scale.reshape(-1, 1)
            w = w.T if self._transposed else w
        bias = moved if self.bias is None else self.bias + moved
        return w, (bias if self.bias is not None or shift.any() else None)

    def fits(self, weight: Float64, bias: Float64 | None) -> bool:
        """False when casting back to the weights' type overflows."""
        with np.errstate(over="ignore"):
            cast = [array.astype(self.weight.dtype) for array in (weight, bias) if array is not None]
        return all(np.isfinite(array.astype(np.float64)).all() for array in cast)

    def install(self, weight: Float64, bias: Float64 | None, scope: Scope) -> None:
        """Write new weights into the graph. A MatMul without bias node must not be given a bias."""
        scope.set_constant(self.node, 1, weight.astype(self.weight.dtype), "weight")
        if bias is None:
            return
        cast = bias.astype(self.weight.dtype)
        if self.bias_node is not None:
            index = 1 if self.bias_node.inputs[0] is self.node.outputs[0] else 0
            scope.set_constant(self.bias_node, index, cast, "bias")
            return
        if self.node.op_type == "Gemm":
            self.node.attributes.pop("beta", None)
        if self.node.op_type == "MatMul":
            raise AssertionError("a MatMul has no bias input")
        scope.set_constant(self.node, 2, cast, "bias")


def linear_of(node: ir.Node) -> Linear | str | None:
    """Read a linear operator; a reason when it cannot take a change of its weights, None for other nodes."""
    if not is_op(node, *LINEAR_OPS):
        return None
    x, weight_value = input_at(node, 0), input_at(node, 1)
    weight = constant_of(weight_value)
    if x is None or weight_value is None or weight is None:
        return "has weights that are not constant"
    if weight_value.dtype not in FLOAT_TYPES:
        return "has weights that are not floating point"
    if node.op_type == "MatMul":
        if weight.ndim != 2:
            return "has weights that are not a matrix"
        return _with_bias_node(node, weight)
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return "has attributes bound at the call of the function"
    bias_value = input_at(node, 2)
    if bias_value is None:
        return Linear(node, weight, None)
    bias = constant_of(bias_value)
    if bias is None:
        return "has a bias that is not constant"
    linear = Linear(node, weight, None)
    if node.op_type == "Gemm":
        if bias.ndim == 2 and bias.shape[0] != 1:
            return "adds another row to every sample"
        spread = per_channel(bias.astype(np.float64), 2, -1, linear.out_channels)
        if spread is None:
            return "has a bias that is not per channel"
        return Linear(node, weight, spread * _float(node, "beta", 1.0))
    return Linear(node, weight, bias.astype(np.float64))


def linear_before(value: ir.Value, scope: Scope) -> Linear | str | None:
    """The linear operator whose result (bias included) is `value`; a reason, or None when it is something else."""
    node = value.producer()
    if node is None or node.graph is not scope.graph:
        return None
    found = linear_of(node)
    if found is None and is_op(node, "Add"):
        affine = affine_of(node)
        producer = affine.x.producer() if affine is not None else None
        if affine is None or producer is None or producer.graph is not scope.graph:
            return None
        inner = linear_of(producer)
        if isinstance(inner, Linear) and inner.bias_node is node:
            found = inner
    if isinstance(found, Linear) and found.tail is not node:
        # The bias Add of a MatMul comes later: this value is the product alone.
        found = Linear(found.node, found.weight, None)
    if isinstance(found, Linear) and sole_consumer(value) is None:
        return f"is not folded into {label(found.node)}: its output has other consumers"
    return found


def _with_bias_node(node: ir.Node, weight: NDArray[Any]) -> Linear:
    plain = Linear(node, weight, None)
    follower = sole_consumer(node.outputs[0])
    if follower is None or follower.graph is not node.graph or not is_op(follower, "Add"):
        return plain
    affine = affine_of(follower)
    if affine is None or affine.x is not node.outputs[0]:
        return plain
    bias = per_channel(affine.shift, plain.rank, -1, plain.out_channels)
    return plain if bias is None else Linear(node, weight, bias, follower)


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())
