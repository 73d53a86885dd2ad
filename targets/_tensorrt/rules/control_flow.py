"""If, Loop and Scan, and inputs that have defaults."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from greencc.core.graph import subgraphs_of
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.rules._context import Context, name_of, tensor_of

_UNEQUAL_SINCE = TensorRtVersion(9, 0)


def check(context: Context) -> Iterator[Fault]:
    """Bodies whose results do not fit together."""
    for node in context.of("If"):
        yield from _branches(node, context)
    for node in context.of("Loop"):
        yield from _loop(node)


def _branches(node: ir.Node, context: Context) -> Iterator[Fault]:
    bodies = subgraphs_of(node)
    if len(bodies) != 2:
        return
    for one, other in zip(bodies[0].outputs, bodies[1].outputs, strict=False):
        if one.name and one.name == other.name:
            yield error(
                Rule.CONTROL_FLOW,
                name_of(node),
                f"both branches call their output {one.name!r}, and names must differ",
                "rename one of them",
            )
        if one.shape is None or other.shape is None:
            continue
        if one.shape.rank() != other.shape.rank():
            yield error(
                Rule.CONTROL_FLOW,
                name_of(node),
                f"its branches give {one.shape.rank()} and {other.shape.rank()} axes, and must give as many",
                "reshape one of them",
            )
        elif context.machine.version < _UNEQUAL_SINCE and _differ(one.shape, other.shape):
            yield error(
                Rule.CONTROL_FLOW,
                name_of(node),
                f"its branches give {list(one.shape)} and {list(other.shape)}, which must broadcast before "
                f"{_UNEQUAL_SINCE}",
                "pad one of them",
            )


def _differ(one: ir.Shape, other: ir.Shape) -> bool:
    return any(
        isinstance(a, int) and isinstance(b, int) and a != b and 1 not in (a, b)
        for a, b in zip(one, other, strict=True)
    )


def _loop(node: ir.Node) -> Iterator[Fault]:
    bodies = subgraphs_of(node)
    if not bodies:
        return
    if len(node.inputs) < 2 or node.inputs[1] is None:
        yield error(
            Rule.CONTROL_FLOW,
            name_of(node),
            "its condition is left out, which the parser does not read",
            "give a constant condition of true",
        )
    carried = max(len(node.inputs) - 2, 0)
    scans = len(node.outputs) - carried
    if scans > 0 and tensor_of(node.inputs[0]) is None:
        yield error(
            Rule.CONTROL_FLOW,
            name_of(node),
            "it stacks outputs over a number of rounds that is not constant",
            "give a constant trip count, or write into a tensor of fixed size",
        )
    body = bodies[0]
    for before, after in zip(body.inputs[2:], body.outputs[1 : 1 + carried], strict=False):
        if before.shape is not None and after.shape is not None and _changes(before.shape, after.shape):
            yield error(
                Rule.CONTROL_FLOW,
                name_of(node),
                f"the value carried as {before.name!r} changes its shape from round to round",
                "keep its shape the same",
            )


def _changes(before: ir.Shape, after: ir.Shape) -> bool:
    if before.rank() != after.rank():
        return True
    return any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(before, after, strict=True)
    )


def check_defaults(context: Context) -> Iterator[Fault]:
    """Inputs with a default: the parser makes constants of them, and callers cannot set them."""
    graph = context.model.graph
    inner = {value.name or "" for value in graph.inputs if value.const_value is not None}
    names = sorted(inner | set(context.defaults))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield warning(
            Rule.INPUT_DEFAULT,
            names[0],
            f"inputs with a default are constants to TensorRT, and cannot be fed: {', '.join(names[:3])}{more}",
            "drop them from the inputs, or drop the default",
        )
