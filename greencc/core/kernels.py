"""What a runtime launches: the nodes of a graph grouped into kernels, with their work and their traffic.

Every runtime fuses; which nodes exactly is its own affair. What all of them have in common, and what is applied here:

* A node whose inputs are all constants is computed when the model is loaded, and so is what only tells shapes.
* Reshape and its kin move nothing.
* Quantizers beside an integer operator belong to it (`greencc.core.describe`).
* An element-wise operator (activation, Add, BatchNormalization, ...) that is the only reader of a kernel's result joins
  that kernel: the value between them never reaches memory.
* A lookup or a slice reads no more than it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
    """

    name: str
    op_type: str
    dtype: str
    operations: Mapping[Work, float]
    weight_bytes: float
    activation_bytes: float

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


@dataclass
class _Builder:
    kernels: list[_Open] = field(default_factory=list)
    unknown: list[NodeCost] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    """Values known when the model is loaded, by identity."""
    source: dict[int, _Open] = field(default_factory=dict)
    """The kernel that wrote a value, through views and quantizers."""

    def add(self, node: ir.Node, cost: NodeCost) -> None:
        data = [value for value in node.inputs if value is not None]
        if node.op_type in _FREE or (data and all(self._is_fixed(value) for value in data)):
            self.fixed.update(id(value) for value in node.outputs)
            return
        kernel = self._writer(data)
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear") and not cost.activation_bytes
        if node.op_type in _VIEWS or quantizer:
            if kernel is not None and kernel.result is not None and _read_once(kernel.result):
                kernel.result = node.outputs[0]
                self.source[id(node.outputs[0])] = kernel
            return
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

    def _joins(self, node: ir.Node, kernel: _Open) -> bool:
        if node.op_type not in _JOINING or kernel.result is None or not node.outputs:
            return False
        return any(value is kernel.result for value in node.inputs) and _read_by_one(kernel.result)

    def _join(self, node: ir.Node, cost: NodeCost, kernel: _Open) -> None:
        written = float(bytes_of(node.outputs[0]) or 0)
        kernel.operators.append(cost.op_type.rpartition("::")[2])
        kernel.operations += _work(node, cost)
        kernel.weights += cost.weight_bytes
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
        kernel = _Open(
            cost, [cost.op_type.rpartition("::")[2]], _work(node, cost), weights, moved, None, written
        )
        if len(node.outputs) >= 1 and node.op_type not in ("If", "Loop", "Scan"):
            kernel.result = node.outputs[0]
            if cost.dtype in ("INT8", "UINT8") and cost.macs:
                # Written as integers by its own quantizer.
                kernel.written = min(written, moved)
        self.kernels.append(kernel)
        for value in node.outputs:
            self.source[id(value)] = kernel


def kernels_of(model: ir.Model, bindings: Mapping[str, int] | None = None, batch: int = 1) -> Kernels:
    """Group the nodes of the main graph; control flow is one kernel.

    Args:
        model: With inferred shapes; left unchanged.
        bindings: Sizes of named dynamic dimensions.
        batch: Size of the inputs' first axes, where they are dynamic and not in `bindings`.

    Raises:
        InputError: The sizes contradict the graph.
    """
    builder = _Builder()
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
    )


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
