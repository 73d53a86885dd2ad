"""Scores of channels: each against what it is defined as, and all of them on awkward graphs."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.data import Batch
from greencc.core.errors import InputError, UsageError
from greencc.core.groups import analyse
from greencc.passes import _channel_grams, _score_second_order
from greencc.passes._channel_grams import Gram
from greencc.passes._score_elimination import Part, eliminate
from greencc.passes._score_loss import change
from greencc.passes._score_masks import MaskedRuns
from greencc.passes._score_reads import Weights
from greencc.passes._score_residuals import inverse
from greencc.passes._scores import Score, ScoreOptions, channel_scores

MLP = "mlp (float[N, 4] x) => (float[N, 3] y) { h = Gemm(x, a, o) r = Relu(h) y = MatMul(r, b) }"
RESIDUAL = """net (float[N, 2, 6, 6] x) => (float[N, 4] y) {
    s = Conv<pads=[1,1,1,1]>(x, a) r = Relu(s)
    h = Conv<pads=[1,1,1,1]>(r, b) t = Relu(h) i = Conv(t, c) j = Add(i, r) u = Relu(j)
    g = GlobalAveragePool(u) f = Flatten(g) y = Gemm<transB=1>(f, d) }"""
DEPTHWISE = """net (float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y) {
    s = Conv(x, a) d = Conv<group=5, pads=[1,1,1,1]>(s, w) r = Relu(d) y = Conv(r, b) }"""
GROUPED = """net (float[N, 3, 5, 5] x) => (float[N, 2] y) {
    s = Conv(x, a) r = Relu(s) h = Conv<group=2>(r, b) t = Relu(h)
    g = GlobalAveragePool(t) f = Flatten(g) y = MatMul(f, c) }"""
TRANSPOSED = """net (float[N, 2, 4, 4] x) => (float[N, 3, 8, 8] y) {
    s = Conv(x, a) r = Relu(s) y = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(r, b) }"""
FLATTENED = """net (float[N, 2, 3, 3] x) => (float[N, 4] y) {
    s = Conv(x, a) r = Relu(s) f = Flatten(r) y = MatMul(f, b) }"""
CONCAT = """net (float[N, 4] x) => (float[N, 3] y) {
    h = MatMul(x, a) k = MatMul(x, b) c = Concat<axis=1>(h, k) r = Relu(c) y = MatMul(r, d) }"""
STEPS_FIRST = """net (float[N, 4, 3] x) => (float[N, 4, 2] y) {
    t = Transpose<perm=[1,0,2]>(x) h = MatMul(t, a) r = Relu(h) z = MatMul(r, b)
    y = Transpose<perm=[1,0,2]>(z) }"""
FIXED = "net (float[3, 4] x) => (float[3, 3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
RECURRENT = """net (float[N, 4, 3] x) => (float[N, 4, 2] y) {
    h = MatMul(x, a) r = Relu(h) t = Transpose<perm=[1,0,2]>(r)
    s = GRU<hidden_size=4>(t, w, k) u = Squeeze(s, one) z = MatMul(u, b) y = Transpose<perm=[1,0,2]>(z) }"""
IDENTITY = """net (float[N, 3, 5, 5] x) => (float[N, 6, 3, 3] y) {
    i = Identity(b) s = Conv(x, a) r = Relu(s) y = Conv<group=2>(r, i) }"""
ATTENTION = """net (float[N, 5, 8] x) => (float[N, 5, 6] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    q1 = Reshape(q, s) k1 = Reshape(k, s) v1 = Reshape(v, s)
    q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,3,1]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
    p = MatMul(q2, k2) m = Softmax<axis=-1>(p) o = MatMul(m, v2)
    o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, t) y = MatMul(o2, wo) }"""


@pytest.fixture
def case(parse, random):
    """A model, its input and a name of a group of it, by the name of the case."""
    weights = {
        "mlp": (MLP, (4,), {"a": (4, 6), "o": (6,), "b": (6, 3)}),
        "residual": (
            RESIDUAL,
            (2, 6, 6),
            {"a": (5, 2, 3, 3), "b": (6, 5, 3, 3), "c": (5, 6, 1, 1), "d": (4, 5)},
        ),
        "depthwise": (DEPTHWISE, (2, 6, 6), {"a": (5, 2, 1, 1), "w": (5, 1, 3, 3), "b": (3, 5, 1, 1)}),
        "grouped": (GROUPED, (3, 5, 5), {"a": (8, 3, 1, 1), "b": (6, 4, 3, 3), "c": (6, 2)}),
        "transposed": (TRANSPOSED, (2, 4, 4), {"a": (5, 2, 1, 1), "b": (5, 3, 2, 2)}),
        "flattened": (FLATTENED, (2, 3, 3), {"a": (4, 2, 1, 1), "b": (36, 4)}),
        "concat": (CONCAT, (4,), {"a": (4, 5), "b": (4, 3), "d": (8, 3)}),
        "steps first": (STEPS_FIRST, (4, 3), {"a": (3, 6), "b": (6, 2)}),
        "fixed": (FIXED, (4,), {"a": (4, 6), "b": (6, 3)}),
        "recurrent": (RECURRENT, (4, 3), {"a": (3, 5), "w": (1, 12, 5), "k": (1, 12, 4), "b": (4, 2)}),
        "identity": (IDENTITY, (3, 5, 5), {"a": (8, 3, 1, 1), "b": (6, 4, 3, 3)}),
        "attention": (
            ATTENTION,
            (5, 8),
            {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 6)},
        ),
    }

    def make(name, samples=24):
        text, shape, shapes = weights[name]
        arrays = {key: random(*size, scale=0.5) for key, size in shapes.items()}
        if name == "attention":
            arrays |= {"s": np.array([0, 0, 3, 4]), "t": np.array([0, 0, 12])}
        if name == "recurrent":
            arrays["one"] = np.array([1])
        return parse(text, **arrays), random(samples, *shape)

    return make


CASES = (
    "mlp",
    "residual",
    "depthwise",
    "grouped",
    "transposed",
    "flattened",
    "concat",
    "steps first",
    "fixed",
    "attention",
    "recurrent",
    "identity",
)
TORCH = find_spec("torch") is not None
GRADIENTS = (Score.TAYLOR, Score.FISHER)


def scores_of(chosen):
    """As parameters; those that need PyTorch are left out where it is absent (`make test-finetune`)."""
    absent = pytest.mark.skipif(not TORCH, reason="needs greencc[finetune]")
    return [
        pytest.param(score, id=score.value, marks=[absent] if score in GRADIENTS else []) for score in chosen
    ]


SCORES = scores_of(Score)


def with_weight(model, name, array):
    """A clone with another constant."""
    import onnx_ir as ir

    changed = model.clone()
    changed.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    return changed


def weight(model, name):
    return np.array(model.graph.initializers[name].const_value.numpy())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", CASES)
def test_every_score_on_every_graph(case, context, name, score):
    if name == "recurrent" and score in GRADIENTS:
        pytest.skip("recurrent layers have no gradient here, and are refused")
    model, x = case(name)
    groups = analyse(model).prunable
    assert groups
    ctx = context(x=x, rows=3 if name == "fixed" else 1)
    scores = channel_scores(model, groups, score, ctx, ScoreOptions(loss_samples=3))
    assert list(scores) == [group.name for group in groups] or set(scores) == {group.name for group in groups}
    for group in groups:
        found = scores[group.name]
        assert found.shape == (group.size,)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert found.max() > 0
        assert found.dtype == np.float64
    again = channel_scores(model, groups, score, ctx, ScoreOptions(loss_samples=3))
    assert all(np.array_equal(scores[key], again[key]) for key in scores)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("name", "producer", "axis"), [("mlp", "a", 1), ("residual", "b", 0), ("grouped", "a", 0)]
)
def test_channels_that_are_zero_score_zero(case, context, name, producer, axis, score):
    model, x = case(name)
    array = np.moveaxis(weight(model, producer), axis, 0)
    array[1] = 0
    if name == "grouped":
        array[5] = 0  # The same channel of the other group.
    model = with_weight(model, producer, np.moveaxis(array, 0, axis))
    if name == "mlp":
        bias = weight(model, "o")
        bias[1] = 0
        model = with_weight(model, "o", bias)
    groups = analyse(model).prunable
    (group,) = (
        g for g in groups if producer in {site.tensor for site in g.sites if site.role.value == "producer"}
    )
    found = channel_scores(model, groups, score, context(x=x))[group.name]
    assert found[1] == 0
    assert (np.delete(found, 1) > 0).all()


@pytest.mark.parametrize("score", [Score.SECOND_ORDER, Score.CORRELATION, Score.FPGM])
def test_duplicated_channels_are_redundant(case, context, score):
    model, x = case("mlp", samples=400)
    a, o = weight(model, "a"), weight(model, "o")
    a[:, 4], o[4] = a[:, 2], o[2]
    model = with_weight(with_weight(model, "a", a), "o", o)
    (group,) = analyse(model).prunable
    found = channel_scores(model, [group], score, context(x=x))[group.name]
    others = [0, 1, 3, 5]
    if score is Score.SECOND_ORDER:
        # One of the two is free; when it is gone the other is not.
        alone = channel_scores(model, [group], Score.ACTIVATION, context(x=x))[group.name]
        found = found / alone
        assert max(found[2], found[4]) > 0.5
        assert min(found[2], found[4]) < 0.02
        return
    limit = 1.0 if score is Score.FPGM else 0.05
    assert max(found[2], found[4]) < limit * min(found[others])


def error_without(rows, outputs, gone):
    """The least squared error of a reader's outputs without some coordinates, as a share."""
    kept = np.delete(rows, gone, axis=1)
    rest = outputs - kept @ np.linalg.lstsq(kept, outputs, rcond=None)[0] if kept.size else outputs
    return np.square(rest).sum() / np.square(outputs).sum()


