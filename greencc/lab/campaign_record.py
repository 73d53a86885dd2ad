"""What one cell of a test campaign gave: a line of `cells.jsonl`, and its rows of `blocks.csv`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from greencc.core.errors import InputError
from greencc.core.report import Accuracy, Energy, Interval
from greencc.lab.campaign_spec import Cell
from greencc.report.figures import printable
from greencc.report.json_out import from_plain, to_plain

Status = Literal["measured", "partial", "unavailable", "failed"]
"""``partial``: measured, but the meter failed, so that the energy is missing or rests on a part; ``unavailable``: the
device cannot be used; ``failed``: the variant could not be built or measured."""

BLOCK_COLUMNS = (
    "campaign", "model", "variant", "device", "repetition", "role", "block", "pair", "started", "seconds",
    "inferences", "joules", "grade", "boundary", "discarded", "note", "temperature_c", "others_share", "late",
    "latency_p50_ms", "latency_p99_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Times:
    """Milliseconds per inference, run by run."""

    median: float
    p95: float
    p99: float


@dataclass(frozen=True)
class LoadTimes:
    """Milliseconds under the load, from when a request was due; `late` requests of `requests` started late."""

    p50: float
    p99: float
    requests: int
    late: int


@dataclass(frozen=True)
class Side:
    """One of the two that are compared. `energy` is per inference; None: neither measured nor estimated."""

    times: Times
    size_bytes: int
    energy: Energy | None = None
    memory_mb: float | None = None
    load: LoadTimes | None = None


@dataclass(frozen=True)
class Blocks:
    """The blocks of a cell in short.

    Attributes:
        counted: Blocks that count.
        discarded: Others, by reason.
        celsius: Lowest and highest temperature; empty: no sensor.
        others: Mean share of the machine that other processes used; None: not known.
    """

    counted: int
    discarded: dict[str, int] = field(default_factory=dict)
    celsius: tuple[float, ...] = ()
    others: float | None = None


@dataclass(frozen=True)
class Figures:
    """What was measured. Ratios are baseline / artifact; None: not known."""

    baseline: Side
    artifact: Side
    latency: Interval | None
    energy: Interval | None
    clean: bool
    blocks: Blocks
    stopped: str | None = None


@dataclass(frozen=True)
class Made:
    """What a variant is.

    Attributes:
        form: What was built, such as ``int8``: a compile may give way to a safer form than was asked for.
        bundle: Folder, relative to the campaign's where it lies inside; None: the model itself.
        accuracy: Against the model; None: not known.
    """

    form: str
    bundle: str | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class CellRecord:
    """One finished cell. `figures` is None unless it was measured, in part or in whole.

    `reason` says why it was not, and `problem` what the meter of a partial one did.
    """

    model: str
    variant: str
    device: str
    repetition: int
    status: Status
    started: str
    seconds: float
    reason: str | None = None
    made: Made | None = None
    figures: Figures | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.model, self.variant, self.device, self.repetition)


def dump_record(record: CellRecord) -> str:
    """One line of JSON, without the line break."""
    return json.dumps(to_plain(record, "cell"), ensure_ascii=True, allow_nan=False)


def parse_record(line: str, where: str) -> CellRecord:
    """The record of a line.

    Raises:
        InputError: It is damaged.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    found = from_plain(data, CellRecord, where)
    if (found.figures is None) == (found.status in ("measured", "partial")):
        raise InputError(f"{where} is {found.status} and has {'no ' if found.figures is None else ''}figures")
    if (found.problem is None) == (found.status == "partial"):
        raise InputError(
            f"{where} is {found.status} and has {'no ' if found.problem is None else 'a '}problem"
        )
    return found


def line_text(value: object) -> object:
    """What may stand in a row of `blocks.csv`: texts without line breaks, so that a row is a line."""
    return printable(value) if isinstance(value, str) else value
