"""Where a scale per channel of a value goes, so that the function stays the same: back to what computes the value.

A value is to be divided by one positive number per channel. Going up from it, movement nodes rearrange the channels,
positive-homogeneous ones (Relu) and products let the division through, and constants end the way: LayerNormalization's
gamma and beta, the weights and bias of a projection, the factor of a Mul. Which element belongs to which channel is an
array of channel numbers that broadcasts against the value and is rearranged as its elements are; -1 is an element that
keeps its size, as the queries and keys do where one projection computes queries, keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import (
    attribute_int,
    attribute_ints,
    constant_of,
    constant_tensor,
    input_at,
    is_op,
    label,
    static_shape,
)
from greencc.passes._smooth_layout import (
    BlockedError,
    Channels,
    before_gather,
    before_reshape,
    before_split,
    before_squeeze,
)

_SAME_SHAPE = ("Identity", "Dropout", "Relu", "LeakyRelu", "PRelu")
_RESHAPES = ("Reshape", "Flatten")
# By domain and operator: the inputs that hold gamma and, where there is one, beta.
_NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
    ("", "BatchNormalization"): (1, 2),
    ("", "InstanceNormalization"): (1, 2),
}
_PER_AXIS_1 = ("BatchNormalization", "InstanceNormalization")
# A weight that others read as well would have to be stored twice; up to this size that does not matter.
_SMALL_BYTES = 1 << 16


@dataclass(frozen=True)
class Fold:
    """A constant input that takes the scale: it is multiplied by factor[channels].

    Attributes:
        node: The node that reads the constant.
        index: Which of its inputs.
        channels: Broadcasts against the constant.
        divide: The constant is a divisor, so it takes the inverse.
    """

    node: ir.Node
    index: int
    channels: Channels
    divide: bool = False

    def scaled(self, factor: NDArray[np.float64]) -> NDArray[np.float32]:
        """The new constant, computed in float64.

        Args:
            factor: What the value is multiplied by, one number per channel.
        """
        old = constant_of(self.node.inputs[self.index])
        assert old is not None
        # Channel -1 reads the last element.
        spread = np.append(factor, 1.0)[self.channels]
        with np.errstate(over="ignore"):
            wide = old.astype(np.float64) / spread if self.divide else old.astype(np.float64) * spread
            new: NDArray[np.float32] = wide.astype(np.float32)
        return new


@dataclass(frozen=True)
class Trace:
    """What must change for a value to be scaled.

    Attributes:
        folds: The constants that take the scale.
        product: The attention product (MatMul of two activations) that the value is a rearrangement of, if any.
        product_channels: The channels of its result.
    """

    folds: tuple[Fold, ...]
    product: ir.Node | None = None
    product_channels: Channels | None = None


@dataclass(frozen=True)
class Blocked:
    """Why a value cannot be scaled."""

    reason: str


def trace(value: ir.Value, channels: Channels, readers: frozenset[ir.Node]) -> Trace | Blocked:
    """Find the constants that scale a value of the main graph.

    Args:
        value: A float32 value.
        channels: The channel of each element, of the value's rank.
        readers: The nodes that may read the value: they expect it scaled.
    """
    tracer = _Tracer()
    try:
        folds = tuple(tracer.scale(value, channels, readers))
    except BlockedError as blocked:
        return Blocked(str(blocked))
    return Trace(folds, tracer.product, tracer.product_channels)


class _Tracer:
    def __init__(self) -> None:
        self.product: ir.Node | None = None
        self.product_channels: Channels | None = None
        self._moved_only = True

    def scale(self, value: ir.Value, channels: Channels, readers: frozenset[ir.Node]) -> Iterator[Fold]:
        node = value.producer()
        if node is None:
            raise BlockedError(f"{value.name!r} is an input of the graph")
        _check_readers(value, readers)
        _check_dims(value, channels)
        if is_op(node, "Transpose"):
            order = attribute_ints(node, "perm", range(channels.ndim - 1, -1, -1))
            yield from self._up(node, 0, np.transpose(channels, np.argsort(order)))
        elif is_op(node, *_RESHAPES):
            yield from self._up(node, 0, before_reshape(node, channels))
        elif is_op(node, "Squeeze", "Unsqueeze"):
            yield from self._up(node, 0, before_squeeze(node, channels))
        elif is_op(node, "Gather"):
            yield from self._up(node, 0, before_gather(node, channels))
        elif is_op(node, "Split"):
            yield from self._up(node, 0, before_split(node, value, channels))
        elif is_op(node, "MatMul") and _operand_constant(node, 1) is None:
            if channels.shape[-2] != 1:
                raise BlockedError(f"{label(node)} mixes the channels")
            if self._moved_only and _operand_constant(node, 0) is None:
                self.product, self.product_channels = node, channels
            yield from self._up(node, 1, channels)
        else:
            self._moved_only = False
            yield from self._through(node, value, channels)

    def _through(self, node: ir.Node, value: ir.Value, channels: Channels) -> Iterator[Fold]:
        if is_op(node, *_SAME_SHAPE) and value is node.outputs[0]:
            yield from self._up(node, 0, channels)
        elif is_op(node, "Mul", "Div"):
            yield from self._factor(node, channels)
        elif is_op(node, "Add", "Sub", "Sum"):
            for index in range(len(node.inputs)):
                if _operand_constant(node, index) is not None:
                    yield _fold(node, index, channels)
                else:
                    yield from self._up(node, index, channels)
        elif is_op(node, "MatMul", "Gemm", "Conv", "ConvTranspose"):
            yield from _into_weights(node, channels)
        elif (node.domain.replace("ai.onnx", ""), node.op_type) in _NORMS and value is node.outputs[0]:
            yield from _into_norm(node, channels)
        else:
            raise BlockedError(f"{label(node)} does not let a scale through")

    def _up(self, node: ir.Node, index: int, channels: Channels) -> Iterator[Fold]:
        value = input_at(node, index)
        if value is None or value.dtype not in (ir.DataType.FLOAT, None):
            raise BlockedError(f"an operand of {label(node)} is not float32")
        shape = value.shape
        if shape is None:
            raise BlockedError(f"the rank of {value.name!r} is unknown")
        if len(shape) < channels.ndim:
            extra = channels.ndim - len(shape)
            if any(size != 1 for size in channels.shape[:extra]):
                raise BlockedError(f"{label(node)} broadcasts {value.name!r}")
            channels = channels.reshape(channels.shape[extra:])
        yield from self.scale(value, channels, frozenset((node,)))

    def _factor(self, node: ir.Node, channels: Channels) -> Iterator[Fold]:
        """One factor takes the scale: a projection above rather than this node's constant, so that every value
        on the way is scaled; of two computed ones the first that can."""
        count = 1 if is_op(node, "Div") else 2
        computed = [index for index in range(count) if _operand_constant(node, index) is None]
        reasons = []
        for index in reversed(computed):
            inner = _Tracer()
            try:
                folds = list(inner._up(node, index, channels))
            except BlockedError as blocked:
                reasons.append(str(blocked))
                continue
            yield from folds
            return
        constant = next((i for i in range(2) if _operand_constant(node, i) is not None), None)
        if constant is None:
            raise BlockedError(reasons[0] if reasons else f"{label(node)} has no operand to scale")
        yield _fold(node, constant, channels, divide=is_op(node, "Div") and constant == 1)


def _operand_constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    return constant_tensor(input_at(node, index))


def _check_readers(value: ir.Value, readers: frozenset[ir.Node]) -> None:
    """Nobody but the readers may see the value, except slices that hold none of its channels."""
    if value.is_graph_output():
        raise BlockedError(f"{value.name!r} is an output of the graph")
    uses = list(value.uses())
    inside = [use for use in uses if use.node in readers]
    if len({use.node for use in inside}) != len(inside):
        raise BlockedError(f"{value.name!r} is read twice by {label(inside[0].node)}")
    for use in uses:
        if use.node not in readers and not any(_apart(use.node, reader) for reader in readers):
            raise BlockedError(f"{value.name!r} is also read by {label(use.node)}")


def _apart(other: ir.Node, reader: ir.Node) -> bool:
    """True for two Gathers that take different slices of one value."""
    if not (is_op(other, "Gather") and is_op(reader, "Gather")) or other.graph is not reader.graph:
        return False
    if other.inputs[0] is not reader.inputs[0] or other.inputs[1] is reader.inputs[0]:
        return False
    shape = reader.inputs[0].shape if reader.inputs[0] is not None else None
    if shape is None:
        return False
    rank = len(shape)
    if attribute_int(other, "axis", 0) % rank != attribute_int(reader, "axis", 0) % rank:
        return False
    size = shape[attribute_int(reader, "axis", 0) % rank]
    picked = [constant_of(node.inputs[1]) for node in (other, reader)]
    if not isinstance(size, int) or picked[0] is None or picked[1] is None:
        return False
    return not set((picked[0].reshape(-1) % size).tolist()) & set((picked[1].reshape(-1) % size).tolist())


def _check_dims(value: ir.Value, channels: Channels) -> None:
    """The channels must run along known dimensions."""
    if value.shape is None or len(value.shape) != channels.ndim:
        raise BlockedError(f"the shape of {value.name!r} is unknown")
    for size, dim in zip(channels.shape, value.shape, strict=True):
        if size not in (1, dim):
            raise BlockedError(f"{value.name!r} has an unknown or different number of channels")


def _fold(node: ir.Node, index: int, channels: Channels, *, divide: bool = False) -> Fold:
    tensor = _operand_constant(node, index)
    value = input_at(node, index)
    if tensor is None or value is None or tensor.dtype is not ir.DataType.FLOAT:
        raise BlockedError(f"a constant of {label(node)} is computed, can be overridden, or is not float32")
    if tensor.nbytes > _SMALL_BYTES and len(value.uses()) > 1:
        raise BlockedError(f"the weight of {label(node)} is shared")
    if math.prod(np.broadcast_shapes(tuple(tensor.shape.numpy()), channels.shape)) > max(
        tensor.size, channels.size
    ):
        raise BlockedError(f"a constant of {label(node)} would grow")
    # Leading dimensions that the constant lacks and the channels do not use.
    rank = max([len(tensor.shape), *(channels.ndim - axis for axis, n in enumerate(channels.shape) if n > 1)])
    return Fold(node, index, channels.reshape(channels.shape[max(0, channels.ndim - rank) :]), divide)


def _vector(node: ir.Node, channels: Channels, axis: int) -> Channels:
    """The channels as a vector, when they run along one axis alone."""
    axis %= channels.ndim
    if any(size != 1 for position, size in enumerate(channels.shape) if position != axis):
        raise BlockedError(f"the channels are spread over positions of {label(node)}")
    return channels.reshape(-1)


def _into_weights(node: ir.Node, channels: Channels) -> Iterator[Fold]:
    tensor = _operand_constant(node, 1)
    if tensor is None:
        raise BlockedError(f"the weight of {label(node)} is not constant")
    rank = len(tensor.shape)
    vector = _vector(node, channels, 1 if node.op_type.startswith("Conv") else -1)
    spread = vector
    if node.op_type == "Conv":
        spread = vector.reshape(-1, *(1,) * (rank - 1))
    elif node.op_type == "ConvTranspose":
        groups = attribute_int(node, "group", 1)
        inputs = int(tensor.shape.numpy()[0]) // groups
        spread = np.repeat(vector.reshape(groups, -1), inputs, axis=0)
        spread = spread.reshape(*spread.shape, *(1,) * (rank - 2))
    elif rank != 2:
        raise BlockedError(f"the weight of {label(node)} is not a matrix")
    elif node.op_type == "Gemm" and attribute_int(node, "transB", 0):
        spread = vector.reshape(-1, 1)
    yield _fold(node, 1, spread)
    if input_at(node, 2) is not None:
        yield _fold(node, 2, vector)


def _into_norm(node: ir.Node, channels: Channels) -> Iterator[Fold]:
    inputs = _NORMS[node.domain.replace("ai.onnx", ""), node.op_type]
    if node.op_type in _PER_AXIS_1:
        if attribute_int(node, "training_mode", 0):
            raise BlockedError(f"{label(node)} is in training mode")
        channels = _vector(node, channels, 1)
    else:
        first = attribute_int(node, "axis", -1) % channels.ndim
        if any(size != 1 for size in channels.shape[:first]):
            raise BlockedError(f"the channels are spread over positions of {label(node)}")
        channels = channels.reshape(channels.shape[first:])
    for index in inputs:
        value = input_at(node, index)
        if value is None:
            continue
        if index == inputs[0] and static_shape(value) is None:
            raise BlockedError(f"the scale of {label(node)} has an unknown shape")
        yield _fold(node, index, channels)
