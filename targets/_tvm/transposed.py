"""ConvTranspose as an ordinary convolution whose output channels are dealt out to pixels.

Output pixels that are a stride apart see the same taps: stride^2 convolutions over the same data, which are one with
stride^2 times the output channels (Shi et al., CVPR 2016, and 'Is the deconvolution layer the same as a convolutional
layer?', 2016). Kernels that are no multiple of the stride get taps of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import Names, add_initializer, attribute_int, attribute_ints, input_at, is_op
from greencc.targets._tvm.constants import folded
from greencc.targets._tvm.images import image_size


@dataclass(frozen=True)
class _Axis:
    """Rows, or columns.

    Attributes:
        pads: Of the convolution.
        size: Of its output.
        first: How many outputs before the first are cut away.
        length: Of the output that is left.
    """

    pads: tuple[int, int]
    size: int
    first: int
    length: int


def split_transposed(model: ir.Model) -> None:
    """Rewrite every ConvTranspose of float images with constant weights, one group and equal strides, in place.

    Args:
        model: Shapes are inferred; those of new values are set.
    """
    names = Names(model)
    for node in list(model.graph):
        if is_op(node, "ConvTranspose"):
            _split(model.graph, node, names)


def _split(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    value, bias = node.inputs[0], input_at(node, 2)
    size, weights = image_size(value), folded(node.inputs[1])
    offsets = None if bias is None else folded(bias)
    strides = attribute_ints(node, "strides", (1, 1))
    if size is None or value is None or value.shape is None or value.dtype is not ir.DataType.FLOAT:
        return
    if weights is None or weights.ndim != 4 or weights.dtype != np.float32 or not _is_plain(node):
        return
    if (bias is not None and offsets is None) or len(set(strides)) != 1:
        return
    stride, kernel = strides[0], weights.shape[2:]
    pads = attribute_ints(node, "pads", (0, 0, 0, 0))
    extra = attribute_ints(node, "output_padding", (0, 0))
    rows, columns = (
        _axis(size[1 + axis], kernel[axis], stride, (pads[axis], pads[2 + axis]), extra[axis])
        for axis in range(2)
    )
    if rows is None or columns is None:
        return
    outputs, batch = weights.shape[1], value.shape[0]
    base = str(node.name)

    def constant(kind: str, array: Array) -> ir.Value:
        return add_initializer(graph, names.value(f"{base}_{kind}"), array)

    def written(
        op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | str | list[int]], *shape: int
    ) -> ir.Value:
        made = ir.node(op_type, inputs, dict(attributes), name=names.node(f"{base}_{op_type}"))
        graph.insert_before(node, made)
        output = made.outputs[0]
        output.name, output.shape = names.value(f"{base}_{op_type}"), ir.Shape([batch, *shape])
        output.type = ir.TensorType(ir.DataType.FLOAT)
        return output

    operands = [value, constant("phases", _phases(weights, stride))]
    if offsets is not None:
        operands.append(constant("bias", np.tile(offsets, stride * stride)))
    around = [rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1]]
    taps = [-(-length // stride) for length in kernel]
    attributes: dict[str, int | str | list[int]] = {"pads": around, "kernel_shape": taps}
    result = written("Conv", operands, attributes, outputs * stride * stride, rows.size, columns.size)
    product = result.producer()
    assert product is not None
    if stride > 1:
        shape = (outputs, rows.size * stride, columns.size * stride)
        result = written("DepthToSpace", [result], {"blocksize": stride, "mode": "DCR"}, *shape)
    lengths = (rows.length, columns.length)
    if lengths != (rows.size * stride, columns.size * stride):
        starts = np.array([rows.first, columns.first], np.int64)
        bounds = [
            constant("starts", starts),
            constant("ends", starts + np.array(lengths)),
            constant("axes", np.array([2, 3], np.int64)),
        ]
        result = written("Slice", [result, *bounds], {}, outputs, *lengths)
    node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    product.name = base


def _is_plain(node: ir.Node) -> bool:
    mode = node.attributes.get("auto_pad")
    return (
        attribute_int(node, "group", 1) == 1
        and set(attribute_ints(node, "dilations", (1, 1))) == {1}
        and "output_shape" not in node.attributes
        and (mode is None or mode.as_string() == "NOTSET")
    )


def _axis(size: int, kernel: int, stride: int, pads: tuple[int, int], extra: int) -> _Axis | None:
    """The convolution along one axis; None where it would have to leave inputs out."""
    taps = -(-kernel // stride)
    length = stride * (size - 1) + kernel + extra - sum(pads)
    if length < 1:
        return None
    low, high = pads[0] // stride, (pads[0] + length - 1) // stride
    before = taps - 1 - low
    behind = high - low + 1 - size - before + taps - 1
    if before < 0 or behind < 0:
        return None
    return _Axis((before, behind), high - low + 1, pads[0] - low * stride, length)


def _phases(weights: Array, stride: int) -> Array:
    """[in, out, kh, kw] to [stride * stride * out, in, taps, taps]."""
    inputs, outputs, height, width = weights.shape
    rows, columns = -(-height // stride), -(-width // stride)
    missing = ((0, 0), (0, 0), (0, rows * stride - height), (0, columns * stride - width))
    split = np.pad(weights, missing).reshape(inputs, outputs, rows, stride, columns, stride)
    flipped = split[:, :, ::-1, :, ::-1].transpose(3, 5, 1, 0, 2, 4)
    return np.ascontiguousarray(flipped.reshape(stride * stride * outputs, inputs, rows, columns))
