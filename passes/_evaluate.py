"""Computes one node whose inputs are all constant, with ONNX's reference implementation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from greencc.core.graph import ONNX_DOMAINS, constant_of, constant_tensor, subgraphs_of
from greencc.passes._rewriter import Scope

RANDOM_OPS = frozenset(
    {"RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike", "Multinomial", "Bernoulli"}
)
# Integer weights behind these are the point of a quantized model: folding would make them floats again.
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_PLAIN = frozenset("biuf")


def is_random(node: ir.Node) -> bool:
    """Whether a standard operator may compute something else each time: random ones, and Dropout in training."""
    if node.op_type != "Dropout":
        return node.op_type in RANDOM_OPS
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = constant_of(node.inputs[2])
    return training is None or bool(np.any(training))


def is_foldable(node: ir.Node) -> bool:
    """Whether a node is a deterministic standard operator whose inputs are all constant."""
    if node.domain not in ONNX_DOMAINS or node.op_type in RANDOM_OPS or node.op_type in _QUANTIZATION:
        return False
    if node.op_type == "Constant" or not node.outputs or subgraphs_of(node):
        return False
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2:
        return False
    present = [value for value in node.inputs if value is not None]
    if not present:
        return False
    return all(constant_tensor(value) is not None for value in present)


def evaluate(node: ir.Node, scope: Scope) -> list[NDArray[Any]] | str:
    """The outputs of a foldable node, or why they cannot be computed."""
    feeds: dict[str, NDArray[Any]] = {}
    names: list[str] = []
    for index, value in enumerate(node.inputs):
        array = constant_of(value)
        names.append("" if array is None else f"i{index}")
        if array is not None:
            if array.dtype.kind not in _PLAIN:
                return f"has a constant of type {array.dtype}"
            feeds[f"i{index}"] = array
    copy = ir.to_proto(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(names)
    copy.output.extend(f"o{index}" for index in range(len(node.outputs)))
    empty = onnx.TypeProto()
    graph = onnx.helper.make_graph(
        [copy],
        "constant",
        [onnx.helper.make_value_info(name, empty) for name in names if name],
        [onnx.helper.make_value_info(name, empty) for name in copy.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", scope.opset())])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # noqa: BLE001 - the reference raises anything for what it does not implement
        return f"cannot be computed ahead of time: {error}"
    arrays = [np.asarray(result) for result in results]
    if any(array.dtype.kind not in _PLAIN for array in arrays):
        return "computes something that is not a plain tensor"
    return arrays
