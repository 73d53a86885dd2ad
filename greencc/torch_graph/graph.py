"""An ONNX graph that PyTorch differentiates: its nodes run one by one, its weights are `torch.nn.Parameter`s.

No export is needed to come back: the parameters carry the names of the graph's own constants (`parameters`). Q/DQ
pairs become fake quantization with a straight-through gradient inside the range and none outside (Jacob et al.,
CVPR 2018, arXiv 1712.05877, section 3; Krishnamoorthi, arXiv 1806.08342, section 3.2): QuantizeLinear rounds, and
what it hands on is the dequantized value, so the DequantizeLinear behind it passes it through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from greencc.core.data import Array, Feeds
from greencc.core.errors import InputError
from greencc.core.graph import constant_of, constant_tensor, input_at, is_op, opset_of
from greencc.torch_graph.node import Inputs, Node, Operator, Tensor, read_node
from greencc.torch_graph.ops_math import MATH
from greencc.torch_graph.ops_nn import NN
from greencc.torch_graph.ops_shape import SHAPE, to_tensor
from greencc.torch_graph.parameters import find_parameters
from greencc.torch_graph.quantized import Quantizer, quantizer_of

OPERATORS: Mapping[str, Operator] = {**MATH, **NN, **SHAPE}
_STRING = ir.DataType.STRING


def fake_quantize(value: Tensor, scale: Tensor, zero_point: Tensor, low: float, high: float) -> Tensor:
    """Round to the grid; the gradient is 1 inside the range and 0 outside."""
    inside = torch.minimum(torch.maximum(value, (low - zero_point) * scale), (high - zero_point) * scale)
    with torch.no_grad():
        steps = torch.clamp(torch.round(value / scale) + zero_point, low, high)
        rounded = (steps - zero_point) * scale
    return inside + (rounded - inside).detach()


@dataclass(frozen=True, eq=False)
class _Grid:
    """A quantizer as tensors."""

    scale: Tensor
    zero_point: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, quantizer: Quantizer) -> _Grid:
        scale, zero_point = (
            torch.from_numpy(np.array(item, np.float32)) for item in (quantizer.scale, quantizer.zero_point)
        )
        return cls(scale, zero_point, quantizer.low, quantizer.high)

    def __call__(self, value: Tensor) -> Tensor:
        return fake_quantize(value, self.scale, self.zero_point, self.low, self.high)


class TorchGraph:
    """The main graph of a model, ready to train.

    Args:
        model: Left unchanged.

    Raises:
        InputError: It has an operator, or a subgraph, that cannot be differentiated; the message names it.
    """

    def __init__(self, model: ir.Model) -> None:
        _refuse_unknown(model)
        opset = opset_of(model)
        found = find_parameters(model)
        self.parameters: dict[str, Tensor] = {
            name: torch.nn.Parameter(torch.from_numpy(parameter.start.copy()))
            for name, parameter in found.items()
        }
        self.inputs = [str(value.name) for value in model.graph.inputs]
        self.outputs = [str(value.name) for value in model.graph.outputs]
        self._rounding = {
            name: _Grid.of(parameter.quantizer)
            for name, parameter in found.items()
            if parameter.quantizer is not None and parameter.rounded
        }
        self._constants: dict[str, Tensor] = {}
        for name, value in model.graph.initializers.items():
            tensor = constant_tensor(value)
            if name not in found and tensor is not None and tensor.dtype is not _STRING:
                self._constants[name] = to_tensor(tensor.numpy())
        self._grids: dict[str, _Grid] = {}
        self._nodes: list[Node] = []
        for original in model.graph:
            self._add(original, read_node(original, opset))
        uses = Counter(name for node in self._nodes for name in node.inputs if name is not None)
        self._uses = uses

    def _add(self, original: ir.Node, node: Node) -> None:
        """Keep a node, or what it computes when that never changes."""
        if any(output in self.parameters for output in node.outputs):
            return
        if node.op_type == "DequantizeLinear" and node.inputs[0] not in self.parameters:
            quantizer = quantizer_of(original)
            if quantizer is not None:
                integers = constant_of(input_at(original, 0))
                assert integers is not None
                self._constants[node.outputs[0]] = torch.from_numpy(quantizer.dequantize(integers))
                return
        if node.op_type == "QuantizeLinear":
            self._grids[node.name] = _grid_of(original)
        elif node.op_type != "DequantizeLinear" and all(
            name is None or name in self._constants for name in node.inputs
        ):
            with torch.no_grad():
                results = self._call(node, [None if n is None else self._constants[n] for n in node.inputs])
            self._constants.update(zip(node.outputs, results, strict=False))
            return
        self._nodes.append(node)

    def run(
        self,
        feeds: Feeds,
        wanted: Sequence[str] = (),
        *,
        rounding: bool = True,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            feeds: Arrays by input name.
            wanted: Values to return; default the outputs.
            rounding: Whether Q/DQ pairs round.
            tensors: Inputs that are given as tensors, to be differentiated by.

        Raises:
            InputError: A node cannot compute what it is given.
        """
        wanted = wanted or self.outputs
        values: dict[str, Tensor] = {
            name: to_tensor(np.asarray(feeds[name])) for name in self.inputs if name in feeds
        } | dict(tensors or {})
        for name, parameter in self.parameters.items():
            grid = self._rounding.get(name) if rounding else None
            values[name] = parameter if grid is None else grid(parameter)
        left = Counter(self._uses)
        keep = {*wanted, *self.parameters}
        for node in self._nodes:
            inputs = [None if name is None else self._value(values, name) for name in node.inputs]
            if node.op_type == "DequantizeLinear":
                results: tuple[Tensor, ...] = (inputs[0],)
            elif node.op_type == "QuantizeLinear":
                results = (self._grids[node.name](inputs[0]) if rounding else inputs[0],)
            else:
                results = self._call(node, inputs)
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
            for used in node.inputs:
                if used is not None:
                    left[used] -= 1
                    if left[used] == 0 and used not in keep:
                        values.pop(used, None)
        return {name: self._value(values, name) for name in wanted}

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        found = values.get(name)
        return self._constants[name] if found is None else found

    def _call(self, node: Node, inputs: Inputs) -> tuple[Tensor, ...]:
        try:
            result = OPERATORS[node.op_type](node, inputs)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError(
                f"{node.op_type} {node.name!r} does not run in PyTorch: {reason}",
                hint="graphs whose batch is dynamic in name only train with --batch 1",
            ) from error
        return result if isinstance(result, tuple) else (result,)

    def arrays(self) -> dict[str, Array]:
        """The parameters as they are now."""
        return {name: value.detach().numpy().copy() for name, value in self.parameters.items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Set the parameters."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(torch.from_numpy(np.asarray(arrays[name], np.float32)))


def _grid_of(node: ir.Node) -> _Grid:
    """The grid of a QuantizeLinear."""
    scale, zero_point = constant_of(input_at(node, 1)), constant_of(input_at(node, 2))
    if scale is None:
        raise InputError(f"QuantizeLinear {node.name!r} has a computed scale, which cannot be differentiated")
    dtype = ir.DataType.UINT8 if zero_point is None else ir.DataType.from_numpy(zero_point.dtype)
    bits = dtype.bitwidth
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.is_signed() else (0.0, 2.0**bits - 1)
    wide = np.asarray(scale, np.float32)
    zeros = np.zeros_like(wide) if zero_point is None else np.asarray(zero_point, np.float32)
    if wide.size > 1:
        source = node.inputs[0]
        rank = len(source.shape) if source is not None and source.shape is not None else 1
        attribute = node.attributes.get("axis")
        axis = (1 if attribute is None else attribute.as_int()) % max(rank, 1)
        shape = [-1 if index == axis else 1 for index in range(rank)]
        wide, zeros = wide.reshape(shape), zeros.reshape(shape)
    else:
        wide, zeros = wide.reshape(()), zeros.reshape(())
    return _Grid(torch.from_numpy(np.array(wide)), torch.from_numpy(np.array(zeros)), low, high)


def _refuse_unknown(model: ir.Model) -> None:
    known = {*OPERATORS, "QuantizeLinear", "DequantizeLinear"}
    for node in model.graph:
        operator = read_node(node, 0).op_type
        if operator not in known:
            raise InputError(
                f"{operator} {node.name!r} is an operator that greencc cannot differentiate",
                hint="see docs/recover.md for those it can",
            )
        if node.op_type == "BatchNormalization" and is_op(node, "BatchNormalization"):
            mode = node.attributes.get("training_mode")
            if mode is not None and mode.as_int():
                raise InputError(
                    f"BatchNormalization {node.name!r} is in training mode", hint="export for inference"
                )
