"""Quantize/dequantize pairs in the one form that TensorRT takes: signed, symmetric, zero points spelled out.

* The zero point is there, INT8 and 0 (a missing one or UINT8 is taken for INT8 without a word). UINT8 around 128 is the
  same grid moved by 128, and is moved; any other zero point is refused.
* Weights have one scale per output channel, along the axis that the operator has it (of a convolution with another axis
  TensorRT builds an engine that computes something else), or one scale.
* Before TensorRT 10, quantized weights are floats behind a Q/DQ pair ("weights of Q/DQ models must be specified using
  FP32"; a constant of INT8 is refused: "invalid weights type of Int8"). From 10 on they are stored as INT8.
* What no integer kernel takes in is no pair: weights quantized for storage alone and INT32 biases become floats.

Sources: NVIDIA TensorRT documentation, "Explicit Quantization"; onnx-tensorrt, `QuantDequantLinearHelper`.
"""

from __future__ import annotations

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
)

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
_HINT = "quantize the float model with this target, or choose a float precision"


def normalize_pairs(model: ir.Model, *, integer_weights: bool, float8: bool) -> None:
    """Bring all pairs of a model into the form above, in place.

    Args:
        model: With shapes and types inferred; without functions.
        integer_weights: Quantized weights are stored as INT8, else as floats behind a pair.
        float8: Pairs of FP8 (E4M3) are left as they are, else refused.

    Raises:
        InputError: A pair has no such form.
    """
    names = Names(model)
    for graph in graphs_of(model):
        assert isinstance(graph, ir.Graph)
        pairs = _Pairs(graph, names, integer_weights=integer_weights, float8=float8)
        for node in tuple(graph):
            if is_op(node, "QuantizeLinear") and _is_constant(node.inputs[0]):
                pairs.integers(node)
        for node in tuple(graph):
            if is_op(node, "DequantizeLinear") and _is_constant(node.inputs[0]):
                pairs.weight(node)
        for node in tuple(graph):
            if is_op(node, "QuantizeLinear"):
                pairs.quantize(node)
        for node in tuple(graph):
            if is_op(node, "DequantizeLinear") and not _is_constant(node.inputs[0]):
                pairs.dequantize(node)


def is_quantized(model: ir.Model) -> bool:
    """True for a model with pairs."""
    return any(
        is_op(node, "QuantizeLinear", "DequantizeLinear") for graph in graphs_of(model) for node in graph
    )


def channel_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """The axis of the output channels in a constant operand; None where there is none that pairs can have."""
    match node.op_type:
        case "Conv":
            return 0 if index == 1 else None
        case "ConvTranspose":
            return 1 if index == 1 else None
        case "Gemm":
            return (0 if attribute_int(node, "transB", 0) else 1) if index == 1 else None
        case "MatMul":
            return rank - 1 if index == 1 and rank >= 2 else None
    return None


def dequantized(integers: Array, scale: Array, zero_point: Array | None, axis: int, block: int = 0) -> Array:
    """The floats of the scale's type that integers stand for."""
    if block:
        scale = np.repeat(scale, block, axis).take(range(integers.shape[axis]), axis)
        if zero_point is not None:
            zero_point = np.repeat(zero_point, block, axis).take(range(integers.shape[axis]), axis)
    elif scale.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero_point = None if zero_point is None else zero_point.reshape(shape)
    else:
        scale = scale.reshape(())
        zero_point = None if zero_point is None else zero_point.reshape(())
    wide = integers.astype(np.float32)
    if zero_point is not None:
        wide = wide - zero_point.astype(np.float32)
    floats: Array = (wide * scale.astype(np.float32)).astype(scale.dtype)
    return floats


