"""What the calibration benchmarks gave, and the file that lets an interrupted calibration go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from greencc.core.files import atomic_file

SCHEMA = "greencc.calibration-run/1"
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Observation:
    """One benchmark.

    Attributes:
        name: Of the benchmark.
        seconds: Per run, the median.
        joules: Per run, gross; None where nothing was measured.
        busy_seconds: Mean per run of the block that the joules are from; None likewise.
        runs: How many.
        disturbed: Something disturbed every attempt: other processes, throttling, a suspend, a clock that was set.
    """

    name: str
    seconds: float
    joules: float | None
    busy_seconds: float | None
    runs: int
    disturbed: bool


@dataclass(frozen=True)
class Journal:
    """Observations so far in a file, written anew after each.

    Attributes:
        path: The file.
        key: What they depend on (machine, versions, suite, meter); others' are not taken over.
    """

    path: Path
    key: str

    def read(self) -> dict[str, Observation]:
        """Observations of an earlier run by name; none where the file is missing, damaged or of something else."""
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                return {}
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("key") != self.key:
            return {}
        rows = data.get("rows")
        found = [_observation(row) for row in rows] if isinstance(rows, list) else []
        return {row.name: row for row in found if row is not None}

    def write(self, rows: Mapping[str, Observation]) -> None:
        """Keep what there is.

        Raises:
            InputError: The file cannot be written.
        """
        data = {"schema": SCHEMA, "key": self.key, "rows": [asdict(row) for row in rows.values()]}
        with atomic_file(self.path) as file:
            file.write_text(json.dumps(data), encoding="utf-8")

    def remove(self) -> None:
        """Forget it: the calibration is done."""
        self.path.unlink(missing_ok=True)


def _observation(row: Any) -> Observation | None:
    """A row of the file, or None where something in it cannot be."""
    if not isinstance(row, dict):
        return None
    name, runs, disturbed = row.get("name"), row.get("runs"), row.get("disturbed")
    figures = [row.get(key) for key in ("seconds", "joules", "busy_seconds")]
    known = [figure for figure in figures if figure is not None]
    sound = all(isinstance(figure, float) and math.isfinite(figure) and figure >= 0.0 for figure in known)
    if not (isinstance(name, str) and isinstance(runs, int) and isinstance(disturbed, bool) and sound):
        return None
    seconds, joules, busy = figures
    if seconds is None or seconds <= 0.0 or (joules is None) != (busy is None):
        return None
    return Observation(name, seconds, joules, busy, runs, disturbed)
