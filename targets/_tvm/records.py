"""What tuning found for one workload on one machine, and the lines of the file that keeps it.

```
greencc schedules 1
<16 hexadecimal digits of the SHA-256 of what follows the blank> {"workload": "conv-...", "place": {...}, ...}
```

Lines are independent of each other, so that one that is damaged takes no other with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from greencc.core.report import Interval
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine

HEADER = "greencc schedules 1"
KERNELS = 3
"""Goes up when the templates' code changes, or what a schedule's numbers mean: times of before say nothing then."""
SLOWER = "slower"
"""Why a schedule is out that is right, but not the best."""
_DIGITS = 16
_MOST = 1 << 20


class DamagedRecordError(ValueError):
    """A line is not what was written."""


@dataclass(frozen=True)
class Place:
    """Where times hold: on this processor, with so many threads, with these kernels from this compiler."""

    triple: str
    cpu: str
    features: tuple[str, ...]
    threads: int
    kernels: int
    tvm: str
    llvm: int

    @property
    def text(self) -> str:
        """For people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.cpu} ({self.triple}), {threads}, TVM {self.tvm}, LLVM {self.llvm}"


def place_of(machine: Machine, threads: int) -> Place:
    """Where kernels run that are generated for `machine` by the installed TVM."""
    import tvm
    from tvm.target import codegen

    return Place(
        machine.triple,
        machine.cpu,
        tuple(sorted(machine.features)),
        threads,
        KERNELS,
        str(tvm.__version__),
        int(codegen.llvm_version_major()),
    )


@dataclass(frozen=True)
class Record:
    """The state of one workload's tuning.

    Attributes:
        workload: Of `greencc.targets._tvm.workload.key_of`.
        label: The workload, for people.
        place: Where it was measured.
        best: The fastest schedule so far.
        default: The one without tuning.
        best_us: Microseconds of one call.
        default_us: Likewise.
        gain: Times of the default divided by those of the best, in the same rounds.
        out: What else was tried (the default too, where it is not the best), and why it is out.
        space: How many schedules there are.
        created: Seconds since 1970.
    """

    workload: str
    label: str
    place: Place
    best: Schedule
    default: Schedule
    best_us: Interval
    default_us: Interval
    gain: Interval
    out: Mapping[Schedule, str] = field(default_factory=dict)
    space: int = 1
    created: float = 0.0

    @cached_property
    def key(self) -> tuple[str, Place]:
        return self.workload, self.place

    @property
    def trials(self) -> int:
        return len(self.out) + 1

    @property
    def complete(self) -> bool:
        """Whether nothing is left to try."""
        return self.trials >= self.space


def merged(first: Record, second: Record) -> Record:
    """What two processes, or two machines of a kind, found for the same workload: the larger gain wins.

    Times of the default differ with what else a machine did; the gain is of times side by side. Gains over different
    defaults say nothing about each other: the later record stays.
    """
    assert first.key == second.key
    if first.default != second.default:
        return max(first, second, key=lambda item: item.created)
    winner, loser = sorted(
        (first, second), key=lambda item: (-item.gain.value, -item.created, _numbers(item.best))
    )
    out = {**loser.out, loser.best: SLOWER, **winner.out}
    out.pop(winner.best, None)
    return replace(
        winner,
        out=dict(sorted(out.items(), key=lambda item: _numbers(item[0]))),
        space=max(first.space, second.space),
    )


def to_line(record: Record) -> str:
    """One line, without its end."""
    content = {
        "workload": record.workload,
        "label": record.label,
        "place": asdict(record.place),
        "best": _numbers(record.best),
        "default": _numbers(record.default),
        "best_us": _ends(record.best_us),
        "default_us": _ends(record.default_us),
        "gain": _ends(record.gain),
        "out": [[*_numbers(schedule), reason] for schedule, reason in record.out.items()],
        "space": record.space,
        "created": record.created,
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return f"{_digest(text)} {text}"


def from_line(line: str) -> Record:
    """What `to_line` was given.

    Raises:
        DamagedRecordError: It was not, or was changed since.
    """
    digest, _, text = line.partition(" ")
    if digest != _digest(text):
        raise DamagedRecordError("its hash does not fit")
    try:
        found = json.loads(text)
        place = found["place"]
        record = Record(
            _text(found["workload"]),
            _text(found["label"]),
            Place(
                _text(place["triple"]),
                _text(place["cpu"]),
                tuple(_text(item) for item in place["features"]),
                _count(place["threads"]),
                _count(place["kernels"]),
                _text(place["tvm"]),
                _count(place["llvm"]),
            ),
            _schedule(found["best"]),
            _schedule(found["default"]),
            _interval(found["best_us"]),
            _interval(found["default_us"]),
            _interval(found["gain"]),
            {_schedule(item[:-1]): _text(item[-1]) for item in found["out"]},
            _count(found["space"]),
            _number(found["created"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DamagedRecordError(f"it has not what a record has ({error})") from error
    if record.best in record.out:
        raise DamagedRecordError("its best schedule is out")
    return record


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _numbers(schedule: Schedule) -> list[int]:
    return [getattr(schedule, each.name) for each in fields(schedule)]


def _schedule(numbers: list[int]) -> Schedule:
    if len(numbers) != len(fields(Schedule)):
        raise ValueError("a schedule has other numbers")
    return Schedule(*(_count(number) for number in numbers))


def _ends(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _interval(ends: list[float]) -> Interval:
    value, low, high = (_number(end) for end in ends)
    if not 0.0 < low <= value <= high:
        raise ValueError("an interval's ends are out of order")
    return Interval(value, low, high)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number is none")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError("a count is none")
    return value
