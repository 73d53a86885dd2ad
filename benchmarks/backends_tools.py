"""What `bench_backends` compares, and its goals: run times, precisions, tuned and untuned, and who is measured against whom."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greencc.compiler.options import parse_seconds
from greencc.core.machine import usable_threads

ORT, OPENVINO, TVM = "cpu", "openvino", "tvm-cpu"
BACKENDS: Mapping[str, str] = {ORT: "ONNX Runtime", OPENVINO: "OpenVINO", TVM: "TVM"}
"""Run times by the name of their target; the first one is what others are measured against."""
FP32, INT8 = "fp32", "int8"
PRECISIONS = (FP32, INT8)
TUNABLE = (TVM,)
BATCHES = (1, 8)
"""Of the tables; the plots have more."""
PLOT_BATCHES = (1, 2, 4, 8, 16)
MOST_THREADS = 8
TUNE_VARIABLE, TUNE_DEFAULT = "BENCH_TUNE", "10m"
QUICK_TUNE = 10.0

UNTUNED_GOAL, TUNED_GOAL, INT8_GOAL, CHOICE_GOAL = 2.0, 1.2, 1.5, 1.03
TUNED_CASES, INT8_CASE = "resnet", "efficientnet"
"""Parts of the names of the cases that a goal is about."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One artifact of a case.

    Attributes:
        backend: Name of its target.
        precision: FP32 or INT8.
        tuned: Whether its kernels were tuned.
    """

    backend: str
    precision: str
    tuned: bool = False

    @property
    def key(self) -> str:
        return f"{self.backend}-{self.precision}" + ("-tuned" if self.tuned else "")

    @property
    def label(self) -> str:
        return f"{BACKENDS[self.backend]} {self.precision.upper()}" + (", tuned" if self.tuned else "")

    @property
    def rivals(self) -> dict[str, str]:
        """Whom its speed is told against: name of the comparison and key of the other; itself is none."""
        found = {name: Item(name, self.precision).key for name in BACKENDS}
        found["fp32"] = Item(self.backend, FP32, self.tuned).key
        found["untuned"] = Item(self.backend, self.precision).key
        return {name: key for name, key in found.items() if key != self.key}


ITEMS: tuple[Item, ...] = tuple(
    Item(backend, precision, tuned)
    for backend in BACKENDS
    for tuned in ((False, True) if backend in TUNABLE else (False,))
    for precision in PRECISIONS
)


def thread_counts() -> tuple[int, ...]:
    """1, 2, 4, ... up to what this process may use."""
    most = min(usable_threads(), MOST_THREADS)
    return tuple(count for count in (1, 2, 4, 8) if count <= most)


def tuning_seconds(quick: bool) -> float:
    """Of a case, all its tuned artifacts together: ``BENCH_TUNE=2m``; 0 leaves tuning out.

    Raises:
        UsageError: It is not a duration.
    """
    return QUICK_TUNE if quick else parse_seconds(os.environ.get(TUNE_VARIABLE, TUNE_DEFAULT))


def latency_of(row: Row | None, threads: int | str, batch: int) -> Row | None:
    """A measured point, or None."""
    if row is None or row.get("error") is not None:
        return None
    point = row.get("latency", {}).get(str(threads), {}).get(str(batch))
    return point if point is not None and point.get("error") is None else None


def speedup(row: Row | None, against: str, threads: int | str, batch: int) -> Row | None:
    """The other's latency by that of the row (above 1: the row is faster) with its interval, or None."""
    point = latency_of(row, threads, batch)
    return None if point is None else point["speedups"].get(against)


@dataclass(frozen=True)
class Verdict:
    """A goal on one case.

    Attributes:
        case: Its name.
        met: Whether every setting meets the goal.
        worst: The figure of the worst setting.
        where: Which setting that is.
    """

    case: str
    met: bool
    worst: float
    where: str


def judged(
    case: str, row: Row | None, against: str, least: float, threads: Sequence[int], *, strict: bool = False
) -> Verdict | None:
    """Whether a row is at least `least` times as fast as another at every setting of the tables.

    Args:
        strict: It must be faster than that.

    Returns:
        None where nothing was measured.
    """
    found: list[tuple[float, str]] = []
    for count in threads:
        for batch in BATCHES:
            ratio = speedup(row, against, count, batch)
            if ratio is not None:
                found.append((ratio["value"], f"{count} thread{'s' * (count > 1)}, batch {batch}"))
    if not found:
        return None
    worst, where = min(found)
    return Verdict(case, worst > least if strict else worst >= least, worst, where)
