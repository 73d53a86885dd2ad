"""Compute ahead of time what does not depend on the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.errors import UsageError
from greencc.core.graph import attribute_int, constant_of, constant_tensor, is_op
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._branches import InlineBranch
from greencc.passes._evaluate import evaluate, is_foldable
from greencc.passes._rewriter import Edit, Refusal, Rule, Scope, apply_rules, node_name, refuse, remove
from greencc.passes._symbolic import Dim, Symbols, dimension

_SHAPE_OPS = frozenset(
    {
        "Shape",
        "Size",
        "Gather",
        "Slice",
        "Concat",
        "Add",
        "Sub",
        "Mul",
        "Squeeze",
        "Unsqueeze",
        "Cast",
        "Reshape",
    }
)


class _FoldNode(Rule):
    """A deterministic node of constants becomes constant, unless that grows the model by more than the limit."""

    name = "fold-node"
    ops: frozenset[str] = frozenset()

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        if not is_foldable(node):
            return None
        grown = _growth(node, [_inferred_bytes(value) for value in node.outputs])
        if grown is not None and grown > self.max_bytes:
            return self._too_large(node, grown)
        results = evaluate(node, scope)
        if isinstance(results, str):
            return refuse(node, results)
        grown = _growth(node, [array.nbytes for array in results])
        if grown is not None and grown > self.max_bytes:
            return self._too_large(node, grown)
        if any(not _can_be_constant(value) for value in node.outputs):
            return None
        return Edit(node_name(node), lambda: replace_by_constants(node, results, scope))

    def _too_large(self, node: ir.Node, grown: int) -> Refusal:
        return refuse(
            node, f"is not folded: the model would grow by {grown:,} bytes (limit {self.max_bytes:,})"
        )


class _FoldShape(Rule):
    """Shape computations whose result is known although the tensor's other dimensions are not."""

    name = "fold-shape"
    ops = _SHAPE_OPS

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        value = node.outputs[0]
        if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or not _can_be_constant(value):
            return None
        if is_op(node, "Size"):
            x = node.inputs[0]
            if x is None or x.shape is None or not x.shape.is_static():
                return None
            array: NDArray[Any] = np.array(int(np.prod(x.shape.numpy(), dtype=np.int64)), dtype=np.int64)
            return Edit(node_name(node), lambda: replace_by_constants(node, [array], scope))
        vector = Symbols(scope).vector(value)
        if vector is None or not vector.known:
            return None
        dtype = np.int64 if value.dtype == ir.DataType.INT64 else np.int32
        result = np.array(vector.elements, dtype=dtype)
        result = result.reshape(()) if vector.scalar else result
        return Edit(node_name(node), lambda: replace_by_constants(node, [result], scope))


class _FoldReshapeTarget(Rule):
    """A computed Reshape target with one dynamic dimension, or with dimensions copied from the input, is constant.

    `0` in a target copies the input's dimension of the same index, `-1` is inferred.
    """

    name = "fold-reshape-target"
    ops = frozenset({"Reshape"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        x, target = node.inputs[0], node.inputs[1]
        if x is None or target is None or constant_tensor(target) is not None:
            return None
        vector = Symbols(scope).vector(target)
        if vector is None or vector.scalar or attribute_int(node, "allowzero", 0) or x.shape is None:
            return None
        shape: list[int] = []
        for axis, element in enumerate(vector.elements):
            if isinstance(element, int):
                shape.append(element)
            elif isinstance(element, Dim) and axis < len(x.shape) and dimension(x, axis) == element:
                shape.append(0)
            else:
                shape.append(-1)
        if shape.count(-1) > 1:
            return None
        array = np.array(shape, dtype=np.int64)

        def apply() -> None:
            node.replace_input_with(1, scope.constant(array, f"{node_name(node)}/shape", node))

        return Edit(node_name(node), apply)


class _FoldConstantOfShape(Rule):
    """A ConstantOfShape of a small known shape becomes constant."""

    name = "fold-node"
    ops = frozenset({"ConstantOfShape"})
    limit: ClassVar[int] = 1024

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        shape = constant_of(node.inputs[0])
        if shape is None or int(np.prod(shape, dtype=np.int64)) > self.limit:
            return None
        results = evaluate(node, scope)
        if isinstance(results, str) or not _can_be_constant(node.outputs[0]):
            return None
        return Edit(node_name(node), lambda: replace_by_constants(node, results, scope))


class _LiftConstant(Rule):
    """Constant nodes become initializers, which is what the other rules and the quantizer look for."""

    name = "lift-constant"
    ops = frozenset({"Constant"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        value = node.outputs[0]
        tensor = constant_tensor(value)
        if tensor is None or scope.function is not None or value.is_graph_output():
            return None

        def apply() -> None:
            name = value.name or scope.names.value(node_name(node))
            lifted = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            value.replace_all_uses_with(lifted)
            remove(node)
            scope.graph.register_initializer(lifted)

        return Edit(node_name(node), apply)


def replace_by_constants(node: ir.Node, results: Sequence[NDArray[Any]], scope: Scope) -> None:
    """Put constants in the place of a node's outputs; they keep the outputs' names."""
    for value, array in zip(node.outputs, results, strict=True):
        name = value.name
        if not value.uses() and not value.is_graph_output():
            continue
        constant = scope.constant(array, f"{name}/folded", node)
        value.replace_all_uses_with(constant)
        if scope.function is None and name:
            ir.convenience.rename_values([value, constant], [f"{name}/replaced", name])
    remove(node)


def _can_be_constant(value: ir.Value) -> bool:
    """Graph outputs stay computed: runtimes differ in whether they accept an initializer as output."""
    return not value.is_graph_output()


def _inferred_bytes(value: ir.Value) -> int | None:
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return None
    if value.dtype in {ir.DataType.UNDEFINED, ir.DataType.STRING}:
        return None
    return int(np.prod(value.shape.numpy(), dtype=np.int64) * value.dtype.itemsize)


def _growth(node: ir.Node, sizes: Sequence[int | None]) -> int | None:
    """Bytes the weights grow by: outputs minus the inputs that nothing else reads; None when not known."""
    if any(size is None for size in sizes):
        return None
    freed = 0
    for value in dict.fromkeys(node.inputs):
        tensor = constant_tensor(value)
        if value is not None and tensor is not None and {use.node for use in value.uses()} == {node}:
            freed += tensor.nbytes
    return sum(size for size in sizes if size is not None) - freed


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Fold constant expressions, known shape computations and If nodes with a constant condition.

    Attributes:
        max_bytes: A node is folded only if the model's weights grow by at most this many bytes.
    """

    name: ClassVar[str] = "fold-constants"
    summary: ClassVar[str] = "compute ahead of time what does not depend on the inputs"

    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise UsageError(f"fold-constants: max_bytes is {self.max_bytes}", hint="give 0 or more bytes")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        rules: tuple[Rule, ...] = (
            _LiftConstant(),
            InlineBranch(),
            _FoldConstantOfShape(),
            _FoldNode(self.max_bytes),
            _FoldShape(),
            _FoldReshapeTarget(),
        )
        total = Outcome()
        while True:
            # New constants let inference learn more shapes, which in turn make more shapes constant.
            infer_shapes(model)
            outcome = apply_rules(model, ctx, rules)
            total.changed += outcome.changed
            total.findings = outcome.findings
            if not outcome.changed or _stopped(ctx):
                return total


def _stopped(ctx: Context) -> bool:
    limit = ctx.rewrites.limit
    return limit is not None and len(ctx.rewrites.applied) >= limit
