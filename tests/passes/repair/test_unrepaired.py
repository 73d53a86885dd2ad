"""Nodes that lost inputs and cannot be refit are named; those that only follow are not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes
from greencc.core.passes import Finding
from greencc.passes._repair_select import kept_outputs, layers_after_cut, unrepaired

STEPS, BATCH, WIDTH = 4, 2, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def after(model: ir.Model, removed: dict[str, list[int]], *, later: bool = True) -> list[Finding]:
    infer_shapes(model)
    small = model.clone()
    structure = analyse(small)
    keep = kept_outputs(structure, removed)
    cut(small, structure, removed)
    infer_shapes(small)
    layers = layers_after_cut(model, small, later=later, keep=keep)
    return unrepaired(structure, removed, layers)


def recurrent(g, kind: str, x: str) -> str:
    rows = GATES[kind] * 5
    weights = [g.random(1, rows, WIDTH), g.random(1, rows, 5), g.random(1, 2 * rows)]
    outputs = 3 if kind == "LSTM" else 2
    y, *_ = g.op(kind, x, *weights, hidden_size=5, outputs=outputs, name="reader")
    return y


def einsum(g, x: str) -> str:
    return g.op("Einsum", x, g.random(WIDTH, 3), equation="bti,io->bto", name="reader")


def fused(g, x: str) -> str:
    weights = [g.random(WIDTH, 12), g.random(12)]
    return g.op("Attention", x, *weights, domain="com.microsoft", num_heads=2, name="reader")


def left(g, x: str) -> str:
    return g.op("MatMul", g.random(3, WIDTH), g.op("Transpose", x, perm=[0, 2, 1]), name="reader")


READERS: dict[str, tuple[Callable[..., str], str]] = {
    **{kind: ((lambda g, x, kind=kind: recurrent(g, kind, x)), kind) for kind in GATES},
    "einsum": (einsum, "Einsum"),
    "attention": (fused, "Attention"),
    "left": (left, "this MatMul"),
}


@pytest.mark.parametrize("case", READERS)
def test_a_reader_without_a_form_is_named(graph, case: str) -> None:
    make, form = READERS[case]
    g = graph()
    g.domains["com.microsoft"] = 1
    x = g.op("MatMul", g.input("x", [STEPS, BATCH, 3]), g.random(3, WIDTH), name="before")
    x = g.op("Relu", g.op("Add", x, g.random(WIDTH), name="bias"))
    model = g.model(make(g, x))
    if case == "attention":
        # Shape inference does not know the domain.
        next(node for node in model.graph if node.name == "reader").outputs[0].shape = ir.Shape([4, 2, 4])
    (finding,) = after(model, {"before": [1, 4]})
    assert (finding.kind, finding.rule, finding.node) == ("refused", "refit", "reader")
    assert finding.message == f"'reader': lost inputs, but is not refit: no form for {form}"


def test_units_that_a_recurrent_net_passes_to_itself_are_inputs(graph) -> None:
    g = graph()
    y = recurrent(g, "GRU", g.input("x", [STEPS, BATCH, WIDTH]))
    y = g.op("Squeeze", y, g.const([1], dtype="int64"))
    model = g.model(g.op("MatMul", y, g.random(5, 2), name="end"))
    assert [item.node for item in after(model, {"reader": [0]})] == ["reader"]
    assert after(model, {"reader": []}) == after(model, {}) == []


@pytest.mark.parametrize("later", [False, True])
def test_what_follows_its_outputs_and_what_is_refit_is_not(graph, later: bool) -> None:
    """Biases, normalisations, depthwise and grouped convolutions, scales."""
    g = graph()
    x = g.op("Conv", g.input("x", ["n", 3, 5, 5]), g.random(8, 3, 1, 1), g.random(8), name="first")
    x = g.op("PRelu", g.batch_norm(x, 8, name="norm"), g.random(8, 1, 1), name="slope")
    x = g.op("Conv", x, g.random(8, 1, 3, 3), g.random(8), name="depthwise", group=8)
    x = g.op("Conv", g.op("Mul", x, g.random(8, 1, 1)), g.random(8, 2, 1, 1), name="grouped", group=4)
    x = g.op("Relu", x)
    model = g.model(g.op("Conv", x, g.random(4, 8, 1, 1), g.random(4), name="second"))
    structure = analyse(model.clone())
    removed = {group.name: [0] for group in structure.prunable}
    assert removed
    assert after(model, removed, later=later) == []


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("width", "groups"), [(8, 4), (8, 2)])
def test_a_transposed_convolution_in_groups(graph, width: int, groups: int, later: bool) -> None:
    """It loses whole groups, and with them nothing of what is left; or inputs of each, and is refit."""
    g = graph()
    x = g.op("Conv", g.input("x", ["n", 3, 5, 5]), g.random(width, 3, 1, 1), name="first")
    x = g.op("ConvTranspose", x, g.random(width, 3, 2, 2), name="up", group=groups)
    model = g.model(g.op("Conv", x, g.random(4, 3 * groups, 1, 1), name="second"))
    assert after(model, {"first": [1]}, later=later) == []


def test_without_layers_everything_that_lost_inputs_is_named(graph) -> None:
    g = graph()
    x = g.op("Conv", g.input("x", ["n", 3, 5, 5]), g.random(8, 3, 1, 1), name="first")
    x = g.op("Conv", g.op("Relu", x), g.random(4, 8, 1, 1), g.random(4), name="second")
    model = g.model(g.op("Conv", x, g.random(2, 4, 1, 1), name="third"))
    structure = analyse(model)
    assert [item.node for item in unrepaired(structure, {"first": [0]}, [])] == ["second"]
