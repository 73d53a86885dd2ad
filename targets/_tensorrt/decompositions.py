"""Operators that a TensorRT version's parser has not, as those it has.

Fused operators of ONNX Runtime (domain com.microsoft), and standard ones newer than the parser. GELU is always written
out: the builder recognises the erf and the tanh form ("GELU" among its fusions), and the parser of no version before 10
has the operator. Sources: onnx-tensorrt, "Supported ONNX Operators" and changelog (LayerNormalization and
GroupNormalization since 8.6); ONNX Runtime, "Contrib Operators".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.errors import InputError
from greencc.core.graph import ONNX_DOMAINS, graphs_of, opset_of
from greencc.core.model import infer_shapes
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion
from greencc.targets._tensorrt.surgery import operate

_LAYER_NORM = TensorRtVersion(8, 6)
_HARD_SWISH = TensorRtVersion(10, 0)
_AXES_ARE_INPUTS = 18
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Native:
    """What the parser has itself.

    Attributes:
        layer_norm: LayerNormalization (opset 17).
        group_norm: GroupNormalization with a scale per group (opset 18 to 20).
        hard_swish: HardSwish (opset 14).
    """

    layer_norm: bool
    group_norm: bool
    hard_swish: bool

    @classmethod
    def of(cls, machine: TensorRtMachine) -> Native:
        """Of a machine, at the opset that is written for it."""
        newer = machine.rtx or machine.version >= _LAYER_NORM
        return cls(
            layer_norm=newer and machine.max_opset >= 17,
            group_norm=newer and machine.max_opset >= 18,
            hard_swish=machine.rtx or machine.version >= _HARD_SWISH,
        )


def decompose(model: ir.Model, machine: TensorRtMachine) -> None:
    """Replace what the machine's parser has not, in place; shapes are inferred anew.

    Args:
        model: With shapes and types inferred, of opset 13 or newer; without functions.
        machine: Decides what is native.

    Raises:
        InputError: An operator has no such form.
    """
    native, opset = Native.of(machine), opset_of(model)
    rules = {key: rule for key, rule in _RULES.items() if not _keeps(key, native, opset)}
    nodes = [node for graph in graphs_of(model) for node in graph]
    if any((_domain(node.domain), node.op_type) in rules for node in nodes):
        operate(model, lambda graph: _apply(graph, rules, native, opset))
        used = {node.domain for graph in graphs_of(model) for node in graph}
        for domain in [domain for domain in model.opset_imports if domain not in used | ONNX_DOMAINS]:
            del model.opset_imports[domain]
        infer_shapes(model)


def _domain(domain: str | None) -> str:
    return "" if domain in (None, *ONNX_DOMAINS) else str(domain)


def _keeps(key: tuple[str, str], native: Native, opset: int) -> bool:
    match key:
        case ("", "LayerNormalization"):
            return native.layer_norm
        case ("", "GroupNormalization"):
            return native.group_norm and opset < 21
        case ("", "HardSwish"):
            return native.hard_swish
    return False


def _apply(graph: Any, rules: Mapping[tuple[str, str], Rule], native: Native, opset: int) -> None:
    for part in (graph, *graph.subgraphs(recursive=True)):
        for node in list(part.nodes):
            rule = rules.get((_domain(node.domain), node.op))
            if rule is not None:
                rule(_Site(part, node, native, opset))
                part.nodes.remove(node)


class _Site:
    """A node under replacement: small operators are added around it, its result given to them."""

    def __init__(self, graph: Any, node: Any, native: Native, opset: int) -> None:
        self.graph = graph
        self.node = node
        self.native = native
        self.opset = opset
        self._count = 0
        # The name space of an exported subgraph is that of the whole model.
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
        self.graph.nodes.append(
            gs.Node(kind, name=name, attrs=attributes, inputs=operands, outputs=[result])
        )
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
        kind = self.node.op if _domain(self.node.domain) == "" else f"{self.node.domain}::{self.node.op}"
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
        """A tensor as float32, in which squares are summed, and whether that took a Cast."""
        if x.dtype in (None, np.dtype(np.float32), np.float32, np.dtype(np.float64), np.float64):
            return x, False
        return self.op("Cast", x, to=ir.DataType.FLOAT.value), True

    def narrow(self, x: Any, like: Any) -> Any:
        """The way back from `wide`."""
        kind = like.dtype if isinstance(like.dtype, int) else ir.DataType.from_numpy(np.dtype(like.dtype)).value
        return self.op("Cast", x, to=int(kind), like=like)

    def layer_norm(self, x: Any, scale: Any, bias: Any, epsilon: float, axis: int = -1) -> Any:
        if self.native.layer_norm and self.opset >= 17:
            return self.op("LayerNormalization", x, scale, bias, like=x, axis=axis, epsilon=epsilon)
        axes = self._from(x, axis)
        full, cast = self.wide(x)
        centred = self.op("Sub", full, self.mean(full, axes))
        normal = self._normalized(centred, axes, epsilon)
        normal = self.narrow(normal, x) if cast else normal
        scaled = self.op("Mul", normal, scale, like=x)
        return scaled if bias is None else self.op("Add", scaled, bias, like=x)

    def rms_norm(self, x: Any, scale: Any, epsilon: float, axis: int = -1) -> Any:
        full, cast = self.wide(x)
        normal = self._normalized(full, self._from(x, axis), epsilon)
        return self.op("Mul", self.narrow(normal, x) if cast else normal, scale, like=x)

    def _normalized(self, x: Any, axes: list[int], epsilon: float) -> Any:
        square = self.mean(self.op("Mul", x, x), axes)
        spread = self.op("Sqrt", self.op("Add", square, self.constant(epsilon, _wide_type(x.dtype))))
        return self.op("Div", x, spread)

    def _from(self, x: Any, axis: int) -> list[int]:
        rank = self.rank(x)
        return list(range(axis if axis < 0 else axis - rank, 0))


def _wide_type(dtype: Any) -> Any:
    return np.float64 if dtype in (np.float64, np.dtype(np.float64)) else np.float32


Rule = Callable[[_Site], None]


def _gelu(site: _Site) -> None:
    tanh = site.attribute("approximate", "none") == "tanh"
    site.give(site.tanh_gelu(site.x) if tanh else site.gelu(site.x))


def _fast_gelu(site: _Site) -> None:
    bias = site.input(1)
    x = site.x if bias is None else site.op("Add", site.x, bias, like=site.x)
    site.give(site.tanh_gelu(x))


def _bias_gelu(site: _Site) -> None:
    site.give(site.gelu(site.op("Add", site.x, site.input(1), like=site.x)))


def _quick_gelu(site: _Site) -> None:
    x = site.x
    gate = site.op("Sigmoid", site.op("Mul", x, site.scalar(site.attribute("alpha", 1.702)), like=x), like=x)
    site.give(site.op("Mul", x, gate, like=x))


def _hard_swish(site: _Site) -> None:
    x = site.x
    gate = site.op("HardSigmoid", x, like=x, alpha=1.0 / 6.0, beta=0.5)
    site.give(site.op("Mul", x, gate, like=x))


def _mish(site: _Site) -> None:
    x = site.x
    site.give(site.op("Mul", x, site.op("Tanh", site.op("Softplus", x, like=x), like=x), like=x))


def _swish(site: _Site) -> None:
    x = site.x
    scaled = site.op("Mul", x, site.scalar(site.attribute("alpha", 1.0)), like=x)
    site.give(site.op("Mul", x, site.op("Sigmoid", scaled, like=x), like=x))


def _cast_like(site: _Site) -> None:
    dtype = site.node.inputs[1].dtype
    if dtype is None:
        raise site.refused("casts to an unknown type")
    kind = dtype if isinstance(dtype, int) else ir.DataType.from_numpy(np.dtype(dtype)).value
    site.give(site.op("Cast", site.x, to=int(kind)))


def _layer_norm(site: _Site) -> None:
    if not site.unread(1) or not site.unread(2):
        raise site.refused("gives its mean or deviation")
    epsilon, axis = site.attribute("epsilon", 1e-5), site.attribute("axis", -1)
    site.give(site.layer_norm(site.x, site.input(1), site.input(2), epsilon, axis))


def _rms_norm(site: _Site) -> None:
    if not site.unread(1):
        raise site.refused("gives its deviation")
    site.give(site.rms_norm(site.x, site.input(1), site.attribute("epsilon", 1e-5), site.attribute("axis", -1)))


def _skip(site: _Site, bias: int) -> Any:
    """The sum that a Skip... operator normalizes, which may be an output of its own."""
    if not site.unread(1) or not site.unread(2):
        raise site.refused("gives its mean or deviation")
    total = site.op("Add", site.x, site.input(1), like=site.x)
    if site.input(bias) is not None:
        total = site.op("Add", total, site.input(bias), like=site.x)
    return total


def _skip_layer_norm(site: _Site) -> None:
    total = _skip(site, 4)
    normal = site.layer_norm(total, site.input(2), site.input(3), site.attribute("epsilon", 1e-12))
    _give_both(site, normal, total)


def _skip_rms_norm(site: _Site) -> None:
    total = _skip(site, 3)
    _give_both(site, site.rms_norm(total, site.input(2), site.attribute("epsilon", 1e-12)), total)


def _give_both(site: _Site, normal: Any, total: Any) -> None:
    if not site.unread(3):
        # Somebody reads the sum: it takes the output's place everywhere.
        output = site.node.outputs[3]
        site.node.outputs = site.node.outputs[:3]
        total.inputs[0].outputs = [output]
        for node in site.graph.nodes:
            node.inputs = [output if each is total else each for each in node.inputs]
    site.give(normal)


def _group_norm(site: _Site) -> None:
    """As InstanceNormalization of (N, groups, the rest); the scales are per group before opset 21, then per channel."""
    x, groups = site.x, int(site.attribute("num_groups", 1))
    rank = site.rank(x)
    full, cast = site.wide(x)
    flat = site.op("Reshape", full, site.constant([0, groups, -1]))
    ones, zeros = site.constant([1.0] * groups, np.float32), site.constant([0.0] * groups, np.float32)
    normal = site.op("InstanceNormalization", flat, ones, zeros, epsilon=site.attribute("epsilon", 1e-5))
    if site.opset < 21:
        # A group's scale is that of all its channels.
        column = site.constant([groups, 1])
        normal = site.op("Mul", normal, site.op("Reshape", _full(site, 1), column))
        normal = site.op("Add", normal, site.op("Reshape", _full(site, 2), column))
        whole = site.op("Reshape", normal, site.op("Shape", x))
    else:
        column = site.constant([-1] + [1] * (rank - 2))
        whole = site.op("Reshape", normal, site.op("Shape", x))
        whole = site.op("Mul", whole, site.op("Reshape", _full(site, 1), column))
        whole = site.op("Add", whole, site.op("Reshape", _full(site, 2), column))
    site.give(site.narrow(whole, x) if cast else whole)


def _full(site: _Site, index: int) -> Any:
    return site.wide(site.input(index))[0]


def _activated(site: _Site, x: Any, parameters: list[float]) -> Any:
    kind = site.attribute("activation", "")
    match kind:
        case "":
            return x
        case "Relu" | "Sigmoid" | "Tanh":
            return site.op(kind, x)
        case "LeakyRelu":
            return site.op(kind, x, alpha=parameters[0] if parameters else 0.01)
        case "Clip":
            low, high = (parameters + [0.0, 0.0])[:2]
            return site.op(kind, x, site.scalar(low), site.scalar(high))
        case "HardSigmoid":
            alpha, beta = parameters if len(parameters) == 2 else (0.2, 0.5)
            return site.op(kind, x, alpha=alpha, beta=beta)
    raise site.refused(f"ends in {kind!r}")


def _fused_conv(site: _Site) -> None:
    own = {key: value for key, value in site.node.attrs.items() if not key.startswith("activation")}
    y = site.op("Conv", site.x, site.input(1), *([site.input(2)] if site.input(2) is not None else []), **own)
    if site.input(3) is not None:
        y = site.op("Add", y, site.input(3))
    site.give(_activated(site, y, list(site.attribute("activation_params", []))))


def _fused_gemm(site: _Site) -> None:
    own = {key: value for key, value in site.node.attrs.items() if not key.startswith("activation")}
    y = site.op("Gemm", *(site.input(index) for index in range(3) if site.input(index) is not None), **own)
    names = ("activation_alpha", "activation_beta")
    site.give(_activated(site, y, [site.attribute(name, 0.0) for name in names if name in site.node.attrs]))


def _fused_matmul(site: _Site) -> None:
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        raise site.refused("transposes its batch")
    operands = []
    for index, name in ((0, "transA"), (1, "transB")):
        operand = site.input(index)
        rank = site.rank(operand)
        if site.attribute(name, 0) and rank > 1:
            operand = site.op("Transpose", operand, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(operand)
    y = site.op("MatMul", *operands)
    alpha = site.attribute("alpha", 1.0)
    site.give(y if alpha == 1.0 else site.op("Mul", y, site.scalar(alpha)))


_RULES: dict[tuple[str, str], Rule] = {
    ("", "CastLike"): _cast_like,
    ("", "Gelu"): _gelu,
    ("", "GroupNormalization"): _group_norm,
    ("", "HardSwish"): _hard_swish,
    ("", "LayerNormalization"): _layer_norm,
    ("", "Mish"): _mish,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("", "Swish"): _swish,
    (_MICROSOFT, "BiasGelu"): _bias_gelu,
    (_MICROSOFT, "FastGelu"): _fast_gelu,
    (_MICROSOFT, "FusedConv"): _fused_conv,
    (_MICROSOFT, "FusedGemm"): _fused_gemm,
    (_MICROSOFT, "FusedMatMul"): _fused_matmul,
    (_MICROSOFT, "Gelu"): _gelu,
    (_MICROSOFT, "QuickGelu"): _quick_gelu,
    (_MICROSOFT, "SimplifiedLayerNormalization"): _rms_norm,
    (_MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
}
