"""The ONNX file that a TensorRT version builds the best engine from, of the compiler's float or QDQ graph.

What passes decide by the target's capabilities stays as it is: where pairs are, which scales they have. What is left
to emission is how that TensorRT wants it written:

1. operators of its parser alone (`decompositions`, `stored`), at an opset it reads (`older`, `core.opsets`);
2. signed symmetric pairs with their zero points spelled out, weights per output channel, float biases (`pairs`);
3. precision where that TensorRT looks for it: with weak typing float32 and builder flags (`floats`, `flags`), with
   strong typing in the graph's own types (`halves`).
"""

from __future__ import annotations

import json

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from greencc.core.errors import InputError
from greencc.core.graph import ONNX_DOMAINS, ensure_names, graphs_of, label, opset_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.opsets import raise_opset
from greencc.targets._tensorrt.capabilities import HALF_OPS
from greencc.targets._tensorrt.decompositions import decompose
from greencc.targets._tensorrt.floats import to_float32
from greencc.targets._tensorrt.folding import fold_constants
from greencc.targets._tensorrt.halves import KEPT, float32_nodes, halve
from greencc.targets._tensorrt.machine import TensorRtMachine, Typing
from greencc.targets._tensorrt.older import lower_opset
from greencc.targets._tensorrt.pairs import is_quantized, normalize_pairs
from greencc.targets._tensorrt.stored import restore_weights

PRECISION = "greencc.tensorrt.precision"
"""Metadata of weakly typed files: what the builder's flags should allow besides float32, "" or "fp16" or "bf16"."""
FLOAT32_NODES = "greencc.tensorrt.float32"
"""Metadata of weakly typed files: JSON list of the nodes that must not be computed in less than float32."""

_OLDEST = 13
_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
_INTEGER_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
_HALVES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def emit(model: ir.Model, machine: TensorRtMachine) -> ir.Model:
    """A model in the form that a machine's TensorRT wants.

    Args:
        model: The compiler's; not changed.
        machine: The TensorRT version and GPU it is for.

    Raises:
        InputError: Something has no such form; the message names it.
    """
    emitted = model.clone()
    InlinePass()(emitted)
    ensure_names(emitted)
    _drop_defaults(emitted)
    _raise(emitted, _OLDEST, machine)
    infer_shapes(emitted)
    restore_weights(emitted)
    infer_shapes(emitted)
    decompose(emitted, machine)
    _check_operators(emitted)
    fold_constants(emitted)
    _type(emitted, machine)
    normalize_pairs(emitted, integer_weights=machine.integer_weights, float8=machine.float8)
    _raise(emitted, machine.min_opset, machine)
    lower_opset(emitted, machine.max_opset, _name(machine))
    infer_shapes(emitted)
    fold_constants(emitted)
    if machine.gpu.float16 and is_quantized(emitted):
        _halve(emitted, machine)
    RemoveUnusedNodesPass()(emitted)
    _drop_domains(emitted)
    infer_shapes(emitted)
    emitted.ir_version = min(emitted.ir_version, _IR_VERSIONS[opset_of(emitted)])
    check_model(emitted)
    return emitted


def _name(machine: TensorRtMachine) -> str:
    return "TensorRT-RTX" if machine.rtx else f"TensorRT {machine.version}"


def _drop_defaults(model: ir.Model) -> None:
    """Initializers are no inputs: their values are final."""
    defaults = [value for value in model.graph.inputs if value.is_initializer()]
    for value in defaults:
        model.graph.inputs.remove(value)


def _drop_domains(model: ir.Model) -> None:
    """No operator set is imported that no node is of."""
    used = {node.domain for graph in graphs_of(model) for node in graph} | ONNX_DOMAINS
    for domain in [domain for domain in model.opset_imports if domain not in used]:
        del model.opset_imports[domain]


def _raise(model: ir.Model, target: int, machine: TensorRtMachine) -> None:
    current = opset_of(model)
    if current >= target:
        return
    reason = raise_opset(model, target)
    if reason is not None:
        raise InputError(
            f"{_name(machine)} wants opset {target}; the model has {current} and cannot be converted: {reason}",
            hint=f"export the model with opset {target}",
        )
    ensure_names(model)
    infer_shapes(model)


def _check_operators(model: ir.Model) -> None:
    """Refuse by name what no parser of TensorRT knows."""
    for graph in graphs_of(model):
        for node in graph:
            if node.domain not in ONNX_DOMAINS:
                raise InputError(
                    f"TensorRT has no operator like {label(node)}",
                    hint="export the model without it, or start from the model before ONNX Runtime optimised it",
                )
            if node.op_type in _INTEGER_OPERATORS:
                raise InputError(
                    f"TensorRT has no operator like {label(node)}: it takes quantize/dequantize pairs alone",
                    hint="use the QDQ format, or start from the float model",
                )


def _type(model: ir.Model, machine: TensorRtMachine) -> None:
    """Float types as the machine has them; of a half-precision form a weakly typed file keeps what it was."""
    dtypes = {value.dtype for graph in graphs_of(model) for node in graph for value in node.outputs}
    fast = {ir.DataType.FLOAT16: machine.gpu.float16, ir.DataType.BFLOAT16: machine.bfloat16}
    narrow = [kind for kind in _HALVES if kind in dtypes and fast[kind]]
    gone = [ir.DataType.DOUBLE, *(kind for kind in _HALVES if not fast[kind])]
    if machine.typing is Typing.WEAK:
        if narrow:
            model.metadata_props[PRECISION] = _HALVES[narrow[0]]
            model.metadata_props[FLOAT32_NODES] = json.dumps(_wide_nodes(model))
        gone += narrow
    to_float32(model, gone)
    infer_shapes(model)


def _halve(model: ir.Model, machine: TensorRtMachine) -> None:
    """FP16 for the float part of a quantized graph: in the graph, or allowed by what the file says."""
    if machine.typing is Typing.STRONG:
        halve(model)
    elif PRECISION not in model.metadata_props:
        model.metadata_props[PRECISION] = "fp16"
        model.metadata_props[FLOAT32_NODES] = json.dumps(float32_nodes(model.graph))


def _wide_nodes(model: ir.Model) -> list[str]:
    """Nodes of a half-precision form that compute in float32."""
    return [
        str(node.name)
        for node in model.graph
        if node.op_type in HALF_OPS | KEPT and any(value.dtype is ir.DataType.FLOAT for value in node.outputs)
    ]
