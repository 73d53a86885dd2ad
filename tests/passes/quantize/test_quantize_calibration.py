"""The calibration run: one pass, bounded memory, and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from greencc.core.data import Batch
from greencc.core.errors import InputError
from greencc.passes import _calibrate
from greencc.passes._calibrate import RangeMethod, observe_ranges

TEXT = "g (float[N, 16] x) => (float[N, 16] y) { h = MatMul (x, w) y = Tanh (h) }"


@pytest.fixture
def model(parse: Any, random: Any) -> Any:
    return parse(TEXT, w=random(16, 16))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_minmax_is_exact(kit: Any, model: Any, random: Any, batch: int) -> None:
    x = random(40, 16)
    h = kit.run_as_written(model, {"x": x}, ["h"])["h"]
    found = observe_ranges(model, ["x", "h"], kit.context({"x": x}), RangeMethod.MINMAX, 100, batch)
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())
    assert found["h"].low == pytest.approx(h.min(), rel=1e-5)
    assert found["h"].high == pytest.approx(h.max(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_percentiles_are_within_a_bin(kit: Any, model: Any, random: Any, batch: int) -> None:
    x = random(400, 16)
    found = observe_ranges(model, ["x"], kit.context({"x": x}), RangeMethod.PERCENTILE, 99.0, batch)
    low, high = np.percentile(x, [0.5, 99.5], method="inverted_cdf")
    assert np.abs(x).max() < 8
    width = 8 / 2048
    assert found["x"].low == pytest.approx(low, abs=width)
    assert found["x"].high == pytest.approx(high, abs=width)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_a_fixed_batch_sees_every_sample(kit: Any, parse: Any, random: Any, method: RangeMethod) -> None:
    model = parse(TEXT.replace("N", "4"), w=random(16, 16))
    x = random(10, 16)
    x[9, 3] = 77.0
    found = observe_ranges(model, ["x"], kit.context({"x": x}), method, 100, 3)
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())


@pytest.mark.parametrize("method", list(RangeMethod))
def test_a_batch_of_one_hidden_in_a_reshape(kit: Any, parse: Any, random: Any, method: RangeMethod) -> None:
    model = parse(
        "g (float[N, 16] x) => (float[1, 16] y) { h = Reshape (x, shape) y = MatMul (h, w) }",
        w=random(16, 16),
        shape=np.array([1, 16], np.int64),
    )
    x = random(9, 16)
    found = observe_ranges(model, ["h"], kit.context({"x": x}), method, 100, 4)
    assert (found["h"].low, found["h"].high) == (x.min(), x.max())


def test_one_pass_over_the_data_with_one_engine(kit: Any, model: Any, random: Any) -> None:
    x = {"x": random(32, 16)}
    context = kit.context(x)
    engines, passes = [], []

    def build(*args: Any, **kwargs: Any) -> Any:
        engines.append(context.build(*args, **kwargs))
        return engines[-1]

    class Counted(type(context.calibration)):  # type: ignore[misc]
        def batches(self, size: int) -> Iterator[Batch]:
            passes.append(size)
            return super().batches(size)

    watched = replace(context, observe=build, calibration=Counted(x))
    observe_ranges(model, ["x", "h", "y"], watched, RangeMethod.MINMAX, 100, 8)
    assert passes == [8]
    assert [engine.runs for engine in engines] == [4]


def test_the_values_fetched_at_once_are_bounded(
    kit: Any, model: Any, random: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(64, 16)
    context = kit.context({"x": x})
    fetched: list[int] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        engine = context.build(*args, **kwargs)
        run = engine.run

        def watched(*run_args: Any) -> Any:
            results = run(*run_args)
            fetched.append(sum(values.nbytes for values in results.values()))
            return results

        engine.run = watched
        return engine

    limit = 300
    monkeypatch.setattr(_calibrate, "BUDGET_BYTES", limit)
    found = observe_ranges(
        model, ["x", "h", "y"], replace(context, observe=build), RangeMethod.PERCENTILE, 100, 32
    )
    assert max(fetched) <= limit
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_are_named(kit: Any, model: Any, random: Any, bad: float) -> None:
    x = random(20, 16)
    x[13, 2] = bad
    with pytest.raises(InputError, match=r"sample 13 of arrays .* input 'x'"):
        observe_ranges(model, ["h"], kit.context({"x": x}), RangeMethod.MINMAX, 100, 4)


@pytest.mark.parametrize("method", list(RangeMethod))
@pytest.mark.parametrize("op", ["Log", "Sqrt"])
def test_non_finite_activations_are_named(
    kit: Any, parse: Any, random: Any, method: RangeMethod, op: str
) -> None:
    model = parse(
        f"g (float[N, 16] x) => (float[N, 16] y) {{ h = {op} (x) y = Relu (h) }}",
    )
    x = np.abs(random(8, 16)) + 1
    x[5, 5] = -1.0
    with pytest.raises(InputError, match="activation 'h' becomes NaN or infinity"):
        observe_ranges(model, ["x", "h"], kit.context({"x": x}), method, 100, 4)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_large_values_whose_sum_overflows_are_fine(kit: Any, model: Any, method: RangeMethod) -> None:
    x = np.full((4, 16), 3e38, np.float32)
    found = observe_ranges(model, ["x"], kit.context({"x": x}), method, 100, 4)
    assert found["x"].high == pytest.approx(3e38)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_no_samples(kit: Any, model: Any, method: RangeMethod) -> None:
    with pytest.raises(InputError, match="no samples"):
        observe_ranges(model, ["h"], kit.context({"x": np.empty((0, 16), np.float32)}), method, 100, 4)
