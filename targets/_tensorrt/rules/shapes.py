"""Shapes: TensorRT builds for a range of sizes that it is told, and for at most eight axes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from greencc.core.graph import is_op
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.rules._context import Context, name_of

_AXES = 8
_SIZED_BY_DATA = ("NonMaxSuppression", "NonZero")


def check_inputs(context: Context) -> Iterator[Fault]:
    """Inputs whose sizes are open: without an optimization profile nothing is built."""
    for value in context.model.graph.inputs:
        name = value.name or ""
        if value.shape is None:
            yield error(
                Rule.DYNAMIC_SHAPE,
                name,
                "the input has an unknown number of axes",
                "export the model with the rank of its inputs",
            )
            continue
        free = free_axes(value)
        if free:
            sizes = "x".join(str(dim) if isinstance(dim, int) else "N" for dim in value.shape)
            yield warning(
                Rule.DYNAMIC_SHAPE,
                name,
                f"the input has open sizes ({', '.join(free)}): nothing is built without a shape profile",
                f"fix them, or build with --minShapes, --optShapes and --maxShapes={name}:{sizes}",
            )


def free_axes(value: ir.Value) -> list[str]:
    """Axes of a value that have no fixed size, each with its name where it has one."""
    if value.shape is None:
        return []
    return [
        f"axis {index}" + (f" {dim.value!r}" if dim.value else "")
        for index, dim in enumerate(value.shape)
        if isinstance(dim, ir.SymbolicDim)
    ]


def check_rank(context: Context) -> Iterator[Fault]:
    """Values of more than eight axes."""
    for value in context.model.graph.inputs:
        if value.shape is not None and value.shape.rank() > _AXES:
            yield _too_many(value.name or "", value.shape.rank())
    for node in context.nodes:
        for value in node.outputs:
            if value.shape is not None and value.shape.rank() > _AXES:
                yield _too_many(name_of(node), value.shape.rank())


def _too_many(name: str, rank: int) -> Fault:
    return error(
        Rule.RANK,
        name,
        f"it has {rank} axes, and TensorRT tensors have at most {_AXES}",
        "merge axes with a Reshape",
    )


def check_data_dependent(context: Context) -> Iterator[Fault]:
    """Sizes that only the data tell."""
    version = context.machine.version
    for node in context.nodes:
        if not is_op(node, *_SIZED_BY_DATA):
            continue
        if version < TensorRtVersion(8, 5):
            if node.op_type == "NonMaxSuppression":
                yield warning(
                    Rule.DATA_DEPENDENT_SHAPE,
                    name_of(node),
                    f"NonMaxSuppression of TensorRT {version} pads its output to the most boxes there may be",
                    "expect padding in the output, or run it on the CPU",
                )
            continue
        yield warning(
            Rule.DATA_DEPENDENT_SHAPE,
            name_of(node),
            f"how much {node.op_type} gives depends on the data: memory is taken for the most there may be",
            "run it on the CPU, or ask the output allocator for its size",
        )
