"""What a runtime launches: the nodes of a graph grouped into kernels, with their work and their traffic.

Every runtime fuses; which nodes exactly is its own affair. What all of them have in common, and what is applied here:

* A node whose inputs are all constants is computed when the model is loaded, and so is what only tells shapes.
* Reshape and its kin move nothing.
* Quantizers beside an integer operator belong to it (`greencc.core.describe`).
* An element-wise operator (activation, Add, BatchNormalization, ...) that is the only reader of a kernel's result joins
  that kernel: the value between them never reaches memory.
* A lookup or a slice reads no more than it writes.

Some builders compute every conversion within the kernels beside it (`kernels_of`, `fused_conversions`): quantizers and
casts of what a kernel writes are part of that kernel, dequantizers and casts of what it reads of the one that reads.

Whether an element-wise operator joins is the least certain of this, so every kernel also has the fewest and the most
launches that it may be (`Kernel.launches`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import onnx_ir as ir

from greencc.core.describe import NodeCost, bytes_of, costed_nodes
from greencc.core.graph import attribute_int, constant_tensor, static_shape


class Work(Enum):
    """Kinds of arithmetic, which reach different shares of a device's peak."""

    PRODUCT = "product"
    """Matrix products and convolutions whose groups are wide; operations are 2 per multiply-accumulate."""
    GROUPED = "grouped"
    """Depthwise convolutions and others with few channels in a group; likewise."""
    FUNCTION = "function"
    """Exponentials, divisions and reductions: Softmax, Sigmoid, Gelu, normalisations; one per element."""


