"""What runs on a deep-learning accelerator; the rest falls back to the GPU, at the price of copies.

Sources: NVIDIA TensorRT documentation, "DLA Supported Layers and Restrictions"; Deep-Learning-Accelerator-SW,
"Supported ONNX Operators & Functions on Orin DLA" (what TensorRT exposes natively).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, input_at
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import Typing
from greencc.targets._tensorrt.presets import with_dla
from greencc.targets._tensorrt.rules._context import (
    Context,
    dtype_of,
    in_default_domain,
    name_of,
    tensor_of,
    weight_pair,
)
from greencc.targets._tensorrt.rules.shapes import free_axes

_BATCH, _SIZE = 4096, 8192
_NATIVE = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv",
        "ConvTranspose", "Equal", "Gemm", "Greater", "LRN", "LeakyRelu", "Less", "MatMul", "Max", "MaxPool",
        "Min", "Mul", "PRelu", "Pow", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split",
        "Sub", "Sum", "Tanh", "Transpose", "Upsample", "Div",
    }
)  # fmt: skip
# They hold no arithmetic of their own: types, pairs, and what is folded when the engine is built.
_FOLDED = frozenset(["Cast", "ConstantOfShape", "DequantizeLinear", "Identity", "QuantizeLinear", "Shape"])


def check(context: Context) -> Iterator[Fault]:
    """A DLA that is not there; shapes it does not take; layers that fall back."""
    if not context.dla:
        return
    if context.machine.dla == 0:
        yield error(
            Rule.DLA_MISSING,
            "",
            f"a DLA was asked for, and TensorRT {context.machine.version} builds for none here "
            f"({context.machine.gpu.name})",
            f"leave dla out, or compile for one of: {with_dla()}",
        )
        return
    yield from _inputs(context)
    for node in context.nodes:
        problem = _problem(node, context)
        if problem is not None:
            yield warning(
                Rule.DLA_LAYER,
                name_of(node),
                f"{node.op_type} {problem}, and falls back to the GPU",
                "build with --allowGPUFallback, or keep to what the DLA has",
            )


def _inputs(context: Context) -> Iterator[Fault]:
    for value in context.model.graph.inputs:
        free = free_axes(value)
        if free:
            yield error(
                Rule.DLA_SHAPE,
                value.name or "",
                f"the input has open sizes ({', '.join(free)}), and a DLA runs fixed sizes alone",
                "fix the batch and every other size of the input",
            )


def _problem(node: ir.Node, context: Context) -> str | None:
    if all(tensor_of(value) is not None for value in node.inputs if value is not None):
        return None
    if not in_default_domain(node) or node.op_type not in _NATIVE | _FOLDED:
        return "is not a layer of the DLA"
    if node.op_type in _FOLDED:
        return None
    found = dtype_of(node.outputs[0])
    if context.machine.typing is Typing.STRONG and found is ir.DataType.FLOAT and node.op_type in _LIMITS:
        return "computes in FP32, and the DLA has FP16 and INT8 alone"
    shape = node.outputs[0].shape
    if shape is not None and shape.rank():
        sizes = [int(dim) if isinstance(dim, int) else 0 for dim in shape]
        if sizes[0] > _BATCH or max(sizes[1:], default=0) > _SIZE:
            return f"gives sizes {sizes}, beyond {_BATCH} for the batch or {_SIZE} for the others"
    limit = _LIMITS.get(node.op_type)
    return None if limit is None else limit(node)


def _beyond(what: str, values: tuple[int, ...], low: int, high: int) -> str | None:
    for value in values:
        if not low <= value <= high:
            return f"has {what} {value}, outside {low} to {high}"
    return None


def _kernel(node: ir.Node) -> tuple[int, ...]:
    given = attribute_ints(node, "kernel_shape", ())
    weight = input_at(node, 1)
    if given or weight is None or weight.shape is None or not weight.shape.is_static():
        return given
    return tuple(int(size) for size in weight.shape.numpy()[2:])


def _weights(node: ir.Node) -> str | None:
    weight = input_at(node, 1)
    if tensor_of(weight) is None and weight_pair(weight) is None:
        return "has weights that are computed"
    return None


def _conv(node: ir.Node) -> str | None:
    kernel = _kernel(node)
    if kernel and len(kernel) != 2:
        return f"has {len(kernel)} spatial axes, and the DLA has two"
    return (
        _weights(node)
        or _beyond("a kernel of", kernel, 1, 32)
        or _beyond("padding of", attribute_ints(node, "pads", ()), 0, 31)
        or _beyond("a stride of", attribute_ints(node, "strides", ()), 1, 8)
        or _beyond("a dilation of", attribute_ints(node, "dilations", ()), 1, 32)
    )


def _deconv(node: ir.Node) -> str | None:
    kernel = _kernel(node)
    if kernel and len(kernel) != 2:
        return f"has {len(kernel)} spatial axes, and the DLA has two"
    if attribute_int(node, "group", 1) != 1:
        return "is grouped"
    if any(size != 1 for size in attribute_ints(node, "dilations", ())):
        return "is dilated"
    if any(attribute_ints(node, "pads", ())):
        return "is padded"
    return _weights(node) or _beyond("a kernel of", kernel, 1, 128)


def _pool(node: ir.Node) -> str | None:
    kernel = _kernel(node) if node.op_type != "MaxPool" else attribute_ints(node, "kernel_shape", ())
    if kernel and len(kernel) != 2:
        return f"has {len(kernel)} spatial axes, and the DLA has two"
    pads = attribute_ints(node, "pads", ())
    if node.op_type == "AveragePool" and any(pads) and not attribute_int(node, "count_include_pad", 0):
        return "averages without its padding"
    return (
        _beyond("a window of", kernel, 1, 8)
        or _beyond("padding of", pads, 0, 7)
        or _beyond("a stride of", attribute_ints(node, "strides", ()), 1, 16)
    )


def _concat(node: ir.Node) -> str | None:
    axis = attribute_int(node, "axis", 0)
    shape = node.outputs[0].shape
    rank = None if shape is None else shape.rank()
    if rank is not None and axis % rank != rank - 3:
        return "joins along another axis than the channels"
    return None


def _lrn(node: ir.Node) -> str | None:
    return None if attribute_int(node, "size", 0) in (3, 5, 7, 9) else "has a window other than 3, 5, 7 or 9"


def _softmax(node: ir.Node) -> str | None:
    axis = attribute_int(node, "axis", -1)
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None or shape.rank() == 0:
        return None
    size = shape[axis]
    return _beyond("an axis of", (size,), 1, 1024) if isinstance(size, int) else None


_LIMITS: Mapping[str, Callable[[ir.Node], str | None]] = {
    "AveragePool": _pool,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _deconv,
    "Gemm": _weights,
    "LRN": _lrn,
    "MatMul": _weights,
    "MaxPool": _pool,
    "Softmax": _softmax,
}
