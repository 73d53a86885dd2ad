"""ONNX operators in PyTorch: arithmetic, activations, reductions, products.

A function takes the node and its inputs (None where an optional one is absent) and returns the output, or a tuple of
them. Definitions follow the ONNX operator specification; a gate compares every model with ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from greencc.torch_graph.node import Inputs, Node, Operator, Tensor


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(inputs[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(inputs[0], inputs[1])


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Operators of any number of inputs."""

    def run(node: Node, inputs: Inputs) -> Tensor:
        result = inputs[0]
        for other in inputs[1:]:
            result = function(result, other)
        return result

    return run


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(node: Node, inputs: Inputs) -> Tensor:
    low = node.input(inputs, 1, node.floating("min"))
    high = node.input(inputs, 2, node.floating("max"))
    result = inputs[0]
    if low is not None:
        result = torch.maximum(result, torch.as_tensor(low, dtype=result.dtype))
    if high is not None:
        result = torch.minimum(result, torch.as_tensor(high, dtype=result.dtype))
    return result


def _gelu(node: Node, inputs: Inputs) -> Tensor:
    return F.gelu(inputs[0], approximate=node.text("approximate", "none"))


def _fast_gelu(node: Node, inputs: Inputs) -> Tensor:
    bias = node.input(inputs, 1, None)
    return F.gelu(inputs[0] if bias is None else inputs[0] + bias, approximate="tanh")


def _hard_sigmoid(node: Node, inputs: Inputs) -> Tensor:
    alpha, beta = node.floating("alpha", 0.2), node.floating("beta", 0.5)
    return torch.clamp(inputs[0] * alpha + beta, 0.0, 1.0)


def _prelu(node: Node, inputs: Inputs) -> Tensor:
    value, slope = inputs
    return torch.where(value < 0, slope * value, value)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(node: Node, inputs: Inputs) -> Tensor:
        value = inputs[0]
        if node.opset >= 13:
            return function(value, dim=node.integer("axis", -1))
        # Until opset 12 everything from the axis on is one vector.
        axis = node.integer("axis", 1) % value.dim()
        flat = value.reshape(math.prod(value.shape[:axis]), -1)
        return function(flat, dim=1).reshape(value.shape)

    return run


def _axes(node: Node, inputs: Inputs) -> list[int] | None:
    given = node.input(inputs, 1, node.integers("axes"))
    if given is None:
        return None
    return [int(axis) for axis in (given.tolist() if isinstance(given, torch.Tensor) else given)]


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(node: Node, inputs: Inputs) -> Tensor:
        value = inputs[0]
        axes = _axes(node, inputs)
        if not axes:
            if node.integer("noop_with_empty_axes", 0):
                return value
            axes = list(range(value.dim()))
        return function(value, axes, bool(node.integer("keepdims", 1)))

    return run


def _mean(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.mean(dim=axes, keepdim=keep)


def _sum(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.sum(dim=axes, keepdim=keep)


def _arg_max(node: Node, inputs: Inputs) -> Tensor:
    return torch.argmax(inputs[0], dim=node.integer("axis", 0), keepdim=bool(node.integer("keepdims", 1)))


def _matmul(node: Node, inputs: Inputs) -> Tensor:
    return torch.matmul(inputs[0], inputs[1])


def _gemm(node: Node, inputs: Inputs) -> Tensor:
    a, b = inputs[0], inputs[1]
    a = a.transpose(0, 1) if node.integer("transA", 0) else a
    b = b.transpose(0, 1) if node.integer("transB", 0) else b
    result = node.floating("alpha", 1.0) * (a @ b)
    bias = node.input(inputs, 2, None)
    return result if bias is None else result + node.floating("beta", 1.0) * bias


def _einsum(node: Node, inputs: Inputs) -> Tensor:
    return torch.einsum(node.text("equation", ""), *inputs)


def _where(node: Node, inputs: Inputs) -> Tensor:
    return torch.where(inputs[0].bool(), inputs[1], inputs[2])


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b.to(a.dtype))


MATH: dict[str, Operator] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_div),
    "Pow": _binary(_power),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sum": _folded(torch.add),
    "Mod": _binary(torch.remainder),
    "PRelu": _prelu,
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Not": _unary(torch.logical_not),
    "Where": _where,
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Relu": _unary(F.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "HardSwish": _unary(F.hardswish),
    "Mish": _unary(F.mish),
    "LeakyRelu": lambda node, inputs: F.leaky_relu(inputs[0], node.floating("alpha", 0.01)),
    "Elu": lambda node, inputs: F.elu(inputs[0], node.floating("alpha", 1.0)),
    "Selu": lambda node, inputs: F.selu(inputs[0]),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "com.microsoft.Gelu": _unary(F.gelu),
    "com.microsoft.FastGelu": _fast_gelu,
    "Clip": _clip,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ReduceMean": _reduce(_mean),
    "ReduceSum": _reduce(_sum),
    "ReduceMax": _reduce(lambda value, axes, keep: torch.amax(value, dim=axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda value, axes, keep: torch.amin(value, dim=axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda value, axes, keep: torch.sqrt(_sum(value * value, axes, keep))),
    "ReduceL1": _reduce(lambda value, axes, keep: _sum(value.abs(), axes, keep)),
    "ReduceSumSquare": _reduce(lambda value, axes, keep: _sum(value * value, axes, keep)),
    "ArgMax": _arg_max,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