def reader_data(model, group, engine, x):
    (reader,) = group.readers
    results = engine(model, [reader.value, "y"]).run({"x": x})
    rows = results[reader.value].reshape(-1, results[reader.value].shape[-1]).astype(np.float64)
    rows -= rows.mean(axis=0)
    return reader, rows, rows @ Weights(model).read(group, reader)


@pytest.mark.parametrize("name", ["mlp", "concat", "attention"])
def test_second_order_adds_up_to_the_error_of_the_best_compensation(case, context, engine, name):
    """Remove the k lowest, fit the reader's outputs anew by least squares, and compare the errors."""
    model, x = case(name, samples=3000)
    groups = analyse(model).prunable
    scores = channel_scores(model, groups, Score.SECOND_ORDER, context(x=x), ScoreOptions(damping=1e-9))
    for group in groups:
        reader, rows, outputs = reader_data(model, group, engine, x)
        order = np.argsort(scores[group.name], kind="stable")
        errors = [error_without(rows, outputs, reader.positions[[c]].ravel()) for c in range(group.size)]
        assert scores[group.name][order[0]] == pytest.approx(min(errors), rel=0.1, abs=2e-3)
        for count in range(1, group.size + 1):
            expected = error_without(rows, outputs, reader.positions[order[:count]].ravel())
            found = scores[group.name][order[:count]].sum()
            assert found == pytest.approx(expected, rel=0.1, abs=2e-3)


