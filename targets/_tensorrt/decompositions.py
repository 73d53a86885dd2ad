"""Operators that a TensorRT version's parser has not, as those it has.

Fused operators of ONNX Runtime (domain com.microsoft), and standard ones newer than the parser or than the opset that
is written for it. GELU written out is no loss: the builder recognises the erf and the tanh form (NVIDIA TensorRT
documentation, "Types of Fusions"). Sources: `operators`; ONNX Runtime, "Contrib Operators".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, graphs_of, opset_of
from greencc.core.model import infer_shapes
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets._tensorrt.operators import SINCE
from greencc.targets._tensorrt.site import Site, domain_of
from greencc.targets._tensorrt.surgery import operate

_MICROSOFT = "com.microsoft"


def decompose(model: ir.Model, machine: TensorRtMachine) -> None:
    """Replace what the machine's parser has not, in place; shapes are inferred anew.

    Args:
        model: With shapes and types inferred, of opset 13 or newer; without functions.
        machine: Decides what is native.

    Raises:
        InputError: An operator has no such form.
    """
    opset = opset_of(model)
    rules = {key: rule for key, rule in _RULES.items() if key[0] or not _reads(key[1], machine)}
    nodes = [node for graph in graphs_of(model) for node in graph]
    if any(("" if node.domain in ONNX_DOMAINS else node.domain, node.op_type) in rules for node in nodes):
        layer_norm = opset >= 17 and _reads("LayerNormalization", machine)
        operate(model, lambda graph: _apply(graph, rules, opset, layer_norm=layer_norm))
        infer_shapes(model)


def _reads(op_type: str, machine: TensorRtMachine) -> bool:
    """True for a standard operator that the parser has, in a form that ONNX has at the opset written for it."""
    known = op_type in SINCE and (machine.rtx or SINCE[op_type] <= machine.version)
    if not known or not onnx.defs.has(op_type, machine.max_opset, ""):
        return False
    # GroupNormalization of 18 was withdrawn for that of 21.
    return not onnx.defs.get_schema(op_type, machine.max_opset, "").deprecated


def _apply(graph: Any, rules: Mapping[tuple[str, str], Rule], opset: int, *, layer_norm: bool) -> None:
    for part in (graph, *graph.subgraphs(recursive=True)):
        for node in list(part.nodes):
            rule = rules.get((domain_of(node), node.op))
            if rule is not None:
                rule(Site(part, node, opset, layer_norm=layer_norm))
                part.nodes.remove(node)


Rule = Callable[[Site], None]


def _gelu(site: Site) -> None:
    tanh = site.attribute("approximate", "none") == "tanh"
    site.give(site.tanh_gelu(site.x) if tanh else site.gelu(site.x))


def _fast_gelu(site: Site) -> None:
    bias = site.input(1)
    x = site.x if bias is None else site.op("Add", site.x, bias, like=site.x)
    site.give(site.tanh_gelu(x))


def _bias_gelu(site: Site) -> None:
    site.give(site.gelu(site.op("Add", site.x, site.input(1), like=site.x)))


def _quick_gelu(site: Site) -> None:
    x = site.x
    gate = site.op("Sigmoid", site.op("Mul", x, site.scalar(site.attribute("alpha", 1.702)), like=x), like=x)
    site.give(site.op("Mul", x, gate, like=x))


def _hard_swish(site: Site) -> None:
    x = site.x
    gate = site.op("HardSigmoid", x, like=x, alpha=1.0 / 6.0, beta=0.5)
    site.give(site.op("Mul", x, gate, like=x))


def _mish(site: Site) -> None:
    x = site.x
    site.give(site.op("Mul", x, site.op("Tanh", site.op("Softplus", x, like=x), like=x), like=x))


def _swish(site: Site) -> None:
    x = site.x
    scaled = site.op("Mul", x, site.scalar(site.attribute("alpha", 1.0)), like=x)
    site.give(site.op("Mul", x, site.op("Sigmoid", scaled, like=x), like=x))


def _cast_like(site: Site) -> None:
    dtype = site.node.inputs[1].dtype
    if dtype is None:
        raise site.refused("casts to an unknown type")
    kind = dtype if isinstance(dtype, int) else ir.DataType.from_numpy(np.dtype(dtype)).value
    site.give(site.op("Cast", site.x, to=int(kind)))


def _layer_norm(site: Site) -> None:
    if not site.unread(1) or not site.unread(2):
        raise site.refused("gives its mean or deviation")
    epsilon, axis = site.attribute("epsilon", 1e-5), site.attribute("axis", -1)
    site.give(site.layer_norm(site.x, site.input(1), site.input(2), epsilon, axis))


def _rms_norm(site: Site) -> None:
    if not site.unread(1):
        raise site.refused("gives its deviation")
    site.give(
        site.rms_norm(site.x, site.input(1), site.attribute("epsilon", 1e-5), site.attribute("axis", -1))
    )


def _skip(site: Site, bias: int) -> Any:
    """The sum that a Skip... operator normalizes, which may be an output of its own."""
    if not site.unread(1) or not site.unread(2):
        raise site.refused("gives its mean or deviation")
    total = site.op("Add", site.x, site.input(1), like=site.x)
    if site.input(bias) is not None:
        total = site.op("Add", total, site.input(bias), like=site.x)
    return total


def _skip_layer_norm(site: Site) -> None:
    total = _skip(site, 4)
    normal = site.layer_norm(total, site.input(2), site.input(3), site.attribute("epsilon", 1e-12))
    _give_both(site, normal, total)


def _skip_rms_norm(site: Site) -> None:
    total = _skip(site, 3)
    _give_both(site, site.rms_norm(total, site.input(2), site.attribute("epsilon", 1e-12)), total)


def _give_both(site: Site, normal: Any, total: Any) -> None:
    if not site.unread(3):
        # Somebody reads the sum: it takes the output's place everywhere.
        output = site.node.outputs[3]
        site.node.outputs = site.node.outputs[:3]
        total.inputs[0].outputs = [output]
        for node in site.graph.nodes:
            node.inputs = [output if each is total else each for each in node.inputs]
    site.give(normal)


def _group_norm(site: Site) -> None:
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


def _full(site: Site, index: int) -> Any:
    return site.wide(site.input(index))[0]


def _activated(site: Site, x: Any, parameters: list[float]) -> Any:
    kind = site.attribute("activation", "")
    match kind:
        case "":
            return x
        case "Relu" | "Sigmoid" | "Tanh":
            return site.op(kind, x)
        case "LeakyRelu":
            return site.op(kind, x, alpha=parameters[0] if parameters else 0.01)
        case "Clip":
            low, high = [*parameters, 0.0, 0.0][:2]
            return site.op(kind, x, site.scalar(low), site.scalar(high))
        case "HardSigmoid":
            alpha, beta = parameters if len(parameters) == 2 else (0.2, 0.5)
            return site.op(kind, x, alpha=alpha, beta=beta)
    raise site.refused(f"ends in {kind!r}")


def _fused_conv(site: Site) -> None:
    own = {key: value for key, value in site.node.attrs.items() if not key.startswith("activation")}
    y = site.op("Conv", site.x, site.input(1), *([site.input(2)] if site.input(2) is not None else []), **own)
    if site.input(3) is not None:
        y = site.op("Add", y, site.input(3))
    site.give(_activated(site, y, list(site.attribute("activation_params", []))))


def _fused_gemm(site: Site) -> None:
    own = {key: value for key, value in site.node.attrs.items() if not key.startswith("activation")}
    y = site.op("Gemm", *(site.input(index) for index in range(3) if site.input(index) is not None), **own)
    names = ("activation_alpha", "activation_beta")
    site.give(_activated(site, y, [site.attribute(name, 0.0) for name in names if name in site.node.attrs]))


def _fused_matmul(site: Site) -> None:
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
