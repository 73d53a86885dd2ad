"""The report of one model compiled for several targets, as plain data. Field names are the keys of `matrix.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from greencc.core.report import Accuracy, BuildInfo, Candidate, Figures, ModelInfo, Ratio

MATRIX_SCHEMA = "greencc.matrix/1"


@dataclass(frozen=True)
class TargetFailure:
    """Why there is no bundle for a target: the message, what to do, and the exit code that it stands for."""

    message: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True)
class TargetResult:
    """What was compiled for one target: what its report says, in short.

    Attributes:
        bundle: Its folder, beside `matrix.json`.
        verdict: In one sentence.
        precision: Of what was shipped.
        runs_on: The target it was built for in the end, which may be another run time of the same device.
        device: Whose figures these are.
        baseline: The original model there.
        artifact: What was shipped.
        ratio: baseline / artifact.
        accuracy: Of what was shipped, on the certification split.
        met: Whether what was asked for is kept; None: not known.
        forms: Every form that was tried, with its loss on the planning split.
        build: Where it was built to the end; None: here.
        warnings: Of its compile.
        latency_doubt: Why no change of latency is claimed; empty where it may be.
        energy_doubt: The same of energy.
    """

    bundle: str
    verdict: str
    precision: str
    runs_on: str
    device: str
    baseline: Figures
    artifact: Figures
    ratio: Ratio
    accuracy: Accuracy
    met: bool | None
    forms: tuple[Candidate, ...]
    build: BuildInfo | None
    warnings: tuple[str, ...]
    latency_doubt: str = ""
    energy_doubt: str = ""


@dataclass(frozen=True)
class TargetRow:
    """A target of the matrix: `result`, or the `failure` that it ended with.

    Attributes:
        target: As it was asked for.
        seconds: What its compile took.
        reused: How many results of the targets before it were of use again.
        saved_seconds: What computing those had taken.
    """

    target: str
    seconds: float
    reused: int
    saved_seconds: float
    result: TargetResult | None
    failure: TargetFailure | None


@dataclass(frozen=True)
class ArithmeticResult:
    """One artifact file under one arithmetic.

    Attributes:
        arithmetic: Its short name, a value of `greencc.compiler.cross_check.Arithmetic`.
        machines: Which machines compute so.
        simulated: It was computed by a reference, not by a run time on such a machine.
        accuracy: The metric; None without labels.
        loss: What `max_drop` limits: the drop, or without labels the share of decisions that changed.
        changed: Share of samples whose decision is another one than on the artifact's own target.
    """

    arithmetic: str
    machines: str
    simulated: bool
    accuracy: float | None
    loss: float
    changed: float


@dataclass(frozen=True)
class CrossRow:
    """One artifact file under the arithmetic of several kinds of machine, on the same samples.

    Attributes:
        target: What it was compiled for.
        file: Relative to `matrix.json`.
        metric: What was compared.
        n: Samples.
        results: The first is how it runs on its own target here; empty where nothing was compared.
        note: Why not.
        warnings: Arithmetics that lose more than the limit beyond the first.
    """

    target: str
    file: str
    metric: str
    n: int
    results: tuple[ArithmeticResult, ...]
    note: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class MatrixReport:
    """Everything `matrix.json` holds."""

    greencc: str
    created: str
    model: ModelInfo
    asked: dict[str, Any]
    max_drop: float
    rows: tuple[TargetRow, ...]
    cross: tuple[CrossRow, ...]
    seconds: float
    schema: str = MATRIX_SCHEMA

    @property
    def exit_code(self) -> int:
        """0 when every target has a bundle, else the highest code of those that have none."""
        return max((row.failure.exit_code for row in self.rows if row.failure is not None), default=0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must not be overlooked: targets without a bundle, and files that are worse elsewhere."""
        failed = tuple(
            f"no bundle for {row.target}: {row.failure.message}"
            for row in self.rows
            if row.failure is not None
        )
        return failed + tuple(warning for row in self.cross for warning in row.warnings)