@pytest.mark.parametrize("name", ["mlp", "concat", "attention"])
def test_second_order_without_room_scores_each_channel_alone(case, context, engine, name, monkeypatch):
    monkeypatch.setattr(_score_second_order, "BUDGET_BYTES", 0)
    model, x = case(name, samples=3000)
    groups = analyse(model).prunable
    scores = channel_scores(model, groups, Score.SECOND_ORDER, context(x=x), ScoreOptions(damping=1e-9))
    for group in groups:
        reader, rows, outputs = reader_data(model, group, engine, x)
        for channel in range(group.size):
            expected = error_without(rows, outputs, reader.positions[channel])
            assert scores[group.name][channel] == pytest.approx(expected, rel=0.1, abs=2e-3)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 5, 20, 150]), width=st.integers(1, 2))
@settings(max_examples=15, deadline=None)
def test_elimination_knows_the_cost_of_any_set(seed, size, width):
    generator = np.random.default_rng(seed)
    count = size * width
    factor = generator.standard_normal((count, count + 5))
    whole = np.linalg.inv(factor @ factor.T / count + np.eye(count))
    weights = generator.standard_normal((count, 3))
    positions = generator.permutation(count).reshape(size, width)
    scores = eliminate([Part(whole.copy(), weights.copy(), positions, 0.0)], size)
    order = np.argsort(scores, kind="stable")
    part, total = Part(whole.copy(), weights.copy(), positions, 0.0), 0.0
    for step, channel in enumerate(order):
        left = order[step:]
        costs = part.costs(left)
        if size <= 64:
            assert costs[0] == pytest.approx(costs.min(), rel=1e-6)
        assert scores[channel] >= costs[0] * (1 - 1e-6)
        total += costs[0]
        gone = positions[order[: step + 1]].ravel()
        joint = np.sum(np.linalg.solve(whole[np.ix_(gone, gone)], weights[gone]) * weights[gone])
        assert total == pytest.approx(joint, rel=1e-6)
        part.remove(np.array([channel]))


