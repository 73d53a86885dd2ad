"""What one run of a model executes: parameters, multiply-accumulates, operations by type, bytes moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx_ir as ir

from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.describe import NodeCost, describe, nodes_cost
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, constant_tensor
from greencc.core.shapes import bind_dims
from greencc.meters.model import OperationCounts


def model_counts(model: ir.Model | None) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates; packed weights count as what they hold, quantized or not."""
    if model is None:
        return None, None
    try:
        facts = describe(model)
    except InputError:
        return None, None
    packed = (node for node in model.graph if node.op_type == "MatMulNBits")
    return facts.params + sum(map(_unpacked, packed)), facts.macs


def _unpacked(node: ir.Node) -> int:
    """Weights of a node less the elements of the bytes, scales and zero points that they are packed in."""
    stored = (constant_tensor(value) for value in node.inputs[1:])
    elements = sum(tensor.size for tensor in stored if tensor is not None)
    return attribute_int(node, "K", 0) * attribute_int(node, "N", 0) - elements


def operation_counts(session: Session, model: ir.Model | None, feeds: Feeds) -> OperationCounts | None:
    """Operations by type and bytes moved of one run of `model` on inputs shaped like `feeds`.

    Nodes whose work cannot be counted (custom operators, unknown sizes) are left out, with a warning.
    """
    if model is None:
        return None
    try:
        costs = nodes_cost(bind_dims(model, {name: array.shape for name, array in feeds.items()}))
    except InputError:
        return None
    unknown = [cost for cost in costs if cost.macs is None or cost.activation_bytes is None]
    if unknown:
        session.warn(
            f"the energy estimate leaves out the operations of {len(unknown)} nodes "
            f"(such as {unknown[0].op_type} {unknown[0].name!r}), which could not be counted"
        )
    return sum_operations(costs)


def sum_operations(costs: Iterable[NodeCost]) -> OperationCounts:
    """Operations by type and bytes moved of some nodes; those that could not be counted are left out."""
    macs: dict[str, float] = defaultdict(float)
    moved = 0.0
    for cost in costs:
        if cost.macs is None or cost.activation_bytes is None:
            continue
        moved += cost.weight_bytes + cost.activation_bytes
        if cost.macs:
            macs[cost.dtype] += cost.macs
    return OperationCounts(dict(macs), moved)
