"""Attention masks of -1e9 or -3.4e38, which FP16 cannot hold, where -32768 does the same.

A mask is added to scores before a Softmax, which gives exp(-32768) = 0 just as it gives exp(-1e9) = 0, as long as a row
has an unmasked score. -65504 itself would not do: with a negative score added it becomes -inf, and a row of nothing
else NaN. -32768 plus a score within `limit` stays finite. Anywhere else such a constant means what it says and keeps
its node in float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from greencc.core.graph import Names, add_initializer, constant_of, constant_tensor, is_op
from greencc.core.passes import Context
from greencc.passes._half_schema import MOVEMENT
from greencc.passes._ranges import Range

RULE = "clamp-mask"
_FLOOR = -32768.0


def mask_factors(candidates: Collection[ir.Node]) -> list[ir.Value]:
    """Values multiplied by a mask constant: whether they stay within [0, 1] has to be seen."""
    return [
        other
        for node in candidates
        if is_op(node, "Mul") and (found := _constant_operand(node)) is not None
        for other in (node.inputs[1 - found],)
        if other is not None
    ]


def clamp_masks(
    model: ir.Model, candidates: list[ir.Node], ranges: Mapping[ir.Value, Range], ctx: Context
) -> tuple[int, frozenset[ir.Value]]:
    """Raise mask constants of the candidates to -32768.

    Returns:
        How many were changed, and the values that may now hold sums with them.
    """
    names: Names | None = None
    masked: set[ir.Value] = set()
    changed = 0
    for node in candidates:
        index = _constant_operand(node)
        if index is None:
            continue
        path: set[ir.Value] = set()
        if not _ends_in_softmax(node.outputs[0], is_op(node, "Where", "Add"), path):
            continue
        if is_op(node, "Mul"):
            other = node.inputs[1 - index]
            seen = None if other is None else ranges.get(other)
            if seen is None or seen.low < 0 or seen.high > 1:
                continue
        value = node.inputs[index]
        array = constant_of(value)
        assert value is not None
        assert array is not None
        if not ctx.rewrites.allow(RULE, str(node.name)):
            continue
        names = names or Names(model)
        clamped = add_initializer(
            model.graph,
            names.value(f"{value.name}_clamped"),
            np.asarray(np.maximum(array, np.float32(_FLOOR))),
        )
        node.replace_input_with(index, clamped)
        if value.is_initializer() and not value.uses():
            del model.graph.initializers[str(value.name)]
        masked |= {*path, clamped}
        changed += 1
    return changed, frozenset(masked)


def _constant_operand(node: ir.Node) -> int | None:
    """Index of an operand that is a mask constant, for the operators that apply masks."""
    if not is_op(node, "Add", "Mul", "Where"):
        return None
    for index in (1, 2) if is_op(node, "Where") else (0, 1):
        tensor = constant_tensor(node.inputs[index])
        if tensor is None or tensor.dtype is not ir.DataType.FLOAT or not tensor.size:
            continue
        array = tensor.numpy()
        # Positive values beside the mask are fine as long as FP16 holds them; that is checked later.
        if float(array.min()) < _FLOOR and not np.isnan(array).any():
            return index
    return None


def _ends_in_softmax(value: ir.Value, added: bool, path: set[ir.Value]) -> bool:
    """Whether a value only goes into Softmax, through additions and data movement."""
    path.add(value)
    uses = tuple(value.uses())
    if value.is_graph_output() or not uses:
        return False
    for use in uses:
        node = use.node
        if is_op(node, "Softmax") and added:
            continue
        if is_op(node, "Add") or (is_op(node, *MOVEMENT) and use.idx == 0):
            joins = added or is_op(node, "Add")
        elif is_op(node, "Where") and use.idx > 0:
            joins = True
        else:
            return False
        if not all(_ends_in_softmax(output, joins, path) for output in node.outputs):
            return False
    return True