# A convolution with fewer input channels in a group than this finds too little to share between outputs.
_NARROW_GROUP = 4
_FUNCTIONS = frozenset(
    {
        "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Exp", "Log", "Erf", "Gelu", "FastGelu", "QuickGelu", "BiasGelu",
        "LayerNormalization", "SkipLayerNormalization", "GroupNormalization", "InstanceNormalization",
        "SimplifiedLayerNormalization", "RMSNormalization", "Softplus", "Mish", "Swish", "Pow", "Sqrt", "Sin", "Cos",
        "Elu", "Selu", "Softsign", "LRN",
    }
)  # fmt: skip
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_FREE = frozenset({"Shape", "Size", "Constant", "ConstantOfShape", "Range"})
_JOINING = frozenset(
    {
        "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Gelu",
        "FastGelu", "QuickGelu", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Add", "Sub", "Mul", "Div", "Pow", "Mish", "Swish",
        "BatchNormalization", "Cast", "Softplus", "Min", "Max",
    }
)  # fmt: skip
# What every runtime computes along with the product or convolution before it.
_SURELY_JOINING = frozenset({"Relu", "Clip", "BatchNormalization", "Cast"})
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_SELECTING = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
# What has integer kernels everywhere, when a float graph is looked at as if it were quantized.
INTEGER_OPERATORS = frozenset(
    {
        "Conv", "MatMul", "Gemm", "ConvTranspose", "Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool",
        "Concat", "Resize", "Relu", "Clip", "LeakyRelu", "Pad", "Transpose", "Split", "Slice", "HardSwish",
        "HardSigmoid",
    }
)  # fmt: skip
_FLOATS = {"FLOAT": 4, "DOUBLE": 8, "FLOAT16": 2, "BFLOAT16": 2}


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: Of its first node.
        op_type: Operators of its nodes, such as ``Conv+Relu``.
        dtype: ONNX name of the element type it computes in.
        operations: By kind of work; empty for what only moves data.
        weight_bytes: Constants it reads.
        activation_bytes: Other values it reads and writes.
        launches: The fewest and the most that it may be: an element-wise operator that stands alone may join another
            kernel, and one that has joined this may be a kernel of its own.
    """

    name: str
    op_type: str
    dtype: str
    operations: Mapping[Work, float]
    weight_bytes: float
    activation_bytes: float
    launches: tuple[int, int] = (1, 1)

    @property
    def multiplications(self) -> float:
        """Operations of products, 2 per multiply-accumulate."""
        return self.operations.get(Work.PRODUCT, 0.0) + self.operations.get(Work.GROUPED, 0.0)

    @property
    def operator(self) -> str:
        """The operator that the others have joined."""
        return self.op_type.partition("+")[0]


@dataclass(frozen=True)
class Kernels:
    """The kernels of a graph in order, and the nodes whose work is unknown, which are left out."""

    items: tuple[Kernel, ...]
    unknown: tuple[NodeCost, ...]

    @property
    def weight_bytes(self) -> float:
        return sum(kernel.weight_bytes for kernel in self.items)

    @property
    def activation_bytes(self) -> float:
        """Of the kernel with the most."""
        return max((kernel.activation_bytes for kernel in self.items), default=0.0)


@dataclass
class _Open:
    """A kernel that later nodes may still join through `result`."""

    first: NodeCost
    operators: list[str]
    operations: Counter[Work]
    weights: float
    moved: float
    result: ir.Value | None
    written: float
    """Bytes of `result`, part of `moved`."""
    launches: tuple[int, int] = (1, 1)


@dataclass
class _Builder:
    fused_conversions: bool
    kernels: list[_Open] = field(default_factory=list)
    unknown: list[NodeCost] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    """Values known when the model is loaded, by identity."""
    source: dict[int, _Open] = field(default_factory=dict)
    """The kernel that wrote a value, through views and quantizers."""
    held: dict[int, float] = field(default_factory=dict)
    """Bytes of values that lie in memory as what they are converted from or to."""
    loose: Counter[int] = field(default_factory=Counter)
    """Conversions that the kernel reading a value may launch for itself."""

    def add(self, node: ir.Node, cost: NodeCost) -> None:
        data = [value for value in node.inputs if value is not None]
        if node.op_type in _FREE or (data and all(self._is_fixed(value) for value in data)):
            self.fixed.update(id(value) for value in node.outputs)
            return
        kernel = self._writer(data)
        if self.fused_conversions and _converts(node):
            self._convert(node, kernel)
            return
        quantizer = node.op_type in _QUANTIZERS and not cost.activation_bytes
        if node.op_type in _VIEWS or quantizer:
            self._pass_on(node)
            if kernel is not None and kernel.result is not None and _read_once(kernel.result):
                kernel.result = node.outputs[0]
                self.source[id(node.outputs[0])] = kernel
            return
        if self.fused_conversions:
            cost = self._as_held(node, cost)
        if cost.macs is None or cost.activation_bytes is None:
            self.unknown.append(cost)
            return
        if kernel is not None and self._joins(node, kernel):
            self._join(node, cost, kernel)
            return
        self._start(node, cost)

    def _is_fixed(self, value: ir.Value) -> bool:
        return id(value) in self.fixed or constant_tensor(value) is not None

    def _writer(self, data: list[ir.Value]) -> _Open | None:
        """The latest of the kernels that wrote these values."""
        writers = [self.source[id(value)] for value in data if id(value) in self.source]
        return max(writers, key=self.kernels.index, default=None)

    def _bytes(self, value: ir.Value) -> float | None:
        return self.held.get(id(value), bytes_of(value))

    def _pass_on(self, node: ir.Node) -> None:
        """What was converted stays so behind a view."""
        source, result = node.inputs[0], node.outputs[0]
        if source is not None and id(source) in self.held:
            self.held[id(result)] = self.held[id(source)]
            self.loose[id(result)] += self.loose.pop(id(source), 0)

    def _convert(self, node: ir.Node, kernel: _Open | None) -> None:
        """A conversion within the kernel that writes its input, or that reads its output."""
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        before, after = self._bytes(source), bytes_of(result)
        if kernel is None:
            # Nothing wrote it: whoever reads it converts, or a small kernel in front of that does.
            if before is not None:
                self.held[id(result)] = before
            # Of several in a row only one: a dequantizer is always part of its reader.
            self.loose.pop(id(source), None)
            self.loose[id(result)] = 1
            return
        if before is not None and after is not None:
            self.held[id(result)] = min(before, after)
        self.source[id(result)] = kernel
        if kernel.result is not source or source.is_graph_output() or after is None:
            return
        readers = [usage.node for usage in source.uses()]
        if all(_converts(reader) for reader in readers):
            # The kernel writes what it is converted to. Several readers want the same: the first one counts.
            written = float(min(kernel.written, after))
            kernel.moved += written - kernel.written
            kernel.result, kernel.written = result if len(readers) == 1 else None, written
        elif node.op_type != "DequantizeLinear":
            kernel.moved += after

    def _as_held(self, node: ir.Node, cost: NodeCost) -> NodeCost:
        """The traffic of a node with every value as it lies in memory."""
        weights, moved = 0, 0.0
        for value in node.inputs:
            if value is None or constant_tensor(value) is not None:
                continue
            if self._is_fixed(value):
                weights += _stored_as_float(value)
                continue
            size = self._bytes(value)
            if size is None:
                return cost
            moved += size
        written = [bytes_of(value) for value in node.outputs if value.name]
        if cost.activation_bytes is None or any(size is None for size in written):
            return cost
        moved += sum(size or 0 for size in written)
        return replace(cost, weight_bytes=cost.weight_bytes + weights, activation_bytes=round(moved))

    def _joins(self, node: ir.Node, kernel: _Open) -> bool:
        if node.op_type not in _JOINING or kernel.result is None or not node.outputs:
            return False
        return any(value is kernel.result for value in node.inputs) and _read_by_one(kernel.result)

    def _join(self, node: ir.Node, cost: NodeCost, kernel: _Open) -> None:
        written = float(bytes_of(node.outputs[0]) or 0)
        kernel.operators.append(cost.op_type.rpartition("::")[2])
        kernel.operations += _work(node, cost)
        kernel.weights += cost.weight_bytes
        more = self._loose(node) + (node.op_type not in _SURELY_JOINING)
        kernel.launches = (kernel.launches[0], kernel.launches[1] + more)
        # What was written before stays in registers: neither written there nor read here.
        reads = (
            (cost.activation_bytes or 0)
            - written
            - sum(kernel.written for v in node.inputs if v is kernel.result)
        )
        kernel.moved += max(0.0, reads) + written - kernel.written
        kernel.result, kernel.written = node.outputs[0], written
        self.source[id(node.outputs[0])] = kernel

    def _start(self, node: ir.Node, cost: NodeCost) -> None:
        written = float(sum(bytes_of(value) or 0 for value in node.outputs if value.name))
        weights, moved = float(cost.weight_bytes), float(cost.activation_bytes or 0)
        if node.op_type in _SELECTING:
            weights, moved = min(weights, written), min(moved, 2.0 * written)
        # A product takes in what is element-wise beside it, on either side.
        alone = node.op_type not in (*_JOINING, *_QUANTIZERS)
        kernel = _Open(
            cost,
            [cost.op_type.rpartition("::")[2]],
            _work(node, cost),
            weights,
            moved,
            None,
            written,
            (int(alone), 1 + self._loose(node)),
        )
        if len(node.outputs) >= 1 and node.op_type not in ("If", "Loop", "Scan"):
            kernel.result = node.outputs[0]
            if cost.dtype in ("INT8", "UINT8") and cost.macs:
                # Written as integers by its own quantizer.
                kernel.written = min(written, moved)
        self.kernels.append(kernel)
        for value in node.outputs:
            self.source[id(value)] = kernel

    def _loose(self, node: ir.Node) -> int:
        return sum(self.loose.pop(id(value), 0) for value in _given(node))


def kernels_of(
    model: ir.Model,
    bindings: Mapping[str, int] | None = None,
    batch: int = 1,
    *,
    fused_conversions: bool = False,
) -> Kernels:
    """Group the nodes of the main graph; control flow is one kernel.

    Args:
        model: With inferred shapes; left unchanged.
        bindings: Sizes of named dynamic dimensions.
        batch: Size of the inputs' first axes, where they are dynamic and not in `bindings`.
        fused_conversions: Quantizers, dequantizers and casts between float types are computed within the kernels
            beside them, as TensorRT does; else only those beside an integer operator.

    Raises:
        InputError: The sizes contradict the graph.
    """
    builder = _Builder(fused_conversions)
    for node, cost in costed_nodes(model, bindings, batch):
        builder.add(node, cost)
    return Kernels(tuple(_closed(kernel) for kernel in builder.kernels), tuple(builder.unknown))


def in_precision(kernels: Kernels, dtype: str) -> Kernels:
    """Float kernels counted as if they ran in another type: each element takes its bytes.

    For integers only operators that have integer kernels everywhere change; the rest stays as it is.

    Args:
        kernels: Of a graph.
        dtype: ``FLOAT``, ``FLOAT16`` or ``INT8``.
    """
    width = {"FLOAT": 4.0, "FLOAT16": 2.0, "INT8": 1.0}[dtype]

    def convert(kernel: Kernel) -> Kernel:
        known = _FLOATS.get(kernel.dtype)
        if known is None or known <= width or (dtype == "INT8" and kernel.operator not in INTEGER_OPERATORS):
            return kernel
        share = width / known
        return replace(
            kernel,
            dtype=dtype,
            weight_bytes=kernel.weight_bytes * share,
            activation_bytes=kernel.activation_bytes * share,
        )

    return Kernels(tuple(convert(kernel) for kernel in kernels.items), kernels.unknown)


def _closed(kernel: _Open) -> Kernel:
    return Kernel(
        name=kernel.first.name,
        op_type="+".join(kernel.operators),
        dtype=kernel.first.dtype,
        operations=dict(kernel.operations),
        weight_bytes=kernel.weights,
        activation_bytes=kernel.moved,
        launches=kernel.launches,
    )


def _given(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)


def _converts(node: ir.Node) -> bool:
    """A quantizer, a dequantizer, or a cast from one float type to another."""
    if node.op_type in _QUANTIZERS:
        return True
    if node.op_type != "Cast" or node.inputs[0] is None:
        return False
    types = [value.dtype for value in (node.inputs[0], node.outputs[0])]
    return all(dtype is not None and dtype.is_floating_point() for dtype in types)


def _stored_as_float(value: ir.Value) -> int:
    """Bytes of a weight that the file has as floats behind a Q/DQ pair; 0 for others, which count as stored."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or constant_tensor(node.inputs[0]) is not None:
        return 0
    return bytes_of(node.inputs[0]) or 0


def _read_once(value: ir.Value) -> bool:
    return len(tuple(value.uses())) == 1 and not value.is_graph_output()


def _read_by_one(value: ir.Value) -> bool:
    """One node reads the value, maybe twice (x * x)."""
    return len({id(usage.node) for usage in value.uses()}) == 1 and not value.is_graph_output()


def _work(node: ir.Node, cost: NodeCost) -> Counter[Work]:
    if cost.macs:
        return Counter({Work.GROUPED if _is_narrow(node) else Work.PRODUCT: 2.0 * cost.macs})
    if node.op_type in _FUNCTIONS:
        shape = static_shape(node.outputs[0]) or ()
        elements = 1
        for size in shape:
            elements *= size
        return Counter({Work.FUNCTION: float(elements)})
    return Counter()


def _is_narrow(node: ir.Node) -> bool:
    """A grouped convolution whose groups have few input channels."""
    if (
        node.op_type not in ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger")
        or attribute_int(node, "group", 1) == 1
    ):
        return False
    tensors = (static_shape(value) for value in node.inputs[1:4])
    kernel = next((shape for shape in tensors if shape is not None and len(shape) >= 3), None)
    return kernel is not None and kernel[1] < _NARROW_GROUP
