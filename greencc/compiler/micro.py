"""Models of many single operations side by side: what signatures are measured in.

Every signature is a branch of its own, from an input of the graph to an output, so that many operations cost one build.
Weights and inputs are random: how long a kernel takes does not depend on them. It does depend on what is still in the
processor's caches when its turn comes, so a joint model passes as many bytes through them between two turns as the
network does that the operations are of (`working_set`): no more branches than that, and ballast for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.compiler.signatures import Absorbed, Operand, Signature
from greencc.core.data import Array, Feeds
from greencc.core.graph import add_initializer
from greencc.core.model import infer_shapes

BALLAST = "ballast"
_SEED = 0
# Less stays in the caches anyway, and more than this does in none.
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = 20, 26
# 4-bit types came with IR version 10, opset 21 with it.
_IR_VERSIONS = ((21, 10), (0, 8))


@dataclass(frozen=True)
class MicroModel:
    """A model of branches.

    Attributes:
        model: In float.
        feeds: One inference.
        nodes: Name of the weighted node of each signature.
    """

    model: ir.Model
    feeds: Feeds
    nodes: dict[Signature, str]


def joint_model(signatures: Sequence[Signature]) -> MicroModel:
    """A branch for each signature; all of one opset."""
    opset = signatures[0].opset
    version = next(version for first, version in _IR_VERSIONS if opset >= first)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, "com.microsoft": 1}, name="kernels")
    builder = _Builder(graph, np.random.default_rng(_SEED))
    nodes = {signature: builder.add(signature, f"k{index}_") for index, signature in enumerate(signatures)}
    model = ir.Model(graph, ir_version=version)
    infer_shapes(model)
    return MicroModel(model, builder.feeds, nodes)


def split(signatures: Sequence[Signature], limit: int, most: int) -> list[list[Signature]]:
    """Signatures of one opset each, that together take no more than `limit` bytes, and no more than `most` of them."""
    batches: list[list[Signature]] = []
    room = 0
    for signature in sorted(signatures, key=lambda item: (item.opset, item.text)):
        size = operand_bytes(signature)
        last = batches[-1] if batches else []
        if not last or last[0].opset != signature.opset or size > room or len(last) >= most:
            batches.append([])
            room = limit
        batches[-1].append(signature)
        room -= size
    return batches


def working_set(signatures: Iterable[Signature]) -> int:
    """Bytes that one inference passes through the caches, as a power of two from 1 to 64 MiB.

    Args:
        signatures: Of every node of a network, equal ones as often as they occur.
    """
    weights = activations = 0
    for item in signatures:
        own = sum(_bytes(operand) for operand in item.operands if operand and operand.constant)
        weights += own
        # Their memory is used again and again.
        activations = max(activations, operand_bytes(item) - own)
    exponent = round(math.log2(max(1, weights + activations)))
    return 1 << min(max(exponent, _SMALLEST_EXPONENT), _LARGEST_EXPONENT)


def ballast(model: ir.Model, micro: MicroModel, size: int) -> tuple[str, Array] | None:
    """Add a branch that moves the bytes which are missing to `size`; name and value of its input.

    Args:
        model: What passes made of the joint model; it is edited.
        micro: The joint model: how much smaller its weights have become, so much less is missing.
        size: Of the working set, in float.

    Returns:
        None where nothing is missing.
    """
    missing = size - sum(map(operand_bytes, micro.nodes))
    share = _stored(model) / max(1, _stored(micro.model))
    # Every element is read and written.
    count = int(missing * min(share, 1.0)) // (2 * 4)
    if count < 1:
        return None
    value = ir.Value(name=BALLAST, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((count,)))
    model.graph.inputs.append(value)
    node = ir.node("Relu", [value], name=BALLAST)
    model.graph.append(node)
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{BALLAST}_out", value.type, ir.Shape((count,))
    model.graph.outputs.append(result)
    # Not zeros: the system has one page of them for all.
    return BALLAST, np.ones(count, np.float32)


def operand_bytes(signature: Signature) -> int:
    """Bytes of the inputs and weights of a signature; outputs count as the inputs."""
    return sum(_bytes(operand) * (1 if operand.constant else 2) for operand in signature.operands if operand)


def _bytes(operand: Operand) -> int:
    return math.prod(operand.shape) * _dtype(operand).itemsize


def _stored(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class _Builder:
    def __init__(self, graph: ir.Graph, rng: np.random.Generator) -> None:
        self._graph = graph
        self._rng = rng
        self.feeds: dict[str, Array] = {}

    def add(self, signature: Signature, prefix: str) -> str:
        """Add a branch; the name of its weighted node."""
        inputs = [
            None if operand is None else self._value(operand, f"{prefix}in{index}")
            for index, operand in enumerate(signature.operands)
        ]
        name = f"{prefix}{signature.op_type}"
        node = ir.node(signature.op_type, inputs, dict(signature.attributes), name=name)
        value = self._append(node)
        for index, item in enumerate(signature.absorbed):
            value = self._absorb(item, value, f"{prefix}{index}_")
        self._graph.outputs.append(value)
        return name

    def _absorb(self, item: Absorbed, value: ir.Value, prefix: str) -> ir.Value:
        operands = [
            None if operand is None else self._value(operand, f"{prefix}in{index}")
            for index, operand in enumerate(item.operands)
        ]
        attributes = dict(item.attributes)
        name = f"{prefix}{item.op_type}"
        result = self._append(
            ir.node(item.op_type, [value, *operands], attributes, domain=item.domain, name=name)
        )
        if not item.gated:
            return result
        return self._append(ir.node("Mul", [value, result], name=f"{prefix}Mul"))

    def _append(self, node: ir.Node) -> ir.Value:
        self._graph.append(node)
        node.outputs[0].name = f"{node.name}_out"
        return node.outputs[0]

    def _value(self, operand: Operand, name: str) -> ir.Value:
        dtype = _dtype(operand)
        if operand.values is not None:
            array = np.array(operand.values).reshape(operand.shape).astype(dtype)
        else:
            # About the size of trained weights, so that nothing overflows or becomes denormal.
            spread = 1.0 / math.sqrt(max(1, math.prod(operand.shape[1:]))) if operand.constant else 1.0
            array = (spread * self._rng.standard_normal(operand.shape, dtype=np.float32)).astype(dtype)
        if operand.constant:
            return add_initializer(self._graph, name, array)
        sizes = [
            ir.SymbolicDim(f"{name}_{axis}") if axis in operand.open_axes else size
            for axis, size in enumerate(operand.shape)
        ]
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType[operand.dtype]), shape=ir.Shape(sizes))
        self._graph.inputs.append(value)
        self.feeds[name] = array
        return value


def _dtype(operand: Operand) -> np.dtype[np.generic]:
    return np.dtype(ir.DataType[operand.dtype].numpy())
