"""Operators that the parser does not read, and forms of those it reads that it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, input_at
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.operators import FLOAT_ONLY, INTEGERS_SINCE, RTX_LACKS, SINCE
from greencc.targets._tensorrt.rules._context import (
    Context,
    array_of,
    dtype_of,
    in_default_domain,
    known,
    name_of,
)

_QUANTIZED = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
_FUNCTIONS_SINCE = TensorRtVersion(9, 0)
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def check_operators(context: Context) -> Iterator[Fault]:
    """Nodes that the parser has no importer for."""
    version = context.machine.version
    for node in context.nodes:
        name, kind = name_of(node), node.op_type
        if node.op_identifier() in context.model.functions:
            if version < _FUNCTIONS_SINCE:
                yield error(
                    Rule.CUSTOM_OPERATOR,
                    name,
                    f"{kind} is a function of the model, which TensorRT {version} does not expand",
                    f"inline the functions, or use TensorRT {_FUNCTIONS_SINCE} or later",
                )
        elif not in_default_domain(node):
            yield _foreign(name, node)
        elif kind not in SINCE:
            yield _unknown(name, kind)
        elif version < SINCE[kind]:
            yield error(
                Rule.OPERATOR,
                name,
                f"TensorRT {version} has no {kind}: its parser reads it since {SINCE[kind]}",
                f"write it with older operators, or use TensorRT {SINCE[kind]} or later",
            )
        elif context.machine.rtx and kind in RTX_LACKS:
            yield error(
                Rule.OPERATOR,
                name,
                f"TensorRT-RTX has no {kind}: it is a plugin of TensorRT",
                "run it on the CPU, or use TensorRT",
            )


def _foreign(name: str, node: ir.Node) -> Fault:
    if node.domain.lower().startswith("trt") or node.op_type.endswith("_TRT"):
        return warning(
            Rule.CUSTOM_OPERATOR,
            name,
            f"{node.domain}::{node.op_type} is a plugin, and fails where that plugin is not loaded",
            "load its library when building and running (trtexec --staticPlugins or --dynamicPlugins)",
        )
    return error(
        Rule.CUSTOM_OPERATOR,
        name,
        f"{node.domain}::{node.op_type} is no operator of ONNX: the parser looks for a plugin of this name",
        "export the model without fused or custom operators",
    )


def _unknown(name: str, kind: str) -> Fault:
    if kind in _QUANTIZED:
        return error(
            Rule.OPERATOR,
            name,
            f"TensorRT has no {kind}: quantized graphs are float operators between Q/DQ pairs",
            "quantize with --format qdq, static INT8",
        )
    return error(Rule.OPERATOR, name, f"no version of TensorRT reads {kind}", "write it with other operators")


def check_types(context: Context) -> Iterator[Fault]:
    """Integers where TensorRT takes floats only."""
    version = context.machine.version
    for node in context.nodes:
        kind, found = node.op_type, dtype_of(input_at(node, 0))
        if found not in _INTEGERS or not in_default_domain(node):
            continue
        since = INTEGERS_SINCE.get(kind)
        if kind in FLOAT_ONLY:
            yield error(
                Rule.OPERATOR_TYPE,
                name_of(node),
                f"{kind} reads {found}, and TensorRT's takes floats alone",
                "cast in front of it, and back behind it",
            )
        elif since is not None and version < since:
            yield warning(
                Rule.OPERATOR_TYPE,
                name_of(node),
                f"{kind} reads {found}, which TensorRT lists among its types only since {since}",
                "cast in front of it, and back behind it",
            )


def check_forms(context: Context) -> Iterator[Fault]:
    """Forms of an operator that the parser refuses, or reads as something else."""
    for node in context.nodes:
        form = _FORMS.get(node.op_type)
        if form is None or not in_default_domain(node):
            continue
        for problem, remedy in form(node, context):
            yield error(Rule.OPERATOR_FORM, name_of(node), f"{node.op_type}: {problem}", remedy)


_Form = Callable[[ir.Node, Context], Iterator[tuple[str, str]]]


def _used(node: ir.Node, index: int) -> bool:
    """Whether somebody reads an output."""
    if index >= len(node.outputs) or not node.outputs[index].name:
        return False
    value = node.outputs[index]
    return bool(value.uses()) or value.is_graph_output()


def _given(node: ir.Node, index: int) -> bool:
    return input_at(node, index) is not None


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_string()


def _pool(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if _used(node, 1):
        yield "its Indices output is not supported", "leave it out"
    if any(size != 1 for size in attribute_ints(node, "dilations", ())):
        yield "dilated windows are not supported", "use a window without dilations"


def _constant(index: int, what: str, until: TensorRtVersion | None = None) -> _Form:
    """An input that must be a constant, before a version or always."""

    def form(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
        if until is not None and context.machine.version >= until:
            return
        if _given(node, index) and not known(input_at(node, index)):
            since = "" if until is None else f" before {until}"
            yield f"{what} must be a constant{since}", "fold it: export with fixed sizes"

    return form


def _layer_norm(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if _used(node, 1) or _used(node, 2):
        yield "only its first output is supported", "compute mean and deviation apart"


def _lstm(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if attribute_int(node, "input_forget", 0) or attribute_int(node, "layout", 0):
        yield "input_forget and layout must be 0", "export it in ONNX's default layout"


def _top_k(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    count = array_of(input_at(node, 1))
    if count is None and context.machine.version < TensorRtVersion(8, 6):
        yield "K must be a constant before 8.6", "fold it"
    if count is not None and count.size and int(count.max()) >= 3840:
        yield f"K is {int(count.max())}, and must be less than 3840", "take fewer"


_RESIZE_TRANSFORMS = frozenset(
    {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
)


def _resize(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    mode = _text(node, "mode", "nearest")
    if mode == "cubic" and context.machine.version < TensorRtVersion(8, 6):
        yield "mode cubic is not supported before 8.6", "use nearest or linear"
    transform = _text(node, "coordinate_transformation_mode", "half_pixel")
    if transform not in _RESIZE_TRANSFORMS:
        yield f"coordinate_transformation_mode {transform} is not supported", "use half_pixel"
    if attribute_int(node, "antialias", 0):
        yield "antialias is not supported", "leave it out"
    if _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        yield "only the policy stretch is supported", "give the sizes that it comes to"


def _dropout(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    training = input_at(node, 2)
    value = array_of(training)
    if training is not None and (value is None or bool(value.any())):
        yield "training mode is not supported", "export for inference"


def _scatter_nd(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if _text(node, "reduction", "none") != "none":
        yield "a reduction is not supported", "use ScatterElements (10.0 and later), or add apart"


def _scatter_elements(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if _text(node, "reduction", "none") != "none" and context.machine.version < TensorRtVersion(10, 0):
        yield "a reduction is not supported before 10.0", "add apart"


def _einsum(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    equation = _text(node, "equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    diagonal = any(len(set(term)) < len(term.replace("...", "")) for term in terms if "..." not in term)
    if ("..." in equation or diagonal) and context.machine.version < TensorRtVersion(10, 12):
        yield "ellipses and diagonals are not supported before 10.12", "write it as MatMul and Transpose"


def _grid_sample(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is not None and shape.rank() != 4:
        yield f"its input has {shape.rank()} axes and must have 4", "sample one plane at a time"


def _instance_norm(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    if context.machine.version >= TensorRtVersion(9, 0):
        return
    if not known(input_at(node, 1)) or not known(input_at(node, 2)):
        yield "scale and bias must be constants before 9.0", "fold them"


def _constant_node(node: ir.Node, context: Context) -> Iterator[tuple[str, str]]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            yield f"{name} is not supported", "store the values as a plain tensor"


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_FORMS: Mapping[str, _Form] = {
    "AveragePool": _pool,
    "Constant": _constant_node,
    "CumSum": _constant(1, "its axis", TensorRtVersion(10, 8)),
    "Dropout": _dropout,
    "Einsum": _einsum,
    "GridSample": _grid_sample,
    "InstanceNormalization": _instance_norm,
    "LSTM": _lstm,
    "LayerNormalization": _layer_norm,
    "LpPool": _pool,
    "MaxPool": _pool,
    "OneHot": _constant(1, "depth"),
    "Resize": _resize,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _constant(3, "axes", TensorRtVersion(10, 3)),
    "Squeeze": _constant(1, "axes", TensorRtVersion(10, 7)),
    "TopK": _top_k,
    "Unsqueeze": _constant(1, "axes", TensorRtVersion(10, 7)),
    **dict.fromkeys(_REDUCTIONS, _constant(1, "axes")),
}
