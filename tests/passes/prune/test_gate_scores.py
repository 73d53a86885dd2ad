"""Scores from gradients against numerical derivatives of the loss with respect to gates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from greencc.core.data import Array, Feeds
from greencc.core.errors import InputError, UnavailableError
from greencc.core.graph import ensure_names
from greencc.core.groups import PruneGroup, analyse
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding
from greencc.passes import _score_gates
from greencc.passes._score_gates import gated_pieces
from greencc.passes._score_reads import Weights
from greencc.passes._score_taylor import taylor
from greencc.passes._scores import Score, ScoreOptions, channel_scores
from greencc.targets import CpuTarget
from greencc.torch_graph import differentiate

from .conftest import Arrays

pytest.importorskip("torch", reason="needs greencc[finetune]")

HIDDEN, CLASSES = 7, 4
MLP = "mlp (float[N, 5] x) => (float[N, 4] y) { h = Gemm(x, a, o) r = Relu(h) y = MatMul(r, b) }"
PROBABILITIES = """mlp (float[N, 5] x) => (float[N, 4] p) {
    h = Gemm(x, a, o) r = Relu(h) y = MatMul(r, b) p = Softmax<axis=-1>(y) }"""
# A channel has two readers: it counts with all of them together.
RESIDUAL = """net (float[N, 2, 6, 6] x) => (float[N, 4] y) {
    s = Conv<pads=[1,1,1,1]>(x, a) r = Relu(s)
    h = Conv<pads=[1,1,1,1]>(r, b) t = Relu(h) i = Conv(t, c) j = Add(i, r) u = Relu(j)
    g = GlobalAveragePool(u) f = Flatten(g) y = Gemm<transB=1>(f, d) }"""
RECURRENT = """net (float[N, 4, 3] x) => (float[N, 4, 2] y) {
    h = MatMul(x, a) r = Relu(h) t = Transpose<perm=[1,0,2]>(r)
    s = GRU<hidden_size=4>(t, w, k) u = Squeeze(s, one) z = MatMul(u, b) y = Transpose<perm=[1,0,2]>(z) }"""


def normal(*shape: int, seed: int = 3, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def parse(text: str, **weights: Array) -> ir.Model:
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    imports = [onnx.helper.make_opsetid("", 17)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))
    ensure_names(model)
    infer_shapes(model)
    return model


def mlp(text: str = MLP, classes: int = CLASSES, hidden: int = HIDDEN) -> ir.Model:
    text = text.replace("float[N, 4]", f"float[N, {classes}]")
    return parse(
        text, a=normal(5, hidden), o=normal(hidden, seed=4), b=normal(hidden, classes, seed=5, scale=0.4)
    )


def context(x: Array, labels: Array | None = None, gradients=differentiate, rows: int = 1) -> Context:  # type: ignore[no-untyped-def]
    target = CpuTarget(threads=1)
    return Context(
        target.capabilities(),
        target.reference,
        [{"x": x[:rows]}],
        Arrays({"x": x}, labels),
        gradients=gradients,
    )


def scored(
    model: ir.Model, score: Score, ctx: Context, **options: int
) -> tuple[PruneGroup, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The first group and its scores."""
    groups = analyse(model).prunable
    return groups[0], channel_scores(model, groups, score, ctx, ScoreOptions(**options))[groups[0].name]


def logits(model: ir.Model, x: Array, gates: Array) -> Array:
    """The net in NumPy, its hidden channels multiplied by gates."""
    a, o, b = (np.float64(model.graph.initializers[name].const_value.numpy()) for name in "aob")  # type: ignore[union-attr]
    return (np.maximum(x.astype(np.float64) @ a + o, 0.0) * gates) @ b


def log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def slopes(function: Callable[[Array], Array], channels: int, step: float = 1e-5) -> Array:
    """Central differences of a function of gates at 1, the channels on the last axis."""
    found = []
    for channel in range(channels):
        shift = step * np.eye(channels)[channel]
        found.append((function(1.0 + shift) - function(1.0 - shift)) / (2.0 * step))
    return np.stack(found, axis=-1)


def order(group: PruneGroup) -> Array:
    """The hidden coordinate of each channel."""
    return group.readers[0].positions[:, 0]


@pytest.mark.parametrize("text", [MLP, PROBABILITIES])
def test_taylor_is_the_squared_slope_of_the_cross_entropy(text: str) -> None:
    model, x = mlp(text), normal(24, 5)
    labels = np.random.default_rng(0).integers(0, CLASSES, 24)
    each = slopes(lambda gates: -log_softmax(logits(model, x, gates))[np.arange(24), labels], HIDDEN)
    group, found = scored(model, Score.TAYLOR, context(x, labels), mini_batch=6, batch=10)
    assert np.allclose(
        found, np.square(each.reshape(4, 6, HIDDEN).mean(axis=1)).mean(axis=0)[order(group)], rtol=1e-3
    )


