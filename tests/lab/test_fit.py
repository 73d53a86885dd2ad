"""The fits alone: collinear regressors, too little, nonsense."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from greencc.core.errors import UnavailableError
from greencc.core.kernels import Work
from greencc.lab.fit import MIN_BENCHMARKS, MIN_ENERGIES, Sample, fit_energies, fit_times
from greencc.meters.roofline import Demand

RATE, BANDWIDTH, LAUNCH, RUN = 1e11, 1e10, 2e-6, 1e-5
WATTS, PER_OPERATION, PER_BYTE = 5.0, 1e-11, 1e-10


def samples(count: int = 40, *, tied: bool = False) -> list[Sample]:
    """Kernels of a machine with the figures above; `tied`: bytes are always a thousandth of the operations."""
    random = np.random.default_rng(1)
    found = []
    for index in range(count):
        operations = float(10.0 ** random.uniform(3, 9))
        moved = operations / 1e3 if tied else float(10.0 ** random.uniform(2, 8))
        kernels = int(random.integers(1, 20))
        seconds = RUN + kernels * (max(operations / RATE, moved / BANDWIDTH) + LAUNCH)
        joules = WATTS * seconds + kernels * (operations * PER_OPERATION + moved * PER_BYTE)
        demand = Demand({("float32", Work.PRODUCT): operations}, {0: moved})
        found.append(Sample(f"b{index}", (demand,) * kernels, seconds, joules, seconds))
    return found


def test_coefficients_are_recovered() -> None:
    times = fit_times(samples())
    assert times.rates["float32", Work.PRODUCT] == pytest.approx(RATE, rel=0.02)
    assert times.bandwidths[0] == pytest.approx(BANDWIDTH, rel=0.02)
    assert times.kernel_seconds == pytest.approx(LAUNCH, rel=0.02)
    assert times.run_seconds == pytest.approx(RUN, rel=0.02)
    assert times.error.mape < 0.01
    energies = fit_energies(samples())
    assert energies.busy_watts == pytest.approx(WATTS, rel=1e-3)
    assert energies.joules_per_operation["float32"] == pytest.approx(PER_OPERATION, rel=1e-3)
    assert energies.joules_per_byte[0] == pytest.approx(PER_BYTE, rel=1e-3)
    assert energies.error.mape < 1e-3
    assert energies.collinear == ()


def test_noise_shows_in_the_error_and_hardly_in_the_coefficients() -> None:
    random = np.random.default_rng(2)
    noisy = [
        replace(sample, joules=(sample.joules or 0.0) * float(np.exp(random.normal(0.0, 0.05))))
        for sample in samples(80)
    ]
    found = fit_energies(noisy)
    assert 0.02 < found.error.mape < 0.1
    assert found.busy_watts == pytest.approx(WATTS, rel=0.05)
    assert found.joules_per_operation["float32"] == pytest.approx(PER_OPERATION, rel=0.15)


def test_one_disturbed_benchmark_bends_the_times_little() -> None:
    rows = samples()
    rows[7] = replace(rows[7], seconds=rows[7].seconds * 20.0)
    found = fit_times(rows)
    assert found.rates["float32", Work.PRODUCT] == pytest.approx(RATE, rel=0.1)
    assert found.error.errors["b7"] == pytest.approx(1 / 20, rel=0.2)


def test_regressors_that_cannot_be_told_apart_are_named() -> None:
    found = fit_energies(samples(tied=True))
    assert set(found.collinear) == {"float32 operations", "bytes of level 0"}
    # Their sum is known all the same.
    both = found.joules_per_operation["float32"] + found.joules_per_byte[0] / 1e3
    assert both == pytest.approx(PER_OPERATION + PER_BYTE / 1e3, rel=1e-3)


def test_coefficients_are_never_negative() -> None:
    rows = [replace(sample, joules=WATTS * sample.seconds * 0.5) for sample in samples()]
    found = fit_energies(rows)
    assert min(found.joules_per_operation["float32"], found.joules_per_byte[0], found.busy_watts) >= 0.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused(value: float) -> None:
    rows = samples()
    rows[3] = replace(rows[3], joules=value)
    with pytest.raises(UnavailableError, match="the energy of benchmark b3"):
        fit_energies(rows)
    rows[3] = replace(rows[3], seconds=value)
    with pytest.raises(UnavailableError, match="the time of benchmark b3"):
        fit_times(rows)


def test_too_few_benchmarks_are_refused() -> None:
    rows = samples(MIN_BENCHMARKS - 1)
    with pytest.raises(UnavailableError, match="only 11 benchmarks gave a usable time"):
        fit_times(rows)
    short = samples(MIN_ENERGIES - 1)
    with pytest.raises(UnavailableError, match="only 29 benchmarks gave a usable energy: a fit needs 30"):
        fit_energies(short)
    assert fit_energies(samples(MIN_ENERGIES)).busy_watts > 0.0
    without = [replace(sample, joules=None, busy_seconds=None) for sample in samples()]
    with pytest.raises(UnavailableError, match="only 0 benchmarks gave a usable energy"):
        fit_energies(without)
