"""Factors of a layer: the thin operators it becomes, what they cost, and how they are put into a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import Names, add_initializer, attribute_int, attribute_ints, drop_unused, input_at
from greencc.passes._decompose_problem import Matrix, Problem
from greencc.passes._exclude import came_from

Attributes = Mapping[str, int | str | float | Sequence[int]]


@dataclass(frozen=True, eq=False)
class Factor:
    """One operator of a factorised layer.

    Attributes:
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        weight: As the operator stores it.
        attributes: Of the node.
        macs: Of one inference of one sample.
    """

    op_type: str
    weight: Matrix
    attributes: Attributes = field(default_factory=dict)
    macs: int = 0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A factorised layer.

    Attributes:
        form: What it is called.
        ranks: Its inner channels.
        factors: In the order they run; the last one takes the bias.
        error: Squared output error relative to the outputs, in the norm of the problem.
    """

    form: str
    ranks: tuple[int, ...]
    factors: tuple[Factor, ...]
    error: float

    @property
    def macs(self) -> int:
        return sum(factor.macs for factor in self.factors)

    @property
    def params(self) -> int:
        return sum(factor.weight.size for factor in self.factors)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for candidates that take equally long."""
        return tuple(
            (
                factor.op_type,
                factor.weight.shape,
                tuple(sorted((k, str(v)) for k, v in factor.attributes.items())),
            )
            for factor in self.factors
        )

    def __str__(self) -> str:
        return f"{self.form} of rank {' x '.join(map(str, self.ranks))}"


def pointwise(problem: Problem, weight: Matrix, places: Sequence[int], groups: int = 1) -> Factor:
    """A 1x1 Conv from (outputs of all groups, inputs of one)."""
    rank = len(problem.view.kernel)
    attributes: dict[str, int | Sequence[int]] = {"kernel_shape": [1] * rank}
    if groups > 1:
        attributes["group"] = groups
    return Factor(
        "Conv", weight.reshape(*weight.shape, *[1] * rank), attributes, math.prod(places) * weight.size
    )


def along(
    problem: Problem, weight: Matrix, axes: Sequence[int], done: Sequence[int], groups: int = 1
) -> Factor:
    """A Conv that has the layer's extent, stride, padding and dilation along some axes and is 1 wide along others.

    Args:
        problem: The layer.
        weight: (outputs, inputs of a group, one size per axis of the kernel).
        axes: Which axes.
        done: Those whose size is that of the output already.
        groups: Of the new Conv.
    """
    node, rank = problem.view.node, len(problem.view.kernel)
    strides = attribute_ints(node, "strides", (1,) * rank)
    dilations = attribute_ints(node, "dilations", (1,) * rank)
    pads = attribute_ints(node, "pads", (0,) * (2 * rank))
    attributes: dict[str, int | str | Sequence[int]] = {
        "kernel_shape": list(weight.shape[2:]),
        "strides": [strides[axis] if axis in axes else 1 for axis in range(rank)],
        "dilations": [dilations[axis] if axis in axes else 1 for axis in range(rank)],
    }
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string() != "NOTSET":
        # One wide and with stride 1, an axis is padded by nothing.
        attributes["auto_pad"] = auto.as_string()
    else:
        attributes["pads"] = [pads[i] if i % rank in axes else 0 for i in range(2 * rank)]
    if groups > 1:
        attributes["group"] = groups
    finished = {*axes, *done}
    places = [problem.after[a] if a in finished else problem.before[a] for a in range(rank)]
    return Factor("Conv", weight, attributes, math.prod(places) * weight.size)


def emit(
    node: ir.Node, candidate: Candidate, source: ir.Value, weights: Sequence[ir.Value], names: Names
) -> list[ir.Node]:
    """The nodes of a factorised layer, in no graph yet; the last one is named after the layer.

    Args:
        node: The layer.
        candidate: What it becomes.
        source: The input.
        weights: One per factor.
        names: Hands out the names of inner nodes and values.
    """
    nodes: list[ir.Node] = []
    last = len(candidate.factors) - 1
    result = node.outputs[0]
    for index, (factor, weight) in enumerate(zip(candidate.factors, weights, strict=True)):
        inputs: list[ir.Value | None] = [source, weight]
        attributes = dict(factor.attributes)
        if index == last:
            if (bias := input_at(node, 2)) is not None:
                inputs.append(bias)
            if node.op_type == "Gemm":
                attributes.update(
                    {n: node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes}
                )
        base = factor_name(node, index)
        made = ir.node(
            factor.op_type,
            inputs,
            attributes,
            name=str(node.name) if index == last else names.node(base),
            outputs=[ir.Value(name=names.value(f"{base}_out"), type=result.type)],
        )
        came_from(made, [node])
        nodes.append(made)
        source = made.outputs[0]
    nodes[-1].outputs[0].shape = result.shape
    return nodes


def factor_name(node: ir.Node, index: int | str) -> str:
    """What a factor of a layer is called, unless it is the last one or the name is taken."""
    return f"{node.name}_factor{index}"


def stored_weights(
    graph: ir.Graph, node: ir.Node, candidate: Candidate, dtype: np.dtype[np.generic], names: Names
) -> list[ir.Value]:
    """Register the weights of a candidate."""
    made = []
    for index, factor in enumerate(candidate.factors):
        array: Array = np.ascontiguousarray(factor.weight.astype(dtype))
        made.append(add_initializer(graph, names.value(f"{factor_name(node, index)}_weight"), array))
    return made


def replace_layer(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put the factors where a layer was; its output keeps its name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    weight = node.inputs[1]
    graph.remove(node, safe=True)
    name, old.name = old.name, None
    new.name = name
    if weight is not None:
        drop_unused(graph, weight)


def same_layer(nodes: Sequence[ir.Node]) -> bool:
    """Whether nodes that share a weight use it in the same way."""
    return len({(node.op_type, tuple(_attributes(node))) for node in nodes}) == 1


def _attributes(node: ir.Node) -> Iterator[str]:
    for name in sorted(node.attributes):
        yield f"{name}={node.attributes[name].value}"


def product_attributes(node: ir.Node) -> dict[str, int]:
    """How a Gemm stores its weight."""
    return {"transB": 1} if node.op_type == "Gemm" and attribute_int(node, "transB", 0) else {}