@pytest.mark.parametrize("text", [MLP, PROBABILITIES])
def test_fisher_is_the_curvature_of_the_divergence(text: str) -> None:
    model, x = mlp(text), normal(24, 5)
    before, step = log_softmax(logits(model, x, np.ones(HIDDEN))), 1e-3
    wanted = np.zeros(HIDDEN)
    for channel in range(HIDDEN):
        after = log_softmax(logits(model, x, 1.0 - step * np.eye(HIDDEN)[channel]))
        wanted[channel] = (np.exp(before) * (before - after)).sum(axis=1).mean() / step**2
    labelled = context(x, np.zeros(24, np.int64))
    for score, ctx in ((Score.FISHER, context(x)), (Score.FISHER, labelled), (Score.TAYLOR, context(x))):
        group, found = scored(model, score, ctx)
        assert np.allclose(found, wanted[order(group)], rtol=0.02)


def test_a_sample_whose_label_is_no_class_is_left_out() -> None:
    model, x = mlp(), normal(24, 5)
    labels = np.random.default_rng(0).integers(0, CLASSES, 24)
    spoilt = labels.copy()
    spoilt[[3, 17]] = -1, CLASSES
    left = np.delete(np.arange(24), [3, 17])
    wanted = scored(model, Score.TAYLOR, context(x[left], labels[left]), mini_batch=1)[1]
    found = scored(model, Score.TAYLOR, context(x, spoilt), mini_batch=1, batch=5)[1]
    assert np.allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "has no labels"),
        (np.full(12, -1), "no label of the calibration data is a class"),
        (np.full(12, CLASSES), "no label of the calibration data is a class"),
        (np.zeros((12, 2), np.int64), "not one class per sample"),
        (np.zeros(12, np.float32), "not one class per sample"),
    ],
)
def test_where_fisher_stands_in_it_is_said(labels: Array | None, reason: str) -> None:
    model, x = mlp(), normal(12, 5)
    findings: list[Finding] = []
    groups = analyse(model).prunable
    ctx = context(x, labels)
    found = channel_scores(model, groups, Score.TAYLOR, ctx, findings=findings)
    (finding,) = findings
    assert finding.message.startswith("scored by fisher because ")
    assert reason in finding.message
    wanted = channel_scores(model, groups, Score.FISHER, ctx)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert isinstance(taylor(model, groups, ctx, ScoreOptions()), str)


def test_labels_are_looked_at_before_gradients_are_taken() -> None:
    def never(model: ir.Model, by: list[str]):  # type: ignore[no-untyped-def]
        raise AssertionError

    model = mlp()
    ctx = context(normal(12, 5), np.full(12, -1), gradients=never)
    assert "is a class" in str(taylor(model, analyse(model).prunable, ctx, ScoreOptions()))


def test_labels_of_many_classes_are_drawn() -> None:
    model, x = mlp(classes=40), normal(200, 5)
    log_p = log_softmax(logits(model, x, np.ones(HIDDEN)))
    each = slopes(lambda gates: log_softmax(logits(model, x, gates)), HIDDEN)
    wanted = (np.exp(log_p)[..., np.newaxis] * np.square(each)).sum(axis=1).mean(axis=0) / 2
    group, found = scored(model, Score.FISHER, context(x), gradient_samples=200)
    assert np.allclose(found, wanted[order(group)], rtol=0.25)
    again = scored(model, Score.FISHER, context(x), gradient_samples=200)[1]
    assert np.array_equal(found, again)
    other = scored(model, Score.FISHER, context(x), gradient_samples=200, seed=1)[1]
    assert not np.array_equal(found, other)


def test_outputs_that_are_no_scores_count_by_their_relative_change() -> None:
    text = """net (float[N, 5] x) => (float[N, 2, 2] z) {
        h = Gemm(x, a, o) r = Relu(h) y = MatMul(r, b) z = Reshape(y, s) }"""
    model, x = mlp(), normal(200, 5)
    constants = {name: model.graph.initializers[name].const_value.numpy() for name in "aob"}  # type: ignore[union-attr]
    shaped = parse(text, **constants, s=np.array([-1, 2, 2]))
    each = slopes(lambda gates: logits(model, x, gates), HIDDEN)
    energy = np.square(logits(model, x, np.ones(HIDDEN))).sum(axis=1)
    wanted = (np.square(each).sum(axis=1) / energy[:, np.newaxis]).mean(axis=0)
    # With labels as well: there is no class they could be.
    for labels in (None, np.zeros(200, np.int64)):
        group, found = scored(shaped, Score.TAYLOR, context(x, labels), gradient_samples=200)
        assert np.allclose(found, wanted[order(group)], rtol=0.25)


