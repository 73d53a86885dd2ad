"""Ranking forms, falling back, and what may be called certified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.calibration import Source, open_data
from greencc.compiler.certify import Held, _sequential
from greencc.compiler.contender import Contender
from greencc.compiler.data import GATE_SAMPLES, Splits, _distinct
from greencc.compiler.forms import CLEANED_RANK, HALF_RANK, INT8_RANK, ORIGINAL_RANK, Form
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.select import _ranked
from greencc.compiler.session import Session
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import InputError
from greencc.core.report import Accuracy, Interval
from greencc.targets import CpuTarget
from greencc.verify.certificate import fixed_sequence

NAMES = {ORIGINAL_RANK: "original", CLEANED_RANK: "fp32", HALF_RANK: "fp16", INT8_RANK: "int8"}
INPUT = TensorSpec("x", np.dtype(np.float32), ("batch", 3))


class Doubler:
    """An engine that doubles its input, of any batch up to `limit`."""

    inputs = (INPUT,)
    outputs = (TensorSpec("y", np.dtype(np.float32), ("batch", 3)),)

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.runs = 0

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.runs += 1
        if len(feeds["x"]) > self.limit:
            raise InputError("reshape to a constant batch failed")
        return {"y": 2 * feeds["x"]}

    def close(self) -> None:
        self.runs = 0


def contender(rank: int, milliseconds: float) -> Contender:
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    form = Form(NAMES[rank], Precision.FP32, rank, model, Path("model.onnx"))
    return Contender(form, Doubler(), latency_ms=milliseconds)


def ranked(*milliseconds: float) -> list[str]:
    """Names of the forms of these latencies, the preferred one first; intervals are 1 % wide."""
    forms = [contender(rank, ms) for rank, ms in zip(NAMES, milliseconds, strict=True)]
    ratios = [
        Interval(milliseconds[0] / ms, 0.99 * milliseconds[0] / ms, 1.01 * milliseconds[0] / ms)
        for ms in milliseconds[1:]
    ]
    return [item.form.name for item in _ranked(forms, ratios)]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ((10, 8, 6, 4), ["int8", "fp16", "fp32", "original"]),
        ((10, 12, 15, 4), ["int8", "original"]),
        ((10, 10, 10, 10), ["fp32", "original"]),
        ((10, 8, 12, 12), ["fp32", "original"]),
        ((10, 12, 15, 12), ["original"]),
        ((10, 8, 8, 7.95), ["fp32", "original"]),
    ],
)
def test_what_is_fallen_back_to_is_never_slower_than_what_is_safer(
    milliseconds: tuple[float, ...], expected: list[str]
) -> None:
    assert ranked(*milliseconds) == expected


def accuracy(certified: bool) -> Accuracy:
    return Accuracy(
        metric="top-1", baseline=0.9, artifact=0.9, drop=0.0, low=0.0, high=0.0, agreement=1.0, n=500,
        certified=certified, epsilon=0.01, confidence=0.95, failures=0, p_value=0.01, n_needed=None, reason="why",
    )  # fmt: skip


@pytest.mark.parametrize(
    "tests", [(True, True), (True, False), (False, True), (False, False), (True, False, True)]
)
def test_certificates_end_at_the_first_form_without_one(tests: tuple[bool, ...]) -> None:
    held = [Held(contender(rank, 1.0), accuracy(certified)) for rank, certified in enumerate(tests)]
    last = fixed_sequence(tests)
    proven = -1 if last is None else last
    result = _sequential(held)
    assert [item.accuracy.certified for item in result] == [index <= proven for index in range(len(tests))]
    assert [item.contender for item in result] == [item.contender for item in held]


def source(tmp_path: Path, values: Array) -> Source:
    path = tmp_path / "data.npz"
    np.savez(path, x=values.astype(np.float32))
    found = open_data(path, [INPUT])
    assert isinstance(found, Source)
    return found


def test_copies_are_one_observation(tmp_path: Path) -> None:
    session = Session(CompileOptions(), CpuTarget(), tmp_path)
    data = source(tmp_path, np.array([[1, 2, 3], [4, 5, 6], [1, 2, 3], [1, 2, 3]]))
    kept = _distinct(session, data)
    assert kept.count == 2
    assert [batch.feeds["x"].tolist() for batch in kept.batches(2)] == [[[1, 2, 3], [4, 5, 6]]]
    assert session.warnings == ["2 evaluation samples are copies of others and were left out"]
    assert _distinct(session, kept) is kept


def test_the_gate_sees_more_than_one_sample_at_a_time(tmp_path: Path) -> None:
    data = source(tmp_path, np.arange(30).reshape(10, 3))
    splits = Splits(data, data, data, None)
    assert [len(feeds["x"]) for feeds in splits.samples(Doubler(), None)] == [1, 2]
    # Dynamic in name only: the model fails above a batch of one.
    assert [len(feeds["x"]) for feeds in splits.samples(Doubler(limit=1), None)] == [1] * GATE_SAMPLES
    assert [len(feeds["x"]) for feeds in splits.samples(Doubler(), 4)] == [4, 4]
    with pytest.raises(InputError, match="batches of 20 samples"):
        splits.samples(Doubler(), 20)


def test_memo_engine_runs_each_input_once() -> None:
    inner = Doubler()
    memo = MemoEngine(inner, limit=100)
    first, second = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    assert [memo.run({"x": x})["y"].tolist() for x in (first, second, first)] == [
        [[2, 2, 2]],
        [[0, 0, 0]],
        [[2, 2, 2]],
    ]
    assert inner.runs == 2
    large = np.ones((50, 3), np.float32)
    for _ in range(2):
        memo.run({"x": large})
    assert inner.runs == 4, "what exceeds the limit is not kept"
