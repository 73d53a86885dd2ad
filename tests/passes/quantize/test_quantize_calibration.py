"""The calibration run: one pass, bounded memory, and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.cache import Cache
from greencc.core.data import Batch
from greencc.core.errors import InputError
from greencc.passes import _calibrate_channels, _statistics
from greencc.passes._calibrate import RangeMethod, RangeOptions, observe_ranges, observe_statistics
from greencc.passes._ranges import HALF, Range

TEXT = "g (float[N, 16] x) => (float[N, 16] y) { h = MatMul (x, w) y = Tanh (h) }"


@pytest.fixture
def model(parse: Any, random: Any) -> Any:
    return parse(TEXT, w=random(16, 16))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_minmax_is_exact(kit: Any, model: Any, random: Any, batch: int) -> None:
    x = random(40, 16)
    h = kit.run_as_written(model, {"x": x}, ["h"])["h"]
    found = observe_ranges(model, ["x", "h"], kit.context({"x": x}), batch=batch)
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())
    assert found["h"].low == pytest.approx(h.min(), rel=1e-5)
    assert found["h"].high == pytest.approx(h.max(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_percentiles_are_within_a_bin(kit: Any, model: Any, random: Any, batch: int) -> None:
    x = random(400, 16)
    found = observe_ranges(
        model, ["x"], kit.context({"x": x}), RangeOptions(RangeMethod.PERCENTILE, 99.0), batch=batch
    )
    low, high = np.percentile(x, [0.5, 99.5], method="inverted_cdf")
    assert np.abs(x).max() < 8
    width = 8 / 2048
    assert found["x"].low == pytest.approx(low, abs=width)
    assert found["x"].high == pytest.approx(high, abs=width)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_a_fixed_batch_sees_every_sample(kit: Any, parse: Any, random: Any, method: RangeMethod) -> None:
    model = parse(TEXT.replace("N", "4"), w=random(16, 16))
    x = np.full((10, 16), 1.0, np.float32)
    x[9] = 2.0
    found = observe_ranges(
        model, ["x"], kit.context({"x": x}), RangeOptions(method, 100, momentum=0), batch=3
    )
    assert found["x"].high == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_a_batch_of_one_hidden_in_a_reshape(kit: Any, parse: Any, random: Any, method: RangeMethod) -> None:
    model = parse(
        "g (float[N, 16] x) => (float[1, 16] y) { h = Reshape (x, shape) y = MatMul (h, w) }",
        w=random(16, 16),
        shape=np.array([1, 16], np.int64),
    )
    x = np.full((9, 16), 1.0, np.float32)
    x[8] = 2.0
    found = observe_ranges(
        model, ["h"], kit.context({"x": x}), RangeOptions(method, 100, momentum=0), batch=4
    )
    assert found["h"].high == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_one_pass_over_the_data_with_one_engine(
    kit: Any, model: Any, random: Any, method: RangeMethod
) -> None:
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
    observe_ranges(model, ["x", "h", "y"], watched, RangeOptions(method), batch=8)
    assert passes == [8]
    assert [engine.runs for engine in engines] == [4]
    # Another method finds all but the histograms in the cache, and those only once.
    for other in RangeMethod:
        observe_ranges(model, ["h", "x"], watched, RangeOptions(other), batch=8)
    assert len(engines) == (1 if method.needs_histogram else 2)
    # Only what was never observed runs again.
    observe_ranges(model, ["h"], watched, RangeOptions(method), batch=8)
    assert len(engines) == (1 if method.needs_histogram else 2)


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
    for module in (_statistics, _calibrate_channels):
        monkeypatch.setattr(module, "BUDGET_BYTES", limit)
    found = observe_ranges(
        model,
        ["x", "h", "y"],
        replace(context, observe=build),
        RangeOptions(RangeMethod.PERCENTILE, 100),
        batch=32,
    )
    assert max(fetched) <= limit
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_are_named(kit: Any, model: Any, random: Any, bad: float) -> None:
    x = random(20, 16)
    x[13, 2] = bad
    with pytest.raises(InputError, match=r"sample 13 of arrays .* input 'x'"):
        observe_ranges(model, ["h"], kit.context({"x": x}), batch=4)


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
        observe_ranges(model, ["x", "h"], kit.context({"x": x}), RangeOptions(method, 100), batch=4)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_large_values_whose_sum_overflows_are_fine(kit: Any, model: Any, method: RangeMethod) -> None:
    x = np.full((4, 16), 3e38, np.float32)
    found = observe_ranges(model, ["x"], kit.context({"x": x}), RangeOptions(method, 100), batch=4)
    assert found["x"].high == pytest.approx(3e38)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_no_samples(kit: Any, model: Any, method: RangeMethod) -> None:
    with pytest.raises(InputError, match="no samples"):
        observe_ranges(
            model,
            ["h"],
            kit.context({"x": np.empty((0, 16), np.float32)}),
            RangeOptions(method, 100),
            batch=4,
        )


@pytest.mark.parametrize("method", list(RangeMethod))
def test_the_cache_gives_the_same_ranges(
    kit: Any, model: Any, random: Any, tmp_path: Path, method: RangeMethod
) -> None:
    x = random(64, 16)
    context = kit.context({"x": x})
    fresh = observe_ranges(model, ["x", "h", "y"], context, RangeOptions(method))
    kept = replace(context, cache=Cache(tmp_path / "cache"))
    observe_ranges(model, ["x", "y"], kept, RangeOptions(RangeMethod.PERCENTILE))
    first = observe_ranges(model, ["x", "h", "y"], kept, RangeOptions(method))
    unable = replace(kept, observe=forbidden)
    assert first == fresh == observe_ranges(model, ["x", "h", "y"], unable, RangeOptions(method))


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the model runs again")


@pytest.mark.parametrize("change", ["model", "data", "batch", "momentum"])
def test_the_cache_knows_what_it_depends_on(
    kit: Any, parse: Any, model: Any, random: Any, change: str
) -> None:
    @dataclass(frozen=True)
    class Named:
        source: Any
        content: str

        def __getattr__(self, name: str) -> Any:
            return getattr(self.source, name)

        def digest(self) -> str:
            return self.content

    context = kit.context({"x": random(16, 16)})
    context = replace(context, calibration=Named(context.calibration, "one"))
    observe_ranges(model, ["h"], context, batch=4)
    watched = replace(context, observe=forbidden)
    observe_ranges(model, ["h"], watched, batch=4)
    if change == "data":
        watched = replace(watched, calibration=Named(context.calibration, "two"))
    elif change == "model":
        model = parse(TEXT, w=random(16, 16))
    with pytest.raises(AssertionError, match="runs again"):
        observe_ranges(
            model,
            ["h"],
            watched,
            RangeOptions(momentum=0.5 if change == "momentum" else 0.9),
            batch=5 if change == "batch" else 4,
        )


@pytest.mark.parametrize("width", [384, 385, 77, 16 * 13])
def test_sampled_elements_fall_on_every_channel(
    kit: Any, parse: Any, random: Any, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Strides that divide the width would see the same channels in every row."""
    model = parse(f"g (float[N, 8, {width}] x) => (float[N, 8, {width}] y) {{ y = Tanh (x) }}")
    samples = 60
    channel = np.zeros(width, np.float32)
    channel[width // 2 + 1] = 100.0
    x = random(samples, 8, width) + channel
    for share in (2, 3, 11, 13, 30):
        monkeypatch.setattr(_statistics, "ELEMENTS", x.size // share)
        found = observe_statistics(model, ["x"], kit.context({"x": x}))["x"].histogram
        counted = found.counts.sum()
        assert x.size / share / 5 <= counted <= max(x.size / share, 64 * samples) * 1.2
        right = found.counts[HALF + int(50 / found.width) :].sum()
        assert right / counted == pytest.approx(1 / width, rel=0.5)


def test_all_elements_are_counted_where_there_are_few(kit: Any, model: Any, random: Any) -> None:
    x = random(100, 16)
    found = observe_statistics(model, ["x", "h"], kit.context({"x": x}))
    assert [found[name].histogram.counts.sum() for name in ("x", "h")] == [1600, 1600]


def test_the_moving_average_is_that_of_the_runs(kit: Any, model: Any, random: Any) -> None:
    x = random(12, 16)
    options = RangeOptions(RangeMethod.MOVING_AVERAGE, momentum=0.5)
    found = observe_ranges(model, ["x"], kit.context({"x": x}), options, batch=4)["x"]
    weights = np.array([0.25, 0.5, 1.0]) / 1.75
    assert found.low == pytest.approx(weights @ x.reshape(3, -1).min(axis=1), rel=1e-6)
    assert found.high == pytest.approx(weights @ x.reshape(3, -1).max(axis=1), rel=1e-6)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_dead_values_and_values_without_elements(
    kit: Any, parse: Any, random: Any, method: RangeMethod
) -> None:
    model = parse(
        """g (float[N, 8] x) => (float[N, 8] y) {
            n = Neg (x) m = Abs (n) d = Neg (m) y = Relu (d) z = Slice (x, a, a, one) e = Relu (z)
        }""",
        a=np.array([0], np.int64),
        one=np.array([1], np.int64),
    )
    found = observe_ranges(model, ["y", "e"], kit.context({"x": random(8, 8)}), RangeOptions(method))
    assert found == {"y": Range(0, 0), "e": Range(0, 0)}


@pytest.mark.parametrize("method", list(RangeMethod))
def test_half_precision_values(kit: Any, parse: Any, random: Any, method: RangeMethod) -> None:
    model = parse(
        "g (float[N, 16] x) => (float[N, 16] y) { h = Cast <to: int = 10> (x) y = Cast <to: int = 1> (h) }"
    )
    x = np.full((8, 16), 2.0, np.float32)
    found = observe_ranges(model, ["h"], kit.context({"x": x}), RangeOptions(method))
    assert found["h"].high == 2.0


def test_histograms_need_a_slice_with_steps(kit: Any, parse: Any, random: Any) -> None:
    model = parse(TEXT, 9, w=random(16, 16))
    context = kit.context({"x": random(4, 16)})
    with pytest.raises(InputError, match="opset 9 cannot slice"):
        observe_ranges(model, ["h"], context, RangeOptions(RangeMethod.MSE))
    assert observe_ranges(model, ["x"], context)["x"].high == context.calibration.feeds["x"].max()
