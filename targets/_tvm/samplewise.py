"""Which models treat every sample by itself, so that a batch may run in parts.

A proof by induction over the graph, not a guess from shapes: a value is *batched* when its first axis is the batch and
its row i is computed from row i of the inputs alone, in a way that does not depend on the batch's size. Inputs are by
assumption; each operator below has the condition under which its results are when its operands are. What is not listed,
or whose condition does not hold, or whose axes are not constants, proves nothing, and neither does a graph with such a
node: an operator that mixes samples unseen would give wrong results, a batch that runs whole only takes longer.
Sizes computed with Shape do not take part: `resolving` has written those down that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op
from greencc.targets._tvm.constants import folded


def is_samplewise(model: ir.Model) -> bool:
    """Whether row i of every output is computed from row i of every input alone.

    Args:
        model: As `resolving.resolve_shapes` leaves it.

    Returns:
        False also where it is so but cannot be proven.
    """
    inputs = list(model.graph.inputs)
    names = {
        value.shape[0].value for value in inputs if value.shape and isinstance(value.shape[0], ir.SymbolicDim)
    }
    if len(names) != 1 or names == {None} or not all(_has_rows(value) for value in inputs):
        return False
    batched = set(inputs)
    needed = _needed(model.graph)
    for node in model.graph:
        if node in needed and not _is_constant(node):
            rule = _RULES.get(node.op_type) if is_op(node, node.op_type) else None
            used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
            if rule is None or not all(map(_has_rows, used)) or not rule(_Read(node, batched)):
                return False
            batched.update(used)
    return bool(model.graph.outputs) and all(value in batched for value in model.graph.outputs)


def _has_rows(value: ir.Value) -> bool:
    """The first axis is free, and no other one."""
    if value.shape is None or value.shape.rank() == 0:
        return False
    first, *rest = value.shape
    return not isinstance(first, int) and all(isinstance(size, int) for size in rest)


def _needed(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that outputs are computed from."""
    wanted = [value.producer() for value in graph.outputs]
    needed: set[ir.Node] = set()
    while wanted:
        node = wanted.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        wanted.extend(value.producer() for value in node.inputs if value is not None)
    return needed


def _is_constant(node: ir.Node) -> bool:
    return all(folded(value) is not None for value in node.outputs)