@given(seed=st.integers(0, 10**6), width=st.integers(1, 3), rank=st.integers(1, 9), power=st.integers(-6, 6))
@settings(max_examples=40, deadline=None)
def test_residuals_are_the_minimum_of_the_ridge_problem(seed, width, rank, power):
    generator = np.random.default_rng(seed)
    size = 3 * width
    rows = generator.standard_normal((50, rank)) @ generator.standard_normal((rank, size))
    rows *= 10.0 ** (power * generator.random(size))
    rows[:, generator.random(size) < 0.2] = 0
    gram = Gram(50.0, rows.mean(axis=0), rows.T @ rows / 50)
    surgeon = inverse(gram, 1e-3)
    positions = generator.permutation(size).reshape(3, width)
    found = surgeon.residuals(positions)
    assert np.isfinite(found).all()
    whole = surgeon.correlation
    for where, left in zip(positions, found, strict=True):
        others = np.setdiff1d(np.arange(size), where)
        inner = whole[np.ix_(others, others)] + surgeon.damping * np.eye(len(others))
        cross = whole[np.ix_(others, where)]
        expected = whole[np.ix_(where, where)] - cross.T @ np.linalg.solve(inner, cross)
        live = surgeon.scale[where] > 0
        np.testing.assert_allclose(left[np.ix_(live, live)], expected[np.ix_(live, live)], atol=1e-8)
        assert np.linalg.eigvalsh(left).min() > -1e-8


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_second_order_is_never_above_the_channel_alone(seed):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((30, 6)) @ generator.standard_normal((6, 6))
    surgeon = inverse(Gram(30.0, rows.mean(axis=0), rows.T @ rows / 30), 1e-3)
    left = surgeon.residuals(np.arange(6)[:, np.newaxis])[:, 0, 0]
    assert (left <= 1 + 1e-12).all()
    assert (left >= -1e-12).all()


@pytest.mark.parametrize("score", [Score.MAGNITUDE, Score.ACTIVATION, Score.SECOND_ORDER, Score.CORRELATION])
def test_a_scale_moved_into_the_next_layer_changes_nothing(case, context, score, random):
    model, x = case("mlp", samples=60)
    (group,) = analyse(model).prunable
    before = channel_scores(model, [group], score, context(x=x))[group.name]
    scale = np.exp2(np.arange(6) * 3 - 8).astype(np.float32)
    moved = with_weight(model, "a", weight(model, "a") * scale)
    moved = with_weight(moved, "o", weight(moved, "o") * scale)
    moved = with_weight(moved, "b", weight(moved, "b") / scale[:, np.newaxis])
    after = channel_scores(moved, [group], score, context(x=x))[group.name]
    np.testing.assert_allclose(after, before, rtol=1e-4)


def cut_by_hand(model, groups, name, channel):
    """A clone in which every reader of a channel reads it with weights of zero."""
    group = next(group for group in groups if group.name == name)
    changed = model
    for site in group.sites:
        if site.role.value == "consumer":
            array = np.moveaxis(weight(changed, site.tensor), site.axis, 0)
            array[site.positions[channel]] = 0
            changed = with_weight(changed, site.tensor, np.moveaxis(array, 0, site.axis))
    return changed


