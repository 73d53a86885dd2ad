"""Comparing engines: labels, decisions, closeness, shapes, batches and the sentences about them."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.verify import compare, outputs
from greencc.verify.intervals import paired_drop


def test_accuracy_drop_and_certificate(fakes: Any) -> None:
    baseline, artifact, data = fakes.pair(worse=12, better=7, both=4300, neither=181)
    found = compare(baseline, artifact, data, epsilon=0.01, confidence=0.95, batch=64)
    assert found.metric == "top-1 accuracy (scores)"
    assert found.baseline == pytest.approx(4312 / 4500)
    assert found.artifact == pytest.approx(4307 / 4500)
    assert found.drop == pytest.approx(5 / 4500)
    assert (found.low, found.high) == paired_drop(12, 7, 4500, 0.95)
    assert found.agreement == pytest.approx(1 - 19 / 4500)
    assert (found.n, found.failures, found.improved, found.broken) == (4500, 12, 7, 0)
    assert found.certified
    assert found.n_needed is None
    assert found.reason == (
        "certified: with 95 % confidence the drop in accuracy is at most 1 % (12 of 4,500 samples got worse)"
    )


@pytest.mark.parametrize("batch", [1, 7, 32, 1000])
def test_batch_size_does_not_matter(fakes: Any, batch: int) -> None:
    baseline, artifact, data = fakes.pair(worse=3, better=5, both=80, neither=12)
    assert compare(baseline, artifact, data, batch=batch) == compare(baseline, artifact, data, batch=13)


@pytest.mark.parametrize(
    ("worse", "n", "reason", "needed"),
    [
        (
            0,
            120,
            "not certifiable with n = 120: a limit of 1 % needs at least 299 samples, none failing",
            299,
        ),
        (
            5,
            1000,
            "not certified with n = 1,000: 5 of 1,000 samples got worse; at that rate a limit of 1 % needs about "
            "1,182 samples",
            1182,
        ),
        (
            30,
            1000,
            "not certified: 30 of 1,000 samples got worse, a loss of 3 %, which is not below the limit of 1 %",
            None,
        ),
    ],
)
def test_uncertified_says_what_it_takes(
    fakes: Any, worse: int, n: int, reason: str, needed: int | None
) -> None:
    found = compare(*fakes.pair(worse=worse, better=0, both=n - worse, neither=0))
    assert not found.certified
    assert found.reason == reason
    assert found.n_needed == needed


def test_without_labels_decisions_are_compared(fakes: Any) -> None:
    baseline, artifact, data = fakes.pair(worse=2, better=1, both=900, neither=97)
    data.labels = None
    found = compare(baseline, artifact, data)
    assert found.metric == "top-1 agreement (scores)"
    assert (found.baseline, found.artifact, found.drop, found.low) == (None, None, None, None)
    assert found.agreement == pytest.approx(0.997)
    assert found.failures == 3
    assert found.certified
    assert found.reason == (
        "certified: with 95 % confidence at most 1 % of decisions differ, and so accuracy drops by at most 1 % "
        "(3 of 1,000 samples decided differently)"
    )


def test_synthetic_data_certifies_nothing(fakes: Any) -> None:
    baseline, artifact, data = fakes.pair(worse=0, better=0, both=5000, neither=0)
    data.synthetic = True
    found = compare(baseline, artifact, data)
    assert not found.certified
    assert found.p_value is None
    assert found.reason == "not certified: the data is synthetic and says nothing about real inputs"


def test_several_acceptable_labels_and_samples_without_one(fakes: Any) -> None:
    scores = fakes.one_hot([0, 1, 2, 2, 1], 3)
    x = np.arange(5, dtype=np.float32)[:, None]
    labels = np.array([[0, -1], [2, 1], [0, 1], [-1, -1], [2, -1]])
    engine = fakes.engine(lambda x: {"y": scores[x[:, 0].astype(int)]})
    found = compare(engine, engine, fakes.data(x, labels))
    assert found.n == 4
    assert found.baseline == pytest.approx(2 / 4)
    assert found.agreement == 1.0


def test_trailing_axes_of_one_are_scores(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"y": fakes.one_hot(x[:, 0].astype(int), 4)[:, :, None, None]})
    data = fakes.data(np.array([[0], [3]], np.float32), np.array([0, 2]))
    assert compare(engine, engine, data).baseline == 0.5


def test_label_outputs_of_integers_and_strings(fakes: Any) -> None:
    names = np.array(["cat", "dog"], dtype=object)

    def model(x: Any) -> dict[str, Any]:
        return {"label": names[x[:, 0].astype(int)]}

    data = fakes.data(np.array([[0], [1], [1]], np.float32), np.array(["cat", "dog", "cat"], dtype=object))
    found = compare(fakes.engine(model), fakes.engine(model), data)
    assert found.baseline == pytest.approx(2 / 3)
    assert found.outputs[0].differing == 0.0
    assert found.outputs[0].sqnr_db is None

    def flipped(x: Any) -> dict[str, Any]:
        return {"label": (1 - x[:, 0]).astype(np.int64)}

    def straight(x: Any) -> dict[str, Any]:
        return {"label": x[:, 0].astype(np.int64)}

    data = fakes.data(np.array([[0], [1]], np.float32))
    found = compare(fakes.engine(straight), fakes.engine(flipped), data)
    assert found.agreement == 0.0
    assert found.outputs[0].differing == 1.0


def test_score_output_is_preferred_and_can_be_named(fakes: Any) -> None:
    def model(x: Any) -> dict[str, Any]:
        first = fakes.one_hot(x[:, 0].astype(int), 2)
        return {"features": np.ones((len(x), 3, 2), np.float32), "a": first, "b": 1 - first}

    data = fakes.data(np.zeros((4, 1), np.float32), np.zeros(4, np.int64))
    assert compare(fakes.engine(model), fakes.engine(model), data).metric == "top-1 accuracy (a)"
    found = compare(fakes.engine(model), fakes.engine(model), data, metric="top1:b")
    assert (found.metric, found.baseline) == ("top-1 accuracy (b)", 0.0)
    with pytest.raises(UsageError, match="no output 'c'"):
        compare(fakes.engine(model), fakes.engine(model), data, metric="top1:c")
    with pytest.raises(UsageError, match="no class to compare"):
        compare(fakes.engine(model), fakes.engine(model), data, metric="top1:features")
    # Without labels an output that is no decision makes the comparison one of closeness.
    data.labels = None
    assert compare(fakes.engine(model), fakes.engine(model), data).metric == "outputs within 10 %"


@pytest.mark.parametrize(("scale", "agreement"), [(1.05, 1.0), (1.2, 0.0)])
def test_closeness(fakes: Any, scale: float, agreement: float) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    baseline = fakes.engine(lambda x: {"map": np.repeat(x[:, :, None], 4, axis=2)})
    artifact = fakes.engine(lambda x: {"map": np.float32(scale) * np.repeat(x[:, :, None], 4, axis=2)})
    found = compare(baseline, artifact, fakes.data(x))
    assert found.agreement == agreement
    assert found.outputs[0].sqnr_db == pytest.approx(-20 * math.log10(scale - 1), rel=1e-4)
    assert found.outputs[0].cosine == pytest.approx(1.0)
    assert found.outputs[0].max_abs == pytest.approx(np.abs(x).max() * (scale - 1), rel=1e-4)


def test_closeness_at_zero_and_with_masked_logits(fakes: Any) -> None:
    values = np.array([[0.0, 0.0, 0.0], [1.0, -np.inf, 2.0]], np.float32)[:, :, None].repeat(2, axis=2)
    engine = fakes.engine(lambda x: {"map": values[x[:, 0].astype(int)]})
    near = fakes.engine(lambda x: {"map": values[x[:, 0].astype(int)] + np.float32(1e-8)})
    found = compare(engine, near, fakes.data(np.array([[0], [1]], np.float32)))
    assert found.agreement == 1.0
    assert found.broken == 0


def test_identical_outputs_have_no_ratio(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"y": x})
    found = compare(engine, engine, fakes.data(np.ones((3, 4), np.float32)))
    assert found.outputs[0].sqnr_db is None
    assert found.outputs[0].max_abs == 0.0


def test_bfloat16_is_a_float(fakes: Any) -> None:
    x = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    baseline = fakes.engine(lambda x: {"y": x.astype(ml_dtypes.bfloat16)})
    artifact = fakes.engine(lambda x: {"y": (x * 1.01).astype(ml_dtypes.bfloat16)})
    found = compare(baseline, artifact, fakes.data(x))
    assert found.metric == "top-1 agreement (y)"
    assert found.outputs[0].sqnr_db is not None


def test_non_finite_artifact_fails_and_is_reported(fakes: Any) -> None:
    x = np.zeros((400, 1), np.float32)
    x[5] = x[9] = 1
    good = fakes.engine(lambda x: {"y": fakes.one_hot(np.zeros(len(x), int), 2)})

    def bad(x: Any) -> dict[str, Any]:
        scores = fakes.one_hot(np.zeros(len(x), int), 2)
        scores[x[:, 0] == 1, 1] = np.nan
        return {"y": scores}

    for labels in (None, np.zeros(400, np.int64)):
        found = compare(good, fakes.engine(bad), fakes.data(x, labels), epsilon=0.05)
        assert (found.failures, found.broken) == (2, 2)
        assert found.outputs[0].broken == 2
        assert found.outputs[0].max_abs == 0.0
        assert found.reason.endswith(
            "2 samples of the artifact with non-finite values or another shape counted as failed"
        )
    # A baseline that is not finite itself does not excuse a different decision, and a NaN is never right.
    found = compare(fakes.engine(bad), fakes.engine(bad), fakes.data(x, np.zeros(400, np.int64)))
    assert found.baseline == pytest.approx(398 / 400)
    assert found.broken == 0


def test_outputs_of_a_shape_that_changes_between_samples(fakes: Any) -> None:
    # Detections: as many rows as the input says, without a batch axis.
    def model(extra: int) -> Any:
        def run(x: Any) -> dict[str, Any]:
            rows = int(x.sum()) + (extra if x[0, 0] == 3 else 0)
            return {"boxes": np.full((rows, 4), 7.0, np.float32), "count": np.int64(rows)}

        return run

    data = fakes.data(np.array([[1], [2], [3], [0], [5]], np.float32))
    engine = fakes.engine(model(0))
    found = compare(engine, fakes.engine(model(1)), data)
    assert found.metric == "outputs within 10 %"
    assert (found.n, found.failures, found.broken) == (5, 1, 1)
    assert set(engine.sizes[1:]) == {1}


def test_batches_that_only_look_dynamic_run_one_by_one(fakes: Any) -> None:
    def stubborn(x: Any) -> dict[str, Any]:
        if len(x) > 1:
            raise InputError("reshape to (1, 4) failed")
        return {"y": fakes.one_hot(x[:, 0].astype(int), 2)}

    data = fakes.data(np.array([[0], [1], [1]], np.float32), np.array([0, 1, 0]))
    assert compare(fakes.engine(stubborn), fakes.engine(stubborn), data).baseline == pytest.approx(2 / 3)

    def failing(x: Any) -> dict[str, Any]:
        raise InputError("the runtime failed")

    with pytest.raises(InputError, match="the runtime failed"):
        compare(fakes.engine(failing), fakes.engine(failing), data)


def test_fixed_batch_is_padded_and_cut(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"y": fakes.one_hot(x[:, 0].astype(int), 2)}, 4)
    data = fakes.data(np.array([[0], [1], [1], [0], [1], [1]], np.float32), np.array([0, 1, 1, 1, 1, 0]))
    found = compare(engine, engine, data)
    assert (found.n, found.baseline) == (6, pytest.approx(4 / 6))
    odd = fakes.engine(lambda x: {"y": np.ones((3, 2), np.float32)}, 4)
    with pytest.raises(InputError, match="cannot be told apart"):
        compare(odd, odd, data)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0, 1, 5]), InputError, "label 5 is out of range: output 'y' has 2 classes"),
        (np.array([0.0, 1.0, 1.0]), InputError, "labels have type float64"),
        (np.zeros((3, 2, 2), int), InputError, "labels have shape"),
        (np.array([-1, -1, -1]), InputError, "no sample of the evaluation data has a label"),
    ],
)
def test_labels_that_do_not_fit(fakes: Any, labels: Any, error: type[Exception], message: str) -> None:
    engine = fakes.engine(lambda x: {"y": np.zeros((len(x), 2), np.float32)})
    with pytest.raises(error, match=message):
        compare(engine, engine, fakes.data(np.zeros((3, 1), np.float32), labels))


def test_labels_without_a_classification(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"mask": np.zeros((len(x), 2, 8, 8), np.float32)})
    data = fakes.data(np.zeros((3, 1), np.float32), np.zeros(3, int))
    with pytest.raises(UsageError, match=r"no output is a classification \(mask \[3, 2, 8, 8\]\)"):
        compare(engine, engine, data)
    assert compare(engine, engine, data, metric="close").agreement == 1.0


def test_no_samples_and_different_outputs(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"y": x})
    with pytest.raises(InputError, match=r"data.npz has no samples"):
        compare(engine, engine, fakes.data(np.zeros((0, 2), np.float32)))
    other = fakes.engine(lambda x: {"z": x})
    with pytest.raises(InputError, match="differ in their outputs: y, z"):
        compare(engine, other, fakes.data(np.zeros((2, 2), np.float32)))


def test_large_outputs_are_sliced_without_changing_the_figures(
    fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    baseline, artifact = fakes.engine(lambda x: {"y": x}), fakes.engine(lambda x: {"y": np.round(x, 1)})
    whole = compare(baseline, artifact, fakes.data(x))
    monkeypatch.setattr(outputs, "_SLICE_ELEMENTS", 13)
    sliced = compare(baseline, artifact, fakes.data(x))
    assert sliced.outputs[0].sqnr_db == pytest.approx(whole.outputs[0].sqnr_db)
    assert sliced.failures == whole.failures


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("batch", [1, 32, 1000])
def test_nothing_is_claimed_where_the_baseline_is_not_finite(fakes: Any, batch: int, labelled: bool) -> None:
    baseline, artifact, data = fakes.pair(worse=0, better=0, both=996, neither=0)
    if not labelled:
        data.labels = None
    odd = data.x[3::100].copy()
    data.x = np.where(np.arange(996)[:, None] % 100 == 3, np.float32(9), data.x)
    assert len(odd) == 10

    def holed(engine: Any) -> Any:
        def function(x: Any) -> dict[str, Any]:
            return {"scores": np.where(x == 9, np.float32(np.nan), engine.function(x)["scores"])}

        return fakes.engine(function)

    found = compare(holed(baseline), holed(artifact), data, batch=batch)
    assert not found.certified
    assert found.reason == ("not certified: the original's own outputs are not finite for 10 of 996 samples")
    assert (found.n, found.failures, found.p_value, found.n_needed) == (986, 0, None, None)
    assert found.agreement == 1.0
    # A finite artifact does not make up for it, and a broken one is a failure where the baseline is finite.
    assert compare(holed(baseline), artifact, data, batch=batch).reason == found.reason
    broken = compare(baseline, holed(artifact), data, batch=batch)
    assert (broken.n, broken.broken, broken.failures) == (996, 10, 10)


def test_a_baseline_without_any_finite_output_is_undecidable(fakes: Any) -> None:
    engine = fakes.engine(
        lambda x: {"y": np.full((len(x), 3), np.nan, np.float32), "i": np.zeros(len(x), int)}
    )
    found = compare(engine, engine, fakes.data(np.zeros((400, 1), np.float32)))
    assert (found.certified, found.n, found.agreement, found.drop) == (False, 0, None, None)
    assert found.reason == "not certified: the original's own outputs are not finite for 400 of 400 samples"


def test_outputs_without_elements_or_with_some_infinite_ones_are_decidable(fakes: Any) -> None:
    masked = np.array([[-np.inf, 1.0]], np.float32)
    for value in (masked, np.zeros((1, 0, 4), np.float32)):
        engine = fakes.engine(lambda x, value=value: {"y": np.repeat(value, len(x), axis=0)})
        assert compare(engine, engine, fakes.data(np.zeros((400, 1), np.float32))).certified
