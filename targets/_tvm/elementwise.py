"""Operators that do not care where the channels are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import ONNX_DOMAINS, attribute_int

_UNARY = frozenset(
    {
        "Abs",
        "Cast",
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Neg",
        "Reciprocal",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "ThresholdedRelu",
    }
)
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})
_PAIRS = frozenset({"DequantizeLinear", "QuantizeLinear"})


def image_attributes(node: ir.Node) -> Mapping[str, int] | None:
    """Attributes that change when the operator runs on NHWC values; None when it cannot."""
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type in _UNARY or node.op_type in _BINARY:
        return {}
    if node.op_type in _PAIRS and not attribute_int(node, "block_size", 0):
        return {"axis": _moved(attribute_int(node, "axis", 1))}
    if node.op_type == "Concat":
        return {"axis": _moved(attribute_int(node, "axis", 1))}
    return None


def image_operand(node: ir.Node, array: Array) -> Array | None:
    """A constant operand as an operator on NHWC values reads it; None where that is not known."""
    if node.op_type in _BINARY and array.size > 1:
        if array.ndim > 4:
            return None
        return np.ascontiguousarray(
            array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(0, 2, 3, 1)
        )
    if node.op_type == "Concat":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else None
    return array


def _moved(axis: int) -> int:
    """Where an axis of NCHW is in NHWC."""
    return {0: 0, 1: 3, 2: 1, 3: 2}[axis % 4]