def divergence(expected, got):
    def log_softmax(array):
        scores = array.reshape(-1).astype(np.float64)
        return scores - np.log(np.exp(scores).sum())

    if expected.ndim == 2:
        p, q = log_softmax(expected), log_softmax(got)
        return (np.exp(p) * (p - q)).sum()
    return np.square(expected - got).sum() / np.square(expected).sum()


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_change_of_the_outputs_by_cutting(case, context, engine, name):
    model, x = case(name, samples=6)
    groups = analyse(model).prunable
    scores = channel_scores(model, groups, Score.LOSS, context(x=x), ScoreOptions(loss_samples=2))
    rows = 3 if name == "fixed" else 1
    for group in groups:
        for channel in range(group.size):
            changed = cut_by_hand(model, groups, group.name, channel)
            expected = []
            for sample in (x[0:1], x[3:4]):
                feeds = {"x": np.repeat(sample, rows, axis=0)}
                pair = [engine(item).run(feeds)["y"][:1] for item in (model, changed)]
                expected.append(divergence(*pair))
            assert scores[group.name][channel] == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-6)


def test_loss_with_labels_is_the_change_of_the_cross_entropy(case, context, engine):
    model, x = case("mlp", samples=5)
    labels = np.array([0, 1, 2, 1, 0])
    (group,) = analyse(model).prunable
    found = channel_scores(model, [group], Score.LOSS, context(x=x, labels=labels))[group.name]

    def entropies(item):
        y = engine(item).run({"x": x})["y"].astype(np.float64)
        return np.log(np.exp(y).sum(axis=1)) - y[np.arange(5), labels]

    for channel in range(group.size):
        changed = entropies(cut_by_hand(model, [group], group.name, channel)) - entropies(model)
        assert found[channel] == pytest.approx(np.abs(changed).mean(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("labels", [np.array([7, 7]), np.array([0.5, 0.5]), np.array([[0, 1], [1, 0]])])
def test_labels_that_are_no_classes_are_left_alone(case, context, labels):
    model, x = case("mlp", samples=2)
    (group,) = analyse(model).prunable
    plain, labelled = (
        channel_scores(model, [group], Score.LOSS, context(x=x, labels=given)) for given in (None, labels)
    )
    np.testing.assert_array_equal(plain[group.name], labelled[group.name])


@pytest.mark.parametrize(("name", "apart"), [("residual", True), ("attention", True), ("steps first", False)])
def test_masks_share_runs_only_where_samples_stay_apart(case, context, counted, name, apart):
    model, x = case(name, samples=1)
    group = analyse(model).prunable[0]
    channel_scores(model, [group], Score.LOSS, context(x=x, build=counted))
    assert counted.engines == 1
    values = len({reader.value for reader in group.readers})
    # The baseline; three trials for each value; then all masks at once or one by one.
    assert counted.runs == (1 + 3 * values + 1 if apart else 1 + 3 + group.size)


def test_a_batch_that_mixes_samples_is_noticed(parse, random, context):
    model = parse(
        "net (float[N, 4] x) => (float[N, 3] y) { "
        "h = MatMul(x, a) r = Relu(h) z = MatMul(r, b) m = ReduceMean<axes=[0], keepdims=1>(z) y = Add(z, m) }",
        a=random(4, 6),
        b=random(6, 3),
    )
    (group,) = analyse(model).prunable
    runs = MaskedRuns(model, group.readers, context(x=random(2, 4)))
    sample = Batch({"x": random(1, 4)})
    assert not runs._can_share(sample, ("r", 1))
    runs.close()


def test_loss_stops_when_the_time_is_over(case, context, monkeypatch):
    model, x = case("mlp", samples=8)
    (group,) = analyse(model).prunable
    first = channel_scores(
        model, [group], Score.LOSS, context(x=x), ScoreOptions(loss_samples=8, loss_seconds=1e-9)
    )
    alone = channel_scores(model, [group], Score.LOSS, context(x=x[:1]))
    np.testing.assert_allclose(first[group.name], alone[group.name])


def test_several_readers_add_up(parse, random, context):
    weights = {"a": random(4, 6), "b": random(6, 3), "c": random(6, 2)}
    one = "net (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    two = (
        "net (float[N, 4] x) => (float[N, 3] y, float[N, 2] z) "
        "{ h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) z = MatMul(r, c) }"
    )
    other = "net (float[N, 4] x) => (float[N, 2] z) { h = MatMul(x, a) r = Relu(h) z = MatMul(r, c) }"
    ctx = context(x=random(50, 4))
    models = [
        parse(two, **weights),
        parse(one, a=weights["a"], b=weights["b"]),
        parse(other, a=weights["a"], c=weights["c"]),
    ]
    for score in (Score.MAGNITUDE, Score.ACTIVATION):
        both, first, second = (
            next(iter(channel_scores(model, analyse(model).prunable, score, ctx).values()))
            for model in models
        )
        np.testing.assert_allclose(both, first + second, rtol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "residual", "transposed", "grouped"])
