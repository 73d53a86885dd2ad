"""Fit a device's coefficients to benchmarks: times with the roofline, energies with non-negative least squares.

Times. The roofline (`greencc.meters.roofline`) is fitted in logarithms, so that a benchmark of 10 us counts as much as
one of 10 ms, with a soft L1 loss: a run that a neighbour disturbed does not bend all others. A weak pull towards the
starting values keeps what no benchmark is bound by from running away.

Energies. ``E = P_busy t + sum e_op ops + sum e_byte bytes`` with all coefficients at least 0 (Lawson and Hanson, NNLS,
1974), rows divided by E: relative errors count.

Leave-one-out: each benchmark is predicted by a fit to all others. The mean absolute relative error and the factor
within which 95 % of the predictions lie are published with the coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.errors import UnavailableError
from greencc.core.kernels import Work
from greencc.meters.roofline import Demand

Floats = NDArray[np.float64]
MIN_BENCHMARKS = 12
MIN_ENERGIES = 30
"""Of a fit of energies, which is of grade C (docs/estimate.md)."""
_PULL = 1e-3
_SMALLEST = 1e-9
"""Seconds: overheads are not fitted below."""
_COLLINEAR = 1e3
_COVERAGE = 0.95


@dataclass(frozen=True)
class Sample:
    """One benchmark: what its kernels ask for, and what was measured."""

    name: str
    demands: tuple[Demand, ...]
    seconds: float
    joules: float | None = None
    busy_seconds: float | None = None


@dataclass(frozen=True)
class LeaveOneOut:
    """How well benchmarks are predicted that the fit has not seen."""

    mape: float
    factor: float
    errors: dict[str, float]
    """Predicted / measured by benchmark."""


@dataclass(frozen=True)
class TimeFit:
    """Fitted figures: operations per second by type and kind, bytes per second by level, overheads in seconds."""

    rates: dict[tuple[str, Work], float]
    bandwidths: dict[int, float]
    kernel_seconds: float
    run_seconds: float
    error: LeaveOneOut


@dataclass(frozen=True)
class EnergyFit:
    """Fitted coefficients: watts while busy, joules per operation by type, joules per byte by level.

    `collinear` names regressors that the benchmarks cannot tell apart: only their sum is known.
    """

    busy_watts: float
    joules_per_operation: dict[str, float]
    joules_per_byte: dict[int, float]
    error: LeaveOneOut
    collinear: tuple[str, ...]


def fit_times(samples: Sequence[Sample]) -> TimeFit:
    """Fit the roofline.

    Raises:
        UnavailableError: There are too few benchmarks, or a time is not a positive number.
    """
    _check(samples, [sample.seconds for sample in samples], "time", MIN_BENCHMARKS)
    model = _TimeModel(samples)
    theta = model.fit(np.arange(len(samples)))
    predictions = [
        float(model.predict(model.fit(np.delete(np.arange(len(samples)), index), theta))[index])
        for index in range(len(samples))
    ]
    values = np.exp(theta)
    rates = len(model.rates)
    return TimeFit(
        rates={key: float(1.0 / values[index]) for index, key in enumerate(model.rates)},
        bandwidths={key: float(1.0 / values[rates + index]) for index, key in enumerate(model.levels)},
        kernel_seconds=float(values[-2]),
        run_seconds=float(values[-1]),
        error=_left_out(samples, predictions, [sample.seconds for sample in samples]),
    )


class _TimeModel:
    """Kernels as rows of matrices. Parameters are logarithms of seconds per operation, per byte, kernel and run."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        kernels = [(index, demand) for index, sample in enumerate(samples) for demand in sample.demands]
        self.rates = sorted(
            {key for _, demand in kernels for key, count in demand.operations.items() if count},
            key=lambda key: (key[0], key[1].value),
        )
        self.levels = sorted({key for _, demand in kernels for key, count in demand.bytes.items() if count})
        self.owner = np.array([index for index, _ in kernels])
        self.operations = np.array(
            [[demand.operations.get(key, 0.0) for key in self.rates] for _, demand in kernels]
        ).reshape(len(kernels), len(self.rates))
        self.bytes = np.array(
            [[demand.bytes.get(key, 0.0) for key in self.levels] for _, demand in kernels]
        ).reshape(len(kernels), len(self.levels))
        self.measured = np.array([sample.seconds for sample in samples])
        self.start = self._start()

    def _start(self) -> Floats:
        """The best that each resource was seen to reach, and the smallest time."""
        count = len(self.measured)

        def least(work: Floats) -> Floats:
            total = np.stack([np.bincount(self.owner, column, count) for column in work.T], axis=1)
            ratio = np.where(total > 0.0, self.measured[:, None] / np.maximum(total, 1e-300), np.inf)
            return np.asarray(ratio.min(axis=0))

        kernels = np.bincount(self.owner, minlength=count)
        overhead = float((self.measured / np.maximum(kernels, 1)).min())
        run = float(self.measured.min())
        start: Floats = np.log(
            np.concatenate(
                [least(self.operations), least(self.bytes), [max(overhead, _SMALLEST) / 2.0, run / 2.0]]
            )
        )
        return start

    def predict(self, theta: Floats) -> Floats:
        """Seconds of every benchmark."""
        values = np.exp(np.clip(theta, -60.0, 20.0))
        rates = len(self.rates)
        compute = self.operations @ values[:rates]
        memory = self.bytes @ values[rates:-2]
        times = np.maximum(compute, memory) + values[-2]
        total: Floats = np.bincount(self.owner, times, len(self.measured)) + values[-1]
        return total

    def fit(self, rows: NDArray[np.intp], start: Floats | None = None) -> Floats:
        from scipy.optimize import least_squares

        begin = self.start if start is None else start

        def residuals(theta: Floats) -> Floats:
            wrong = np.log(self.predict(theta)[rows] / self.measured[rows])
            joined: Floats = np.concatenate([wrong, math.sqrt(_PULL) * (theta - self.start)])
            return joined

        found = least_squares(residuals, begin, loss="soft_l1", f_scale=0.2)
        return np.asarray(found.x)


