"""Weights that are stored as small integers and computed with as floats become floats again.

TensorRT has no operator that reads them so: MatMulNBits and GatherBlockQuantized are ONNX Runtime's, and a table of
INT8 behind a Gather has no float type. Its engines store what they are given; the smaller file was worth something
where the weights are read from memory as integers.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import (
    Names,
    add_initializer,
    attribute_int,
    constant_of,
    constant_tensor,
    drop_unused,
    graphs_of,
    input_at,
    is_op,
    label,
    sole_consumer,
)
from greencc.targets._tensorrt.pairs import dequantized

_MICROSOFT = "com.microsoft"


def restore_weights(model: ir.Model) -> None:
    """Rewrite readers of stored integers to read floats, in place.

    Args:
        model: With shapes and types inferred; without functions.

    Raises:
        InputError: A reader has a form that is not known.
    """
    names = Names(model)
    for graph in graphs_of(model):
        assert isinstance(graph, ir.Graph)
        for node in tuple(graph):
            if node.graph is not graph:
                continue
            if node.domain == _MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                # The same operators; the standard ones have had their axis since opset 13.
                node.domain = ""
            elif node.domain == _MICROSOFT and node.op_type == "MatMulNBits":
                _product(node, graph, names)
            elif node.domain == _MICROSOFT and node.op_type == "GatherBlockQuantized":
                _table(node, graph, names)
            elif is_op(node, "Gather") and _small_integers(node.inputs[0]):
                _gathered(node, graph, names)


def _small_integers(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype in (
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
    )


def _product(node: ir.Node, graph: ir.Graph, names: Names) -> None:
    """MatMulNBits: y = x W^T (+ bias), W [N, K] in blocks along K."""
    columns, rows = attribute_int(node, "K", 0), attribute_int(node, "N", 0)
    bits, block = attribute_int(node, "bits", 4), attribute_int(node, "block_size", 0)
    if input_at(node, 4) is not None:
        raise _unknown(node, "has permuted groups")
    codes, scales = _required(node, 1), _required(node, 2)
    blocks = math.ceil(columns / block)
    codes = _unpacked(codes.reshape(rows, blocks, -1), bits)[..., :block]
    zeros: Array | float = float(1 << (bits - 1))
    if input_at(node, 3) is not None:
        found = _required(node, 3)
        if found.dtype == np.uint8:
            found = _unpacked(found.reshape(rows, -1), bits)[:, :blocks]
        zeros = found.reshape(rows, blocks, 1).astype(np.float32)
    floats = (codes.astype(np.float32) - zeros) * scales.reshape(rows, blocks, 1).astype(np.float32)
    weight = floats.reshape(rows, -1)[:, :columns].T
    bias, result = input_at(node, 5), node.outputs[0]
    floats = np.ascontiguousarray(weight.astype(scales.dtype))
    if bias is not None:
        product = ir.Value(name=names.value(f"{result.name}_product"), type=result.type, shape=result.shape)
        added = ir.node("Add", [product, bias], name=names.node(f"{node.name}_bias"))
        graph.insert_after(node, added)
        _take_over(result, added.outputs[0])
        result = product
    _read_floats(node, graph, names, "MatMul", 1, floats, result)


def _table(node: ir.Node, graph: ir.Graph, names: Names) -> None:
    """GatherBlockQuantized."""
    bits, block = attribute_int(node, "bits", 4), attribute_int(node, "block_size", 128)
    codes, scales = _required(node, 0), _required(node, 2)
    axis, picked = attribute_int(node, "quantize_axis", 1), attribute_int(node, "gather_axis", 0)
    axis %= codes.ndim
    signed = codes.dtype != np.uint8 and str(codes.dtype) != "uint4"
    zeros = _required(node, 3) if input_at(node, 3) is not None else None
    if codes.dtype == np.uint8:
        # Packed along the last axis, which is the quantized one.
        codes = _unpacked(codes, bits)
        zeros = None if zeros is None else _unpacked(zeros, bits)[..., : scales.shape[-1]]
        if zeros is None:
            zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    elif not signed and zeros is None:
        zeros = np.full(scales.shape, 8, np.uint8)
    floats = dequantized(codes, scales, zeros, axis, block)
    _read_floats(node, graph, names, "Gather", 0, floats, node.outputs[0], picked)


def _gathered(node: ir.Node, graph: ir.Graph, names: Names) -> None:
    """Rows of integers, dequantized behind the Gather, with scales that are constant or gathered alike."""
    reader = sole_consumer(node.outputs[0])
    if not is_op(reader, "DequantizeLinear") or attribute_int(node, "axis", 0) != 0:
        raise _unknown(node, "reads integers that nothing dequantizes")
    assert reader is not None
    codes = _required(node, 0)
    parameters: list[Array | None] = []
    for index in (1, 2):
        value = input_at(reader, index)
        source = None if value is None else value.producer()
        if source is not None and is_op(source, "Gather") and source.inputs[1] is node.inputs[1]:
            value = source.inputs[0]
        array = constant_of(value)
        if value is not None and array is None:
            raise _unknown(reader, "has computed scales")
        parameters.append(array)
    scales, zeros = parameters
    assert scales is not None
    indices = node.inputs[1]
    rank = codes.ndim - 1 + (indices.shape.rank() if indices is not None and indices.shape is not None else 1)
    # The axes behind the rows keep their distance from the end.
    axis = attribute_int(reader, "axis", 1)
    axis = codes.ndim - (rank - axis if axis >= 0 else -axis)
    floats = dequantized(codes, scales, zeros, axis, attribute_int(reader, "block_size", 0))
    rows = ir.Value(name=None, type=reader.outputs[0].type, shape=reader.outputs[0].shape)
    _take_over(reader.outputs[0], rows)
    sources = [value for value in reader.inputs if value is not None]
    graph.remove(reader, safe=True)
    for value in sources[1:]:
        _drop(graph, value)
    _read_floats(node, graph, names, "Gather", 0, floats, rows)


def _read_floats(
    node: ir.Node,
    graph: ir.Graph,
    names: Names,
    op_type: str,
    index: int,
    floats: Array,
    result: ir.Value,
    axis: int | None = None,
) -> None:
    """Put a standard operator in the place of a node, which reads floats as input `index` and writes `result`."""
    old = [value for value in node.inputs if value is not None]
    constant = add_initializer(graph, names.value(f"{old[index].name}_float"), floats)
    other = node.inputs[1 - index]
    inputs = [other, constant] if index else [constant, other]
    if result is node.outputs[0]:
        result = ir.Value(name=None, type=result.type, shape=result.shape)
        _take_over(node.outputs[0], result)
    fresh = ir.Node(
        "",
        op_type,
        inputs,
        () if axis is None else (ir.AttrInt64("axis", axis),),
        outputs=[result],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, fresh)
    graph.remove(node, safe=True)
    for value in old:
        _drop(graph, value)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Let a value stand for another, with its name, type and readers."""
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant, or a Gather of one, that nobody reads any more."""
    producer = value.producer()
    if constant_tensor(value) is not None:
        drop_unused(graph, value)
    elif (
        producer is not None
        and is_op(producer, "Gather")
        and not value.uses()
        and not value.is_graph_output()
    ):
        sources = [each for each in producer.inputs if each is not None]
        graph.remove(producer, safe=True)
        _drop(graph, sources[0])


def _required(node: ir.Node, index: int) -> Array:
    array = constant_of(input_at(node, index))
    if array is None:
        raise _unknown(node, "has computed weights or scales")
    return array


def _unpacked(codes: Array, bits: int) -> Array:
    """Codes of a byte each, lower bits first, along the last axis."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    spread = (codes[..., np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    unpacked: Array = spread.reshape(*codes.shape[:-1], -1)
    return unpacked


def _unknown(node: ir.Node, why: str) -> InputError:
    return InputError(
        f"{label(node)} {why}, which TensorRT has no form for", hint="start from the float model"
    )