def test_activation_shares_of_a_reader_sum_to_one(case, context, name):
    model, x = case(name)
    for group in analyse(model).prunable:
        found = channel_scores(model, [group], Score.ACTIVATION, context(x=x))[group.name]
        assert found.sum() == pytest.approx(len(Weights(model).readers(group)))


@pytest.mark.parametrize("name", ["mlp", "residual", "transposed", "grouped", "attention"])
def test_second_order_of_all_channels_is_all_of_the_output(case, context, name):
    model, x = case(name, samples=200)
    for group in analyse(model).prunable:
        found = channel_scores(model, [group], Score.SECOND_ORDER, context(x=x))[group.name]
        assert 0.9 * len(Weights(model).readers(group)) < found.sum()
        assert found.sum() < 1.6 * len(Weights(model).readers(group))


def test_groups_after_concat_share_one_reader(case, context):
    model, x = case("concat")
    groups = analyse(model).prunable
    assert len(groups) == 2
    for score in (Score.MAGNITUDE, Score.ACTIVATION):
        scores = channel_scores(model, groups, score, context(x=x))
        assert sum(found.sum() for found in scores.values()) == pytest.approx(1)


def test_fewer_samples_than_channels(parse, random, context):
    """Nothing may be called redundant because three samples cannot tell."""
    model = parse(MLP, a=random(4, 40), b=random(40, 3), o=np.full(40, 9, np.float32))
    (group,) = analyse(model).prunable
    for score in (Score.SECOND_ORDER, Score.CORRELATION, Score.ACTIVATION):
        for samples in (1, 2, 3):
            found = channel_scores(model, [group], score, context(x=random(samples, 4)))[group.name]
            assert np.isfinite(found).all()
            assert (found > 0).any() == (samples > 1)


def test_values_too_wide_for_a_matrix(case, context, monkeypatch):
    model, x = case("residual")
    groups = analyse(model).prunable
    monkeypatch.setattr(_channel_grams, "BUDGET_BYTES", 1)
    expected = channel_scores(model, groups, Score.ACTIVATION, context(x=x))
    found = channel_scores(model, groups, Score.SECOND_ORDER, context(x=x))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    redundancy = channel_scores(model, groups, Score.CORRELATION, context(x=x))
    assert all((array == 1).all() for array in redundancy.values())


