"""Operation signatures: what decides how long a weighted node takes, whatever the model and its weights.

Nodes of equal signature run the same kernel on the same shapes, so one of them is measured for all (the regions of
ModelOpt's autotuning). A signature holds enough to build such a node anew (`greencc.compiler.micro`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.graph import ONNX_DOMAINS, constant_tensor, is_op, opset_of, sole_consumer, static_shape
from greencc.core.shapes import bind_dims

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What runtimes compute in the kernel of the weighted node right before it. A further node is measured by itself.
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Gelu"}
)
_MICROSOFT_ACTIVATIONS = frozenset({"Gelu", "FastGelu", "QuickGelu", "BiasGelu"})
_GATES = ("Sigmoid", "HardSigmoid")
# Operands this small are parameters (the bounds of a Clip): their values decide what the runtime can fuse.
_PARAMETER_ELEMENTS = 1
# The newest of a range of opsets among which nothing of what is measured differs: attributes of Clip became inputs
# in 11, scales per channel came with 13, blocks and 4-bit types with 21.
_OPSET_RANGES = ((11, 12, 12), (13, 20, 20), (21, 1 << 30, 21))

Plain = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Attributes = tuple[tuple[str, Plain], ...]


@dataclass(frozen=True)
class Operand:
    """An input of a node.

    Attributes:
        dtype: ONNX name.
        shape: As measured.
        constant: Whether it is a weight, a bias or a parameter.
        values: Of a parameter; None: any will do.
        open_axes: Axes whose size the model leaves open: runtimes fuse less around them (ONNX Runtime makes a Gemm of a
            MatMul of rank 3 and its bias where all sizes are fixed, and then loses its integer kernel).
    """

    dtype: str
    shape: tuple[int, ...]
    constant: bool
    values: tuple[float, ...] | None = None
    open_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Absorbed:
    """A node right behind, computed in the same kernel.

    Attributes:
        op_type: Of the node.
        domain: "" for that of ONNX.
        attributes: Sorted by name.
        operands: Its constant inputs, after the value that it absorbs; None where one is absent.
        gated: The result is multiplied with the value that was absorbed: x Sigmoid(x).
    """

    op_type: str
    domain: str = ""
    attributes: Attributes = ()
    operands: tuple[Operand | None, ...] = ()
    gated: bool = False


@dataclass(frozen=True)
class Signature:
    """What decides how long a weighted node takes on a device.

    Attributes:
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        domain: "" for that of ONNX.
        attributes: Sorted by name: groups, strides, pads, ...
        operands: In the order of the inputs; None where one is absent.
        absorbed: What the same kernel computes afterwards, in order.
        opset: Stands for a range of opsets among which the measured nodes do not differ.
    """

    op_type: str
    domain: str
    attributes: Attributes
    operands: tuple[Operand | None, ...]
    absorbed: tuple[Absorbed, ...]
    opset: int

    @property
    def text(self) -> str:
        """The same for equal signatures, in all versions of Python: for keys."""
        return repr(self)

    @property
    def label(self) -> str:
        """Short, for people: ``Conv 3x3 g1 1x16x28x28 * 32x16x3x3 + Relu``."""
        shapes = ["x".join(map(str, operand.shape)) or "scalar" for operand in self.operands[:2] if operand]
        extras = ["Mul" if item.gated else item.op_type for item in self.absorbed]
        groups = f" g{self.attribute('group', 1)}" if self.op_type.startswith("Conv") else ""
        return " + ".join((f"{self.op_type}{groups} {' * '.join(shapes)}", *extras))

    def attribute(self, name: str, default: Plain) -> Plain:
        """The value of an attribute."""
        return dict(self.attributes).get(name, default)


def signatures(model: ir.Model, feeds: Feeds) -> dict[str, Signature]:
    """Signatures of the weighted nodes of the main graph, by node name.

    Args:
        model: Its nodes named (`ensure_names`); left unchanged.
        feeds: One inference: gives the shapes.

    Returns:
        In graph order. A node whose shapes stay unknown, or whose weights are computed, has none.

    Raises:
        InputError: The feeds do not fit the model.
    """
    bound = bind_dims(model, {name: array.shape for name, array in feeds.items()})
    opset = _opset_class(opset_of(bound))
    found: dict[str, Signature] = {}
    for declared, node in zip(model.graph, bound.graph, strict=True):
        signature = _signature(node, opset)
        if signature is not None:
            found[str(node.name)] = _opened(signature, declared)
    return found


def _opened(signature: Signature, declared: ir.Node) -> Signature:
    """With the axes that stay open in the model."""
    operands = tuple(
        operand
        if operand is None or operand.constant or value is None
        else replace(operand, open_axes=_open_axes(value, len(operand.shape)))
        for operand, value in zip(signature.operands, declared.inputs, strict=True)
    )
    return replace(signature, operands=operands)


def _open_axes(value: ir.Value, rank: int) -> tuple[int, ...]:
    if value.shape is None:
        return tuple(range(rank))
    return tuple(axis for axis, size in enumerate(value.shape) if not isinstance(size, int))


def _opset_class(opset: int) -> int:
    return next((newest for first, last, newest in _OPSET_RANGES if first <= opset <= last), opset)


def _signature(node: ir.Node, opset: int) -> Signature | None:
    if not is_op(node, *WEIGHTED):
        return None
    attributes = _attributes(node)
    operands = _operands(node.inputs)
    if attributes is None or operands is None or len(operands) < 2:
        return None
    first, second = operands[:2]
    if first is None or second is None or first.constant == second.constant:
        return None
    return Signature(node.op_type, "", attributes, operands, tuple(_absorbed(node)), opset)


def _attributes(node: ir.Node) -> Attributes | None:
    """None where one is bound at the call of a function, or holds more than numbers and texts."""
    found: list[tuple[str, Plain]] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref():
            return None
        value = attribute.value
        if isinstance(value, list | tuple):
            value = tuple(value)
        if not isinstance(value, int | float | str | tuple):
            return None
        found.append((name, value))
    return tuple(found)


def _operands(values: Sequence[ir.Value | None]) -> tuple[Operand | None, ...] | None:
    """None where a shape or a type is not known."""
    found: list[Operand | None] = []
    for value in values:
        operand = None if value is None else _operand(value)
        if value is not None and operand is None:
            return None
        found.append(operand)
    return tuple(found)


def _operand(value: ir.Value) -> Operand | None:
    tensor = constant_tensor(value)
    if tensor is not None:
        shape = tuple(int(size) for size in tensor.shape.numpy())
        small = tensor.size <= _PARAMETER_ELEMENTS
        values = tuple(float(item) for item in tensor.numpy().reshape(-1)) if small else None
        return Operand(tensor.dtype.name, shape, constant=True, values=values)
    known = static_shape(value)
    if known is None or value.dtype is None:
        return None
    return Operand(value.dtype.name, known, constant=False)


def _absorbed(node: ir.Node) -> Iterator[Absorbed]:
    """The bias of a product, then one activation."""
    value = node.outputs[0]
    follower = sole_consumer(value)
    if node.op_type == "MatMul" and is_op(follower, "Add"):
        assert follower is not None
        others = [item for item in follower.inputs if item is not value]
        operand = _operand(others[0]) if len(others) == 1 and others[0] is not None else None
        if operand is not None and operand.constant:
            yield Absorbed("Add", operands=(operand,))
            value = follower.outputs[0]
            follower = sole_consumer(value)
    gate = _gate(value)
    if gate is not None:
        yield replace(gate, gated=True)
    elif follower is not None and _is_activation(follower) and (found := _unary(follower, value)) is not None:
        yield found


def _is_activation(node: ir.Node) -> bool:
    if node.domain == "com.microsoft":
        return node.op_type in _MICROSOFT_ACTIVATIONS
    return node.domain in ONNX_DOMAINS and node.op_type in _ACTIVATIONS


def _unary(node: ir.Node, value: ir.Value) -> Absorbed | None:
    """A node of one value and constants; None where it reads something else."""
    if not node.inputs or node.inputs[0] is not value:
        return None
    attributes, operands = _attributes(node), _operands(node.inputs[1:])
    if attributes is None or operands is None:
        return None
    if any(operand is not None and not operand.constant for operand in operands):
        return None
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    return Absorbed(node.op_type, domain, attributes, operands)


def _gate(value: ir.Value) -> Absorbed | None:
    """x Sigmoid(x): two nodes read x, and one of them the other's result."""
    readers = [usage.node for usage in value.uses()]
    if len(readers) != 2 or value.is_graph_output():
        return None
    for gate, product in (readers, readers[::-1]):
        if is_op(gate, *_GATES) and is_op(product, "Mul") and sole_consumer(gate.outputs[0]) is product:
            return _unary(gate, value)
    return None