def test_a_channel_counts_with_all_its_readers() -> None:
    model = parse(
        RESIDUAL, a=normal(5, 2, 3, 3), b=normal(6, 5, 3, 3), c=normal(5, 6, 1, 1), d=normal(4, 5, seed=9)
    )
    x, labels = normal(12, 2, 6, 6), np.arange(12) % 4
    group = next(group for group in analyse(model).prunable if len(group.readers) == 2)
    channels = np.array([[reader.positions[c, 0] for reader in group.readers] for c in range(group.size)])
    weights = {name: np.float64(model.graph.initializers[name].const_value.numpy()) for name in "abcd"}  # type: ignore[union-attr]

    def conv(value: Array, weight: Array) -> Array:
        pad = weight.shape[2] // 2
        wide = np.pad(value, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(wide, weight.shape[2:], axis=(2, 3))
        return np.einsum("nchwkl,ockl->nohw", windows, weight)

    def losses(gates: Array) -> Array:
        first, second = np.ones(5), np.ones(5)
        first[channels[:, 0]] = second[channels[:, 1]] = gates
        r = np.maximum(conv(np.float64(x), weights["a"]), 0)
        t = np.maximum(conv(r * first[:, np.newaxis, np.newaxis], weights["b"]), 0)
        u = np.maximum(conv(t, weights["c"]) + r, 0).mean(axis=(2, 3)) * second
        return -log_softmax(u @ weights["d"].T)[np.arange(12), labels]

    wanted = np.square(slopes(losses, group.size)).mean(axis=0)
    options = ScoreOptions(mini_batch=1)
    found = channel_scores(model, [group], Score.TAYLOR, context(x, labels), options)[group.name]
    assert np.allclose(found, wanted, rtol=5e-3)


@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("score", [Score.TAYLOR, Score.FISHER])
def test_a_fixed_batch_and_one_in_name_only_change_nothing(batch: int, score: Score) -> None:
    """10 samples fill no batch of 4 or 6 up; a Reshape with the batch written into it takes one sample at a time."""
    x, labels = normal(10, 5), np.arange(10) % CLASSES
    free = mlp()
    constants = {name: free.graph.initializers[name].const_value.numpy() for name in "aob"}  # type: ignore[union-attr]
    fixed = parse(MLP.replace("N", str(batch)), **constants)
    single = parse(
        MLP.replace("y = MatMul(r, b)", "q = Reshape(r, s) y = MatMul(q, b)"),
        **constants,
        s=np.array([1, HIDDEN]),
    )
    wanted = scored(free, score, context(x, labels))[1]
    for model in (fixed, single) if batch == 1 else (fixed,):
        assert np.allclose(scored(model, score, context(x, labels, rows=batch))[1], wanted, rtol=1e-4)


def test_the_work_budget_counts_sizes_that_only_the_samples_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a convolution on images of any size: without them its work is not known, and seems nothing."""
    text = """net (float[N, 2, H, W] x) => (float[N, 4] y) {
        s = Conv<pads=[1,1,1,1]>(x, a) r = Relu(s) g = GlobalAveragePool(r) f = Flatten(g) y = MatMul(f, b) }"""
    model, x = parse(text, a=normal(5, 2, 3, 3), b=normal(5, 4)), normal(60, 2, 8, 8)
    (group,) = analyse(model).prunable
    macs = 5 * 2 * 9 * 64 + 5 * 4
    monkeypatch.setattr(_score_gates, "_WORK", 20.0 * macs * 30.5)
    for rows in (1, 4):
        pieces = gated_pieces(model, [group], Weights(model), context(x, rows=rows), ScoreOptions())
        assert sum(piece.count for piece in pieces) == 30


def test_what_has_no_gradient_is_refused_by_name() -> None:
    model = parse(
        RECURRENT,
        a=normal(3, 5),
        w=normal(1, 12, 5),
        k=normal(1, 12, 4),
        b=normal(4, 2),
        one=np.array([1]),
    )
    with pytest.raises(InputError, match="GRU") as caught:
        scored(model, Score.TAYLOR, context(normal(6, 4, 3)))
    assert "score=second-order" in str(caught.value)


def test_a_context_without_gradients_says_so() -> None:
    with pytest.raises(UnavailableError, match="score=second-order"):
        scored(mlp(), Score.FISHER, context(normal(6, 5), gradients=None))


def test_gradients_of_another_function_are_refused() -> None:
    class Wrong:
        def __init__(self, model: ir.Model, by: list[str]) -> None:
            self.right = differentiate(model, by)

        def run(self, feeds: Feeds):  # type: ignore[no-untyped-def]
            return self.right.run({**feeds, "x": 1.1 * feeds["x"]})

    with pytest.raises(InputError, match="disagree on output 'y'"):
        scored(mlp(), Score.FISHER, context(normal(6, 5), gradients=Wrong))