@pytest.mark.parametrize("score", SCORES)
def test_a_group_that_nothing_reads_with_weights(case, context, score):
    model, x = case("residual")
    groups = [
        dataclasses.replace(
            group,
            readers=(),
            sites=tuple(site for site in group.sites if site.role.value != "consumer"),
        )
        if number == 0
        else group
        for number, group in enumerate(analyse(model).prunable)
    ]
    scores = channel_scores(model, groups, score, context(x=x))
    assert set(scores) == {group.name for group in groups}
    assert all(np.isfinite(found).all() and (found > 0).all() for found in scores.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", [Score.MAGNITUDE, Score.FPGM])
def test_weights_that_are_no_numbers(case, context, score, bad):
    model, x = case("mlp")
    b = weight(model, "b")
    b[2, 1] = bad
    model = with_weight(model, "b", b)
    with pytest.raises(InputError, match="weight 'b' of 'MatMul_2' holds NaN or infinity"):
        channel_scores(model, analyse(model).prunable, score, context(x=x))


@pytest.mark.parametrize("score", scores_of(score for score in Score if score.needs_data))
def test_scores_that_need_data(case, context, score):
    model, x = case("mlp")
    groups = analyse(model).prunable
    with pytest.raises(InputError, match="needs calibration data"):
        channel_scores(model, groups, score, context())
    with pytest.raises(InputError, match="NaN or infinity"):
        channel_scores(model, groups, score, context(x=np.full_like(x, np.nan)))
    with pytest.raises(InputError, match="no samples"):
        channel_scores(model, groups, score, context(x=x[:0]))


@pytest.mark.parametrize("score", SCORES)
def test_the_model_stays_as_it_is(case, context, score):
    import onnx_ir as ir

    model, x = case("residual")
    before = ir.to_proto(model).SerializeToString()
    channel_scores(model, analyse(model).prunable, score, context(x=x), ScoreOptions(loss_samples=1))
    assert ir.to_proto(model).SerializeToString() == before
    assert channel_scores(model, [], score, context()) == {}


def test_a_mask_that_breaks_the_outputs_counts_for_more_than_any_change():
    base = {"y": np.array([[1.0, 2.0]], np.float32)}
    assert change(base, {"y": np.array([[np.nan, 2.0]], np.float32)}) == 1e6
    assert change(base, base) == 0
    zero = {"y": np.zeros((1, 3, 2), np.float32)}
    assert change(zero, {"y": np.ones((1, 3, 2), np.float32)}) == 1e6
    masked = {"y": np.array([[1.0, -np.inf]], np.float32)}
    assert change(masked, masked) == 0


def test_outputs_that_are_no_floats_count_by_the_share_that_differs():
    base = {"y": np.array([[1, 2, 3, 4]]), "z": np.array([7])}
    assert change(base, base) == 0
    assert change(base, {**base, "y": np.array([[1, 2, 0, 4]])}) == 0.25
    assert change(base, {**base, "z": np.array([8])}) == 1
    # As many as the data decide.
    assert change(base, {**base, "z": np.array([7, 7])}) == 1
    assert change({}, {}) == 0
    # Where there are floats they tell more.
    floats = {"p": np.zeros((1, 3), np.float32)}
    assert change({**base, **floats}, {"y": base["y"] + 1, "z": base["z"] + 1, **floats}) == 0


DECISION = """net (float[N, 4] x) => (int64[N] y) {
    h = Gemm(x, a, o) r = Relu(h) s = MatMul(r, b) y = ArgMax<axis=1, keepdims=0>(s) }"""


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (Score.LOSS, "the model has no float output whose change could be measured"),
        (Score.FISHER, "the model has no float output to take gradients of"),
        (Score.TAYLOR, "the model has no float output to take gradients of"),
    ],
)
def test_scores_of_the_outputs_refuse_models_without_float_outputs(parse, random, context, score, message):
    model = parse(DECISION, a=random(4, 6), o=random(6), b=random(6, 3))
    with pytest.raises(InputError, match=message) as caught:
        channel_scores(model, analyse(model).prunable, score, context(x=random(20, 4)))
    assert "score=second-order" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"damping": 0.0},
        {"damping": float("nan")},
        {"loss_samples": 0},
        {"loss_seconds": 0.0},
        {"loss_seconds": float("nan")},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        ScoreOptions(**options)


@pytest.mark.parametrize("score", SCORES)
def test_half_precision(parse, random, context, score):
    model = parse(
        "net (float[N, 4] x) => (float[N, 3] y) "
        "{ x1 = Cast<to=10>(x) h = MatMul(x1, a) r = Relu(h) z = MatMul(r, b) y = Cast<to=1>(z) }",
        a=random(4, 6).astype(np.float16),
        b=random(6, 3).astype(np.float16),
    )
    (group,) = analyse(model).prunable
    found = channel_scores(model, [group], score, context(x=random(30, 4)))[group.name]
    assert np.isfinite(found).all()
    assert (found > 0).all()