class _Pairs:
    def __init__(self, graph: ir.Graph, names: Names, *, integer_weights: bool, float8: bool) -> None:
        self.graph = graph
        self.names = names
        self.integer_weights = integer_weights
        self.float8 = float8
        self.zeros: dict[ir.Value, ir.Value] = {}

    def integers(self, node: ir.Node) -> None:
        """A QuantizeLinear of a constant, as quantization-aware training exports weights: its result is constant."""
        source, scale = node.inputs[0], self._scale(node)
        zero_point = constant_of(input_at(node, 2))
        if source is None or node.outputs[0].dtype in _FLOAT8:
            return
        if zero_point is None or attribute_int(node, "block_size", 0):
            raise InputError(f"{label(node)} quantizes a weight in a form that TensorRT has not", hint=_HINT)
        floats = _array(source).astype(np.float32)
        shape = [1] * floats.ndim
        scales = _array(scale).astype(np.float32)
        if scales.size > 1:
            shape[attribute_int(node, "axis", 1)] = -1
        limits = np.iinfo(zero_point.dtype)
        steps = np.rint(floats / scales.reshape(shape)) + zero_point.astype(np.float32).reshape(shape)
        codes = np.clip(steps, limits.min, limits.max).astype(zero_point.dtype)
        result = node.outputs[0]
        result.replace_all_uses_with(self._constant(f"{source.name}_quantized", codes))
        inputs = [each for each in node.inputs if each is not None]
        self.graph.remove(node, safe=True)
        for each in inputs:
            drop_unused(each.graph if isinstance(each.graph, ir.Graph) else self.graph, each)

    def weight(self, node: ir.Node) -> None:
        """A DequantizeLinear of a constant."""
        source, scale = node.inputs[0], self._scale(node)
        assert source is not None
        if source.dtype in _FLOAT8:
            self._float8(node)
            return
        integers = _array(source)
        zero_point = constant_of(input_at(node, 2))
        block = attribute_int(node, "block_size", 0)
        axis = attribute_int(node, "axis", 1) % max(integers.ndim, 1)
        if integers.dtype == np.uint8 and zero_point is not None and (zero_point == 128).all():
            integers, zero_point = (integers.astype(np.int16) - 128).astype(np.int8), None
        symmetric = zero_point is None or not np.any(zero_point)
        readers = list(node.outputs[0].uses())
        kernels = [use for use in readers if self._takes_integers(use.node, use.idx)]
        if integers.dtype != np.int8 or not symmetric or block or not kernels or len(kernels) < len(readers):
            # Each reader of its own kind would need a copy; such weights are stored small, not computed with.
            self._as_floats(node, dequantized(integers, _array(scale), zero_point, axis, block))
            return
        if _array(scale).size > 1:
            for use in readers:
                expected = channel_axis(use.node, use.idx, integers.ndim)
                if axis != expected:
                    where = "no axis" if expected is None else f"axis {expected}"
                    raise InputError(
                        f"{label(use.node)} reads a weight with scales along axis {axis}; its output channels are "
                        f"along {where}, and TensorRT would compute something else",
                        hint=_HINT,
                    )
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
        else:
            node.attributes.pop("axis", None)
        if self.integer_weights:
            if integers.dtype != _array(source).dtype:
                node.replace_input_with(0, self._constant(f"{source.name}_signed", integers))
                drop_unused(self.graph, source)
            self._set_zero_point(node, scale)
            return
        floats = dequantized(integers, _array(scale), None, axis)
        value = self._constant(f"{node.outputs[0].name}_float", floats)
        self._set_zero_point(node, scale)
        quantize = ir.node(
            "QuantizeLinear",
            [value, scale, node.inputs[2]],
            {key: attribute.value for key, attribute in node.attributes.items() if key == "axis"},
            outputs=[
                ir.Value(
                    name=self.names.value(f"{node.outputs[0].name}_quantized"),
                    type=ir.TensorType(ir.DataType.INT8),
                    shape=value.shape,
                )
            ],
            name=self.names.node(f"{node.name}_QuantizeLinear"),
        )
        self.graph.insert_before(node, quantize)
        node.replace_input_with(0, quantize.outputs[0])
        drop_unused(self.graph, source)

    def quantize(self, node: ir.Node) -> None:
        """A QuantizeLinear of an activation, or of the floats of a weight."""
        scale = self._scale(node)
        zero_point = input_at(node, 2)
        kind = node.outputs[0].dtype if zero_point is None else zero_point.dtype
        if kind in _FLOAT8:
            self._float8(node)
            return
        self._check_form(node, scale)
        array = None if zero_point is None else constant_of(zero_point)
        if zero_point is not None and array is None:
            raise InputError(f"{label(node)} has a computed zero point; TensorRT wants 0", hint=_HINT)
        moved = kind is ir.DataType.UINT8 and array is not None and bool((array == 128).all())
        if not moved and (kind is not ir.DataType.INT8 or (array is not None and bool(array.any()))):
            spelled = "INT8" if kind is None else kind.name
            at = 0 if array is None else int(array.reshape(-1)[0])
            raise InputError(
                f"{label(node)} quantizes to {spelled} around {at}; TensorRT has INT8 around 0 alone",
                hint=_HINT,
            )
        if moved:
            for use in node.outputs[0].uses():
                if not is_op(use.node, "DequantizeLinear"):
                    raise InputError(
                        f"{label(use.node)} reads UINT8 of {label(node)}; TensorRT has signed integers alone",
                        hint=_HINT,
                    )
            node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        node.attributes.pop("output_dtype", None)
        node.attributes.pop("saturate", None)
        self._set_zero_point(node, scale)

    def dequantize(self, node: ir.Node) -> None:
        """A DequantizeLinear of something computed."""
        source, scale = node.inputs[0], self._scale(node)
        assert source is not None
        if source.dtype in _FLOAT8:
            self._float8(node)
            return
        self._check_form(node, scale)
        array = constant_of(input_at(node, 2))
        moved = array is not None and array.dtype == np.uint8 and bool((array == 128).all())
        if source.dtype is not ir.DataType.INT8 or (array is not None and bool(array.any()) and not moved):
            kind = "unknown integers" if source.dtype is None else source.dtype.name
            raise InputError(
                f"{label(node)} reads {kind} that no symmetric QuantizeLinear made; TensorRT has INT8 around 0 alone",
                hint=_HINT,
            )
        self._set_zero_point(node, scale)

    def _takes_integers(self, node: ir.Node, index: int) -> bool:
        """True for a node that has an integer kernel for this operand, and reads its others as integers, too."""
        if is_op(node, *_WEIGHTED) and index != 1:
            return False
        others = [
            value
            for position, value in enumerate(node.inputs)
            if position != index and value is not None and not (is_op(node, *_WEIGHTED) and position == 2)
        ]
        return bool(others) and all(is_op(value.producer(), "DequantizeLinear") for value in others)

    def _check_form(self, node: ir.Node, scale: ir.Value) -> None:
        """Refuse blocks, and more than one scale for anything but weights."""
        if attribute_int(node, "block_size", 0):
            raise InputError(f"{label(node)} has scales per block; TensorRT takes one per tensor", hint=_HINT)
        if _array(scale).size > 1:
            source = node.inputs[0]
            first = None if source is None else source.producer()
            if first is not None and is_op(first, "QuantizeLinear"):
                source = first.inputs[0]
            if not _is_constant(source):
                raise InputError(
                    f"{label(node)} has scales per channel of an activation; TensorRT takes one per tensor",
                    hint=_HINT,
                )
        else:
            node.attributes.pop("axis", None)

    def _scale(self, node: ir.Node) -> ir.Value:
        scale = input_at(node, 1)
        array = constant_of(scale)
        if scale is None or array is None:
            raise InputError(
                f"{label(node)} has a computed scale (dynamic quantization); TensorRT takes constants",
                hint=_HINT,
            )
        if not (np.isfinite(array).all() and (array > 0).all()):
            raise InputError(f"{label(node)} has a scale that is not positive", hint=_HINT)
        return scale

    def _float8(self, node: ir.Node) -> None:
        if not self.float8:
            raise InputError(
                f"{label(node)} quantizes to FP8, which this TensorRT on this GPU has not",
                hint="choose INT8, or a GPU of the Ada generation or newer",
            )

    def _as_floats(self, node: ir.Node, floats: Array) -> None:
        """Let a constant's floats take the place of its DequantizeLinear."""
        old = node.outputs[0]
        value = self._constant(f"{old.name}_float", floats)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        inputs = [each for each in node.inputs if each is not None]
        self.graph.remove(node, safe=True)
        for each in inputs:
            drop_unused(each.graph if isinstance(each.graph, ir.Graph) else self.graph, each)

    def _set_zero_point(self, node: ir.Node, scale: ir.Value) -> None:
        """Spell the zero point out: INT8 zeros of the scale's shape, which nodes with one scale share."""
        old = input_at(node, 2)
        array = constant_of(old)
        if (
            array is not None
            and array.dtype == np.int8
            and not array.any()
            and array.shape == _array(scale).shape
        ):
            return
        if scale not in self.zeros:
            zeros = np.zeros(_array(scale).shape, np.int8)
            self.zeros[scale] = self._constant(f"{scale.name}_zero_point", zeros)
        node.resize_inputs(3)
        node.replace_input_with(2, self.zeros[scale])
        if old is not None:
            drop_unused(old.graph if isinstance(old.graph, ir.Graph) else self.graph, old)

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_initializer(self.graph, self.names.value(name), array)


def _array(value: ir.Value) -> Array:
    array = constant_of(value)
    assert array is not None
    return array


def _is_constant(value: ir.Value | None) -> bool:
    return constant_tensor(value) is not None
