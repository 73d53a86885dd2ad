"""Which constants of a graph are trained, and how trained values go back into it under the same names.

Weights and biases of Conv, ConvTranspose, Gemm, MatMul and the normalisations are trained, the slopes of PRelu, and
what is added right after a product. Everything else (tables of embeddings, statistics of BatchNormalization,
bounds, shapes) stays. A constant that several nodes read is one parameter. Behind DequantizeLinear the parameter is
the float weight that the integers stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import constant_tensor, input_at, is_op
from greencc.torch_graph.quantized import Quantizer, quantizer_of

Float32 = NDArray[np.float32]

_ROLES: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constant that is trained.

    Attributes:
        value: What holds it: an initializer, or the output of a Constant node.
        start: float32, its value before training.
        quantizer: How it is stored as integers, or None.
    """

    value: ir.Value
    start: Float32
    quantizer: Quantizer | None

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def rounded(self) -> bool:
        """Whether training sees it rounded; the 32 bits of a bias lose nothing."""
        return self.quantizer is not None and self.quantizer.dtype.bitwidth <= 16

    def stored(self, trained: Float32) -> ir.TensorProtocol:
        """The tensor to store."""
        old = constant_tensor(self.value)
        assert old is not None
        if self.quantizer is not None:
            return ir.tensor(self.quantizer.quantize(trained), dtype=old.dtype, name=self.name)
        return ir.tensor(trained.astype(old.dtype.numpy()), dtype=old.dtype, name=self.name)


def find_parameters(model: ir.Model) -> dict[str, Parameter]:
    """The trained constants of the main graph by name, in graph order."""
    found: dict[str, Parameter] = {}
    for node in model.graph:
        for value in _weights(node):
            parameter = _parameter(value)
            if parameter is not None:
                found.setdefault(parameter.name, parameter)
    return found


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node that hold what it learned."""
    if is_op(node, "Add"):
        for value, other in (node.inputs, node.inputs[::-1]):
            if value is not None and _product(other):
                yield value
        return
    for index in _ROLES.get(node.op_type, ()) if is_op(node, node.op_type) else ():
        value = input_at(node, index)
        if value is not None:
            yield value


def _product(value: ir.Value | None) -> bool:
    """Whether a weighted node computes the value, Q/DQ pairs aside."""
    node = None if value is None else value.producer()
    while is_op(node, "QuantizeLinear", "DequantizeLinear"):
        assert node is not None
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return is_op(node, *_PRODUCTS)


def _parameter(value: ir.Value) -> Parameter | None:
    """The parameter behind an input, or None when it is no constant of floats."""
    producer = value.producer()
    quantizer: Quantizer | None = None
    if producer is not None and is_op(producer, "DequantizeLinear"):
        quantizer = quantizer_of(producer)
        source = producer.inputs[0]
        if quantizer is None or source is None:
            return None
        value = source
    holder = _holder(value)
    tensor = constant_tensor(holder)
    if holder is None or tensor is None:
        return None
    if quantizer is not None:
        return Parameter(holder, quantizer.dequantize(tensor.numpy()), quantizer)
    if tensor.dtype not in _FLOATS:
        return None
    return Parameter(holder, np.array(tensor.numpy(), np.float32), None)


def _holder(value: ir.Value) -> ir.Value | None:
    """The value that holds a constant, behind any Identity."""
    current: ir.Value | None = value
    while current is not None and current.const_value is None and is_op(current.producer(), "Identity"):
        producer = current.producer()
        assert producer is not None
        current = producer.inputs[0]
    return current


def write_back(model: ir.Model, trained: Mapping[str, Float32]) -> None:
    """Give the trained constants of a model their new values, each a new tensor under the old name.

    Raises:
        KeyError: A name is none of a trained constant.
        ValueError: A shape differs.
    """
    parameters = find_parameters(model)
    for name, values in trained.items():
        parameter = parameters[name]
        if values.shape != parameter.start.shape:
            raise ValueError(f"{name} has shape {parameter.start.shape}, not {values.shape}")
        _store(parameter.value, parameter.stored(values))


def _store(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    producer = value.producer()
    if producer is None:
        value.const_value = tensor
        return
    attributes = [ir.AttrTensor("value", tensor)]
    constant = ir.Node("", "Constant", [], attributes, num_outputs=1, name=producer.name)
    graph = producer.graph
    assert graph is not None
    graph.insert_before(producer, constant)
    output = constant.outputs[0]
    name = value.name
    ir.convenience.replace_all_uses_with(value, output)
    graph.remove(producer, safe=True)
    output.name, output.const_value = name, tensor
    output.type, output.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
