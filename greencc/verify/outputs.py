"""How far outputs are apart, accumulated over a stream in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.kl import is_float
from greencc.core.report import OutputError

# Rows are widened to float64 a slice at a time, so that large outputs do not triple in memory.
_SLICE_ELEMENTS = 1 << 20
# Below this root-mean-square error a sample counts as close even where the baseline's output is zero.
_ABSOLUTE = 1e-6


@dataclass(frozen=True)
class Verdicts:
    """Per-sample flags of one output in one batch, each of shape (n,).

    `broken`: the artifact's sample has another shape, or non-finite values where the baseline's are finite.
    `close`: within the tolerance (or equal, for types other than float); never where broken.
    `blank`: the baseline's own sample has no finite value, so that there is nothing to compare with.
    """

    broken: NDArray[np.bool_]
    close: NDArray[np.bool_]
    blank: NDArray[np.bool_]


@dataclass
class OutputStats:
    """Accumulates the distance between one output of the baseline and of the artifact.

    Args:
        name: The output's name.
        tolerance: Relative L2 error up to which a sample is close.
    """

    name: str
    tolerance: float
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0
    elements: int = 0
    differing: int = 0
    broken: int = 0
    numeric: bool = True

    def add(self, baseline: Array, artifact: Array) -> Verdicts:
        """Add one batch, both arrays with the sample as their first axis."""
        count = len(baseline)
        self.numeric = is_float(baseline)
        if artifact.shape != baseline.shape or is_float(artifact) != self.numeric:
            self.broken += count
            none = np.zeros(count, np.bool_)
            return Verdicts(np.ones(count, np.bool_), none, none)
        if not self.numeric:
            return self._add_exact(baseline, artifact)
        parts = [self._add_float(baseline[rows], artifact[rows]) for rows in _slices(baseline)]
        return Verdicts(
            np.concatenate([p.broken for p in parts]),
            np.concatenate([p.close for p in parts]),
            np.concatenate([p.blank for p in parts]),
        )

    def result(self) -> OutputError:
        """The figures so far."""
        seen = self.elements > 0
        if not self.numeric:
            share = self.differing / self.elements if seen else None
            return OutputError(self.name, None, None, None, share, self.broken)
        return OutputError(
            name=self.name,
            sqnr_db=sqnr_db(self.signal, self.noise),
            cosine=_cosine(self.dot, self.signal, self.other),
            max_abs=self.max_abs if seen else None,
            broken=self.broken,
        )

    def _add_exact(self, baseline: Array, artifact: Array) -> Verdicts:
        different = np.asarray(baseline != artifact, dtype=np.bool_).reshape(len(baseline), -1)
        self.elements += different.size
        self.differing += int(different.sum())
        none = np.zeros(len(baseline), np.bool_)
        return Verdicts(none, np.asarray(~different.any(axis=1)), none)

    def _add_float(self, baseline: Array, artifact: Array) -> Verdicts:
        a = baseline.astype(np.float64).reshape(len(baseline), -1)
        b = artifact.astype(np.float64).reshape(len(artifact), -1)
        finite = np.isfinite(a)
        broken = np.asarray((finite & ~np.isfinite(b)).any(axis=1), dtype=np.bool_)
        # Masked logits are legitimately -inf in both: such elements agree when they are the same.
        same_special = np.asarray(
            ((a == b) | finite | (np.isnan(a) & np.isnan(b))).all(axis=1), dtype=np.bool_
        )
        usable = finite & ~broken[:, None]
        a = np.where(usable, a, 0.0)
        b = np.where(usable, b, 0.0)
        error = a - b
        signal = np.einsum("ij,ij->i", a, a)
        noise = np.einsum("ij,ij->i", error, error)
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())
        self.dot += float(np.vdot(a, b))
        self.other += float(np.vdot(b, b))
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        self.elements += int(usable.sum())
        self.broken += int(broken.sum())
        limit = self.tolerance**2 * signal + _ABSOLUTE**2 * a.shape[1]
        close = np.asarray((noise <= limit) & same_special & ~broken, dtype=np.bool_)
        # An empty output (no detections) is as good as any.
        blank = np.asarray(~finite.any(axis=1) & (a.shape[1] > 0), dtype=np.bool_)
        return Verdicts(broken, close, blank)


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal to noise ratio in dB from two sums of squares; None when either is zero (or not finite)."""
    if signal <= 0.0 or noise <= 0.0 or not math.isfinite(signal) or not math.isfinite(noise):
        return None
    return 10.0 * math.log10(signal / noise)


def _cosine(dot: float, signal: float, other: float) -> float | None:
    scale = math.sqrt(signal) * math.sqrt(other)
    if scale == 0.0 or not math.isfinite(scale) or not math.isfinite(dot):
        return None
    return max(-1.0, min(1.0, dot / scale))


def _slices(array: Array) -> Iterator[slice]:
    """Row ranges of at most about a million elements; one empty range when there are no rows."""
    per_row = max(1, array.size // max(1, len(array)))
    step = max(1, _SLICE_ELEMENTS // per_row)
    for start in range(0, max(1, len(array)), step):
        yield slice(start, start + step)
