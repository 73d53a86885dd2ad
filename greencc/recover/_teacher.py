"""The teacher: the model the bundle was made from, run by the target's runtime beside the student.

Its outputs are computed for every batch as it is trained on: blends of samples have no stored answer, and memory
does not grow with the data. Inner values that both graphs compute under one name and in one shape are features to
match, spread over the depth of the network; a name whose values have nothing in common in the two is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds
from greencc.core.engine import Engine, EngineBuilder
from greencc.core.graph import is_op

MOST_FEATURES = 6
# Two values this far apart (relative, L2) do not stand for the same thing.
_FAR = 1.0
_LAYERS = ("Add", "Relu", "Clip", "Conv", "Gemm", "MatMul", "LayerNormalization", "GlobalAveragePool", "Gelu")


@dataclass(frozen=True)
class Teacher:
    """What teaches.

    Attributes:
        engine: Computes `outputs` and `features`.
        outputs: Names of the float outputs.
        features: Names of the inner values to match.
    """

    engine: Engine
    outputs: tuple[str, ...]
    features: tuple[str, ...]

    def targets(self, feeds: Feeds) -> dict[str, Array]:
        """What the student should give for a batch.

        Raises:
            InputError: The teacher cannot be run on it.
        """
        return self.engine.run(feeds)

    def close(self) -> None:
        self.engine.close()


def open_teacher(model: ir.Model, build: EngineBuilder, features: Sequence[str]) -> Teacher:
    """Open the model with its float outputs and some inner values."""
    outputs = tuple(
        str(value.name)
        for value in model.graph.outputs
        if value.dtype is None or value.dtype.is_floating_point()
    )
    return Teacher(build(model, outputs=[*outputs, *features]), outputs, tuple(features))


def shared_values(teacher: ir.Model, student: ir.Model) -> list[str]:
    """Names of what layers compute in both graphs, in the student's order, outputs aside."""
    theirs = {
        str(value.name)
        for node in teacher.graph
        if is_op(node, *_LAYERS)
        for value in node.outputs
        if not value.is_graph_output()
    }
    ours = [
        str(value.name)
        for node in student.graph
        if is_op(node, *_LAYERS)
        for value in node.outputs
        if not value.is_graph_output()
    ]
    return [name for name in ours if name in theirs]


def matching(
    names: Sequence[str],
    teacher: Mapping[str, Array],
    student: Mapping[str, Array],
    most: int = MOST_FEATURES,
) -> tuple[str, ...]:
    """Of the values given for one batch, those of one shape that are alike, at most `most` spread evenly."""
    alike = []
    for name in names:
        a, b = teacher[name].astype(np.float64), student[name].astype(np.float64)
        if a.shape != b.shape or not np.isfinite(b).all():
            continue
        size = float(np.linalg.norm(a))
        if size > 0 and float(np.linalg.norm(a - b)) < _FAR * size:
            alike.append(name)
    if len(alike) <= most:
        return tuple(alike)
    chosen = np.unique(np.linspace(0, len(alike) - 1, most).round().astype(int))
    return tuple(alike[index] for index in chosen)