class _Read:
    """A node with what is known of its operands."""

    def __init__(self, node: ir.Node, batched: set[ir.Value]) -> None:
        self.node = node
        self.op_type = node.op_type
        self.operands = [value for value in node.inputs if value is not None]
        self._batched = batched

    def is_batched(self, index: int) -> bool:
        value = input_at(self.node, index)
        return value is not None and value in self._batched

    def shape(self, index: int) -> list[int | ir.SymbolicDim]:
        """Of an operand that is batched or constant."""
        value = self.node.inputs[index]
        array = folded(value)
        if array is not None:
            return list(array.shape)
        assert value is not None
        assert value.shape is not None
        return list(value.shape)

    def rank(self, index: int) -> int:
        return len(self.shape(index))

    def is_fixed(self, *indices: int) -> bool:
        """These operands are constants, or absent."""
        return all(
            value is None or folded(value) is not None for value in (input_at(self.node, i) for i in indices)
        )

    def data_only(self, least: int = 1) -> bool:
        """The first operand is batched and has this rank at least, the others are constants."""
        return (
            self.is_batched(0) and self.is_fixed(*range(1, len(self.node.inputs))) and self.rank(0) >= least
        )

    def fits(self, index: int, rank: int) -> bool:
        """A constant that is broadcast over a result of this rank is so over the batch; a batched one has its rank."""
        shape = self.shape(index)
        if self.is_batched(index):
            return len(shape) == rank
        return len(shape) < rank or (len(shape) == rank and shape[0] == 1)

    def ints(self, index: int, name: str) -> tuple[int, ...] | None:
        """Numbers given as a constant operand or as an attribute; None where they are neither."""
        value = input_at(self.node, index)
        if value is None:
            return attribute_ints(self.node, name, ()) if name in self.node.attributes else None
        array = constant_of(value)
        return None if array is None else tuple(int(item) for item in array.reshape(-1))

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front of the first operand."""
        axis, rank = attribute_int(self.node, "axis", default), self.rank(0)
        return axis + rank if axis < 0 else axis

    def outputs_used(self) -> int:
        """How many outputs anybody reads, up to the last one."""
        used = [bool(value.uses() or value.is_graph_output()) for value in self.node.outputs]
        return max((index + 1 for index, flag in enumerate(used) if flag), default=0)


_Rule = Callable[[_Read], bool]


def _one(read: _Read) -> bool:
    """Each element, or each sample as a whole, from the same of the first operand."""
    return read.data_only()


def _broadcast(read: _Read) -> bool:
    # Shapes are aligned at their ends: of operands of several ranks, the batch of one would meet another axis.
    rank = max((read.rank(i) for i, value in enumerate(read.node.inputs) if read.is_batched(i)), default=0)
    return rank > 0 and all(
        (read.is_batched(index) or read.is_fixed(index)) and read.fits(index, rank)
        for index, value in enumerate(read.node.inputs)
        if value is not None
    )


def _image(read: _Read) -> bool:
    # A second output of MaxPool has indices into the whole batch.
    return read.data_only(least=3) and read.outputs_used() == 1


def _normalized(read: _Read) -> bool:
    return (
        read.data_only(least=2)
        and read.outputs_used() == 1
        and not attribute_int(read.node, "training_mode", 0)
    )


def _grid(read: _Read) -> bool:
    if not read.data_only() or attribute_int(read.node, "block_size", 0):
        return False
    return all(size == 1 for size in read.shape(1)) or read.axis(1) > 0


def _gemm(read: _Read) -> bool:
    if attribute_int(read.node, "transA", 0) or not read.is_batched(0) or not read.is_fixed(1):
        return False
    return input_at(read.node, 2) is None or (
        (read.is_batched(2) or read.is_fixed(2)) and read.fits(2, rank=2)
    )


def _matmul(read: _Read) -> bool:
    kinds = [read.is_batched(index) for index in (0, 1)]
    if not all(kind or read.is_fixed(index) for index, kind in enumerate(kinds)):
        return False
    left, right = read.rank(0), read.rank(1)
    match kinds:
        case [True, True]:
            # Of matrices, the batch would be what is summed over, or a second time an axis of the result.
            return left == right >= 3
        case [True, False]:
            return left >= 2 and (right <= 2 or read.fits(1, left))
        case [False, True]:
            return right >= 3 and (left <= 2 or read.fits(0, right))
    return False


def _along_axis(default: int) -> _Rule:
    return lambda read: read.data_only(least=2) and read.axis(default) > 0


def _softmax(read: _Read) -> bool:
    # The default axis is 1 up to opset 12 and the last since: neither is the first, of two or more.
    return read.data_only(least=2) and read.axis(-1) > 0


def _concat(read: _Read) -> bool:
    same = all(read.is_batched(index) for index in range(len(read.node.inputs)))
    return same and read.axis(0) > 0


def _axes(read: _Read, index: int, name: str = "axes", rank: int | None = None) -> bool:
    """The axes are given, and the batch is not among them."""
    axes = read.ints(index, name)
    rank = read.rank(0) if rank is None else rank
    return axes is not None and len(axes) > 0 and all(axis % rank != 0 for axis in axes)


def _reduce(read: _Read) -> bool:
    return read.data_only(least=2) and _axes(read, 1)


def _slice(read: _Read) -> bool:
    return read.data_only(least=2) and _axes(read, 3)


def _squeeze(read: _Read) -> bool:
    return read.data_only(least=2) and _axes(read, 1)


def _unsqueeze(read: _Read) -> bool:
    axes = read.ints(1, "axes")
    return read.data_only() and axes is not None and _axes(read, 1, rank=read.rank(0) + len(axes))


def _pad(read: _Read) -> bool:
    if not read.data_only(least=2):
        return False
    if input_at(read.node, 3) is not None:
        return _axes(read, 3)
    pads, rank = read.ints(1, "pads"), read.rank(0)
    return pads is not None and len(pads) == 2 * rank and pads[0] == pads[rank] == 0


def _gather(read: _Read) -> bool:
    if read.data_only(least=2):
        return read.axis(0) > 0
    # Rows of a table.
    return read.is_fixed(0) and read.is_batched(1) and read.axis(0) == 0


def _transpose(read: _Read) -> bool:
    return read.data_only() and attribute_ints(read.node, "perm", ())[:1] == (0,)


def _reshape(read: _Read) -> bool:
    wanted = read.ints(1, "shape")
    if not read.data_only() or not wanted or attribute_int(read.node, "allowzero", 0):
        return False
    if wanted[0] == 0:
        return True
    rest = [
        read.shape(0)[axis] if size == 0 and axis < read.rank(0) else size for axis, size in enumerate(wanted)
    ]
    sample = [int(size) for size in read.shape(0)[1:] if isinstance(size, int)]
    # The first size follows from the others, and is the batch where they hold one sample.
    return (
        wanted[0] == -1
        and all(isinstance(size, int) and size > 0 for size in rest[1:])
        and _product(rest[1:]) == _product(sample)
    )


def _product(sizes: Sequence[int | ir.SymbolicDim]) -> int:
    return int(np.prod([size for size in sizes if isinstance(size, int)], dtype=object))


def _flatten(read: _Read) -> bool:
    return read.data_only() and read.axis(1) == 1


def _resize(read: _Read) -> bool:
    crops = read.node.attributes.get("coordinate_transformation_mode")
    if not read.data_only(least=2) or "axes" in read.node.attributes or len(read.node.inputs) > 3:
        return False
    if crops is not None and crops.as_string() == "tf_crop_and_resize":
        return False
    # The operand is the second one of Upsample and of the first Resize.
    scales = constant_of(input_at(read.node, len(read.node.inputs) - 1))
    return scales is not None and scales.dtype.kind == "f" and scales.size == read.rank(0) and scales[0] == 1


def _dropout(read: _Read) -> bool:
    training = constant_of(input_at(read.node, 2))
    return read.data_only() and read.outputs_used() == 1 and (training is None or not training.any())


_ELEMENTS = (
    *(
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
    ),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN"),
    *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid"),
    *("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
_BROADCASTS = (
    *("Add", "And", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
    *("Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_IMAGES = (
    *("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool"),
    *("GlobalLpPool", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "SpaceToDepth"),
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_ELEMENTS, _one),
    **dict.fromkeys(_BROADCASTS, _broadcast),
    **dict.fromkeys(_IMAGES, _image),
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), _reduce),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("ArgMax", "ArgMin", "Split"), _along_axis(0)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _grid),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _normalized,
    "Concat": _concat,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _along_axis(-1),
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