def fit_energies(samples: Sequence[Sample]) -> EnergyFit:
    """Fit the energy coefficients to the samples that have joules.

    Raises:
        UnavailableError: There are too few, or an energy is not a positive number.
    """
    known = [sample for sample in samples if sample.joules is not None and sample.busy_seconds is not None]
    joules = [sample.joules or 0.0 for sample in known]
    _check(known, joules, "energy", MIN_ENERGIES)
    _check(known, [sample.busy_seconds or 0.0 for sample in known], "time", MIN_ENERGIES)
    dtypes = sorted(
        {dtype for sample in known for demand in sample.demands for dtype, _ in demand.operations}
    )
    levels = sorted({level for sample in known for demand in sample.demands for level in demand.bytes})
    design = np.array([_regressors(sample, dtypes, levels) for sample in known])
    measured = np.array(joules)
    names = [
        "busy seconds",
        *(f"{dtype} operations" for dtype in dtypes),
        *(f"bytes of level {i}" for i in levels),
    ]
    coefficients = _non_negative(design, measured)
    predictions = []
    for index in range(len(known)):
        kept = np.delete(np.arange(len(known)), index)
        predictions.append(float(design[index] @ _non_negative(design[kept], measured[kept])))
    return EnergyFit(
        busy_watts=float(coefficients[0]),
        joules_per_operation={dtype: float(coefficients[1 + i]) for i, dtype in enumerate(dtypes)},
        joules_per_byte={level: float(coefficients[1 + len(dtypes) + i]) for i, level in enumerate(levels)},
        error=_left_out(known, predictions, joules),
        collinear=_collinear(design / measured[:, None], names),
    )


def _regressors(sample: Sample, dtypes: Sequence[str], levels: Sequence[int]) -> list[float]:
    operations = dict.fromkeys(dtypes, 0.0)
    moved = dict.fromkeys(levels, 0.0)
    for demand in sample.demands:
        for (dtype, _), count in demand.operations.items():
            operations[dtype] += count
        for level, count in demand.bytes.items():
            moved[level] += count
    return [sample.busy_seconds or 0.0, *operations.values(), *moved.values()]


def _non_negative(design: Floats, measured: Floats) -> Floats:
    """Coefficients of ``design @ c = measured`` in relative error; columns are scaled to be comparable first."""
    from scipy.optimize import nnls

    relative = design / measured[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0.0] = 1.0
    found, _ = nnls(relative / scale, np.ones(len(measured)))
    coefficients: Floats = np.asarray(found) / scale
    return coefficients


def _collinear(relative: Floats, names: Sequence[str]) -> tuple[str, ...]:
    """Regressors of the weakest direction, where it is much weaker than the strongest."""
    scale = np.linalg.norm(relative, axis=0)
    used = np.flatnonzero(scale > 0.0)
    _, strengths, directions = np.linalg.svd(relative[:, used] / scale[used], full_matrices=False)
    if len(strengths) < len(used) or strengths[-1] * _COLLINEAR < strengths[0]:
        return tuple(names[used[i]] for i in np.flatnonzero(np.abs(directions[-1]) > 0.3))
    return ()


def _check(samples: Sequence[Sample], values: Sequence[float], what: str, least: int) -> None:
    if len(samples) < least:
        raise UnavailableError(
            f"only {len(samples)} benchmarks gave a usable {what}: a fit needs {least}",
            hint="stop other programs and calibrate again; what was measured is kept",
        )
    for sample, value in zip(samples, values, strict=True):
        if not (math.isfinite(value) and value > 0.0):
            raise UnavailableError(
                f"the {what} of benchmark {sample.name} is {value}, so nothing can be fitted",
                hint="check the meter with 'greencc doctor'" if what == "energy" else None,
            )


def _left_out(
    samples: Sequence[Sample], predictions: Sequence[float], measured: Sequence[float]
) -> LeaveOneOut:
    ratios = np.array(predictions) / np.array(measured)
    logs = np.abs(np.log(np.maximum(ratios, 1e-6)))
    return LeaveOneOut(
        mape=float(np.mean(np.abs(ratios - 1.0))),
        factor=float(np.exp(np.quantile(logs, _COVERAGE))),
        errors={sample.name: float(ratio) for sample, ratio in zip(samples, ratios, strict=True)},
    )
