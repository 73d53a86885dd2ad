"""Read the per-node times out of ONNX Runtime's profile."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greencc.core.engine import NodeTime
from greencc.core.errors import InputError

_KERNEL = "_kernel_time"
# These run other nodes inside themselves; counting both would count that time twice.
_CONTAINERS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True)
class _Event:
    key: tuple[str, str, str]
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration


def read_profile(path: Path, *, skip_runs: int = 0) -> list[NodeTime]:
    """Median microseconds per node, in execution order.

    Names and operator types are those of ONNX Runtime's own graph, after its fusions (``conv1_nchwc``,
    ``fused Conv_Relu``). Nodes inside If, Loop and Scan are counted in the node that contains them.

    Args:
        path: The JSON file the runtime wrote.
        skip_runs: Warm-up runs at the beginning to leave out.

    Raises:
        InputError: The file is not such a profile, or has too few runs.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the profile {path}: {error}") from error
    if not isinstance(events, list):
        raise InputError(f"{path} is not an ONNX Runtime profile")
    runs = _runs(events)[skip_runs:]
    if not runs:
        raise InputError(f"the profile {path} has no complete run", hint="profile more runs")
    totals: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        sums: dict[tuple[str, str, str], float] = defaultdict(float)
        for event in _outermost(run):
            sums[event.key] += event.duration
        for key, duration in sums.items():
            totals[key].append(duration)
    return [NodeTime(key[0], key[1], float(statistics.median(times))) for key, times in totals.items()]


def _runs(events: list[Any]) -> list[list[_Event]]:
    """Kernel events grouped by run: the runtime writes a `model_run` event after those of its nodes."""
    runs: list[list[_Event]] = []
    current: list[_Event] = []
    for event in events:
        if not isinstance(event, dict):
            continue
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            details = event.get("args", {})
            key = (name[: -len(_KERNEL)], str(details.get("op_name", "")), str(details.get("node_index", "")))
            current.append(_Event(key, float(event["ts"]), float(event["dur"])))
        elif name == "model_run":
            runs.append(sorted(current, key=lambda event: event.start))
            current = []
    return runs


def _outermost(run: list[_Event]) -> list[_Event]:
    kept: list[_Event] = []
    for event in run:
        inside = any(
            outer.key[1] in _CONTAINERS
            and outer.start <= event.start
            and event.end <= outer.end
            and outer is not event
            for outer in kept
        )
        if not inside:
            kept.append(event)
    return kept
