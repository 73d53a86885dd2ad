"""A node under replacement: the operators that its decomposition is written in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.errors import InputError
from greencc.core.graph import ONNX_DOMAINS

_AXES_ARE_INPUTS = 18


def domain_of(node: Any) -> str:
    """The domain of a node of onnx-graphsurgeon, "" for ONNX's own."""
    return "" if node.domain in (None, *ONNX_DOMAINS) else str(node.domain)


class Site:
    """Adds nodes to a graph and lets the last one give what the node under replacement gave.

    Args:
        graph: The `onnx_graphsurgeon.Graph` that holds the node.
        node: What is replaced; the caller removes it.
        opset: Of the default domain.
        layer_norm: LayerNormalization may be written.
    """

    def __init__(self, graph: Any, node: Any, opset: int, *, layer_norm: bool) -> None:
        self.graph = graph
        self.node = node
        self.opset = opset
        self._layer_norm = layer_norm
        self._count = 0
        self._base = node.name

    @property
    def x(self) -> Any:
        return self.node.inputs[0]

    def input(self, index: int) -> Any:
        """An input, None where it is absent."""
        if index >= len(self.node.inputs) or self.node.inputs[index].is_empty():
            return None
        return self.node.inputs[index]

    def attribute(self, name: str, default: Any) -> Any:
        return self.node.attrs.get(name, default)

    def op(self, kind: str, *inputs: Any, like: Any = None, **attributes: Any) -> Any:
        """The result of a new node; `like`: of the type and shape of this tensor."""
        import onnx_graphsurgeon as gs

        self._count += 1
        name = f"{self._base}/{kind}_{self._count}"
        result = gs.Variable(
            f"{name}_output",
            dtype=None if like is None else like.dtype,
            shape=None if like is None else like.shape,
        )
        absent = gs.Variable.empty()
        operands = [absent if value is None else value for value in inputs]
        self.graph.nodes.append(gs.Node(kind, name=name, attrs=attributes, inputs=operands, outputs=[result]))
        return result

    def give(self, result: Any, index: int = 0) -> None:
        """Let a new node's result be the node's output."""
        output = self.node.outputs[index]
        producer = result.inputs[0] if result.inputs else None
        self.node.outputs = [each for each in self.node.outputs if each is not output]
        if producer is None or producer is self.node:
            self.node.outputs = [each for each in self.node.outputs if each is not output]
            producer = self.op("Identity", result).inputs[0]
        producer.outputs = [output]

    def constant(self, values: Any, dtype: Any = np.int64) -> Any:
        import onnx_graphsurgeon as gs

        self._count += 1
        return gs.Constant(f"{self._base}/constant_{self._count}", np.asarray(values, dtype))

    def scalar(self, value: float) -> Any:
        """A number of the type of the first input."""
        dtype = self.x.dtype
        if isinstance(dtype, int):
            # BF16 has no NumPy type of its own here; the Cast is folded.
            return self.op("Cast", self.constant(value, np.float32), to=dtype)
        return self.constant(value, np.float32 if dtype is None else dtype)

    def rank(self, tensor: Any) -> int:
        if tensor.shape is None:
            raise self.refused(f"reads {tensor.name!r} of unknown rank")
        return len(tensor.shape)

    def unread(self, index: int) -> bool:
        """True where an output is absent or nobody reads it."""
        if index >= len(self.node.outputs):
            return True
        output = self.node.outputs[index]
        return output.is_empty() or not (output.outputs or any(output is each for each in self.graph.outputs))

    def refused(self, why: str) -> InputError:
        kind = self.node.op if domain_of(self.node) == "" else f"{self.node.domain}::{self.node.op}"
        return InputError(
            f"{self.node.name!r} ({kind}) {why}, which has no form for this TensorRT",
            hint="export the model without it, or start from the model before ONNX Runtime optimised it",
        )

    def mean(self, x: Any, axes: list[int]) -> Any:
        if self.opset >= _AXES_ARE_INPUTS:
            return self.op("ReduceMean", x, self.constant(axes), keepdims=1)
        return self.op("ReduceMean", x, axes=axes, keepdims=1)

    def gelu(self, x: Any) -> Any:
        erf = self.op("Erf", self.op("Div", x, self.scalar(math.sqrt(2)), like=x), like=x)
        return self.op(
            "Mul",
            self.op("Mul", x, self.op("Add", erf, self.scalar(1.0), like=x), like=x),
            self.scalar(0.5),
            like=x,
        )

    def tanh_gelu(self, x: Any) -> Any:
        cube = self.op("Mul", self.op("Mul", x, x, like=x), x, like=x)
        inner = self.op("Add", x, self.op("Mul", cube, self.scalar(0.044715), like=x), like=x)
        tanh = self.op("Tanh", self.op("Mul", inner, self.scalar(math.sqrt(2 / math.pi)), like=x), like=x)
        return self.op(
            "Mul",
            self.op("Mul", x, self.op("Add", tanh, self.scalar(1.0), like=x), like=x),
            self.scalar(0.5),
            like=x,
        )

    def wide(self, x: Any) -> tuple[Any, bool]:
        """A tensor in which squares can be summed: itself, or a half as float32; and whether that took a Cast."""
        if x.dtype is None or not (isinstance(x.dtype, int) or np.dtype(x.dtype) == np.float16):
            return x, False
        return self.op("Cast", x, to=ir.DataType.FLOAT.value), True

    def narrow(self, x: Any, like: Any) -> Any:
        """The way back from `wide`."""
        kind = (
            like.dtype if isinstance(like.dtype, int) else ir.DataType.from_numpy(np.dtype(like.dtype)).value
        )
        return self.op("Cast", x, to=int(kind), like=like)

    def layer_norm(self, x: Any, scale: Any, bias: Any, epsilon: float, axis: int = -1) -> Any:
        if self._layer_norm:
            return self.op("LayerNormalization", x, scale, bias, like=x, axis=axis, epsilon=epsilon)
        axes = self._from(x, axis)
        full, cast = self.wide(x)
        centred = self.op("Sub", full, self.mean(full, axes))
        normal = self._normalized(centred, axes, epsilon, self._wide_type(x))
        normal = self.narrow(normal, x) if cast else normal
        scaled = self.op("Mul", normal, scale, like=x)
        return scaled if bias is None else self.op("Add", scaled, bias, like=x)

    def rms_norm(self, x: Any, scale: Any, epsilon: float, axis: int = -1) -> Any:
        full, cast = self.wide(x)
        normal = self._normalized(full, self._from(x, axis), epsilon, self._wide_type(x))
        return self.op("Mul", self.narrow(normal, x) if cast else normal, scale, like=x)

    def _normalized(self, x: Any, axes: list[int], epsilon: float, dtype: Any) -> Any:
        square = self.mean(self.op("Mul", x, x), axes)
        spread = self.op("Sqrt", self.op("Add", square, self.constant(epsilon, dtype)))
        return self.op("Div", x, spread)

    def _wide_type(self, x: Any) -> Any:
        """What `wide` gives of a tensor."""
        return np.float64 if x.dtype is not None and x.dtype == np.float64 else np.float32

    def _from(self, x: Any, axis: int) -> list[int]:
        rank = self.rank(x)
        return list(range(axis if axis < 0 else axis - rank, 0))

