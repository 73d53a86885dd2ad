"""What a test campaign found, as plain data. Field names are the stable keys of `summary.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from greencc.core.report import Accuracy, Interval
from greencc.report.json_out import to_plain

SCHEMA = "greencc.campaign-summary/1"


@dataclass(frozen=True)
class Ratio:
    """baseline / artifact over the repetitions: above 1 the artifact is better.

    Attributes:
        interval: Of the mean of the logarithms; it holds what differs between repetitions.
        spread: Standard deviation of the repetitions' logarithms; None: there is one.
        repetitions: How many of them.
    """

    interval: Interval
    spread: float | None
    repetitions: int


@dataclass(frozen=True)
class RowEnergy:
    """Energy per inference in millijoules, over the repetitions.

    Attributes:
        baseline: Of the model.
        artifact: Of the variant.
        ratio: None: not known.
        grade: A and B are measured, C and D estimated.
        boundary: What is inside.
        method: How, in words, from the last repetition.
    """

    baseline: Interval
    artifact: Interval
    ratio: Ratio | None
    grade: str
    boundary: str
    method: str


@dataclass(frozen=True)
class RowLatency:
    """Milliseconds per inference, means over the repetitions of medians and 99th percentiles; the ratio of medians."""

    baseline_ms: float
    artifact_ms: float
    baseline_p99_ms: float
    artifact_p99_ms: float
    ratio: Ratio | None


@dataclass(frozen=True)
class RowLoad:
    """99th percentiles under the load in milliseconds, waiting included, and the share of requests that were late."""

    baseline_p99_ms: float
    artifact_p99_ms: float
    late: float


@dataclass(frozen=True)
class Row:
    """One variant of one model on one device.

    Attributes:
        form: What the compile made, such as ``int8``.
        measured: Repetitions that were, in whole.
        partial: Further ones whose meter failed: their energy is missing or rests on a part of the measurement.
        disturbed: Of them, those while other processes were busy: nothing is claimed then.
        latency: None: no repetition was measured. So for `energy` and sizes.
        load: None unless requests came at a rate.
        accuracy: Against the model; None: not known, or the model itself.
        original: The model itself, which shows the noise.
        bundle: Folder; None: there is none.
        reasons: Why repetitions are missing or partial.
    """

    model: str
    variant: str
    device: str
    form: str | None
    measured: int
    disturbed: int
    latency: RowLatency | None
    energy: RowEnergy | None
    load: RowLoad | None
    size_bytes: int | None
    baseline_bytes: int | None
    memory_mb: float | None
    accuracy: Accuracy | None
    original: bool
    bundle: str | None
    reasons: tuple[str, ...]
    partial: int = 0

    @property
    def seen(self) -> int:
        """Repetitions that there are figures of."""
        return self.measured + self.partial


@dataclass(frozen=True)
class CampaignSummary:
    """Everything `summary.json` holds.

    Attributes:
        file: Name of the campaign file; `sha256` and `text` are its contents'.
        command: How to do it again.
        cells_measured: In whole; `cells_partial` those whose meter failed.
        blocks: Blocks that count; `discarded` the others, by reason.
        inputs: Digests by what they are.
        devices: Facts by device; `conditions` what was recorded with the measurements, by device.
        seed: Of the order.
    """

    name: str
    greencc: str
    created: str
    started: str
    file: str
    sha256: str
    text: str
    command: str
    protocol: str
    load: str
    repetitions: int
    seed: int
    confidence: float
    clears_gate: bool
    cells: int
    cells_measured: int
    rows: tuple[Row, ...]
    blocks: int
    discarded: dict[str, int]
    inputs: dict[str, str]
    devices: dict[str, dict[str, str]]
    conditions: dict[str, dict[str, str]]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    cells_partial: int = 0
    schema: str = SCHEMA

    @property
    def complete(self) -> bool:
        return self.cells_measured == self.cells


def dump_summary(summary: CampaignSummary) -> str:
    """The JSON text, ending in a newline."""
    data: dict[str, Any] = to_plain(summary, "summary")
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
