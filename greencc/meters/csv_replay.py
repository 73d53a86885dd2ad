"""A recording played back: power or cumulative energy from a CSV file.

    seconds,package-0.watts,dram.watts
    0.0,12.5,1.5
    0.1,13.0,1.5

The first column is `seconds`; each other one is `DOMAIN.watts` or `DOMAIN.joules`, all of the same kind (`watts` and
`joules` alone are the domain `replay`). `joules` are cumulative. A recording tells nothing about what runs now, so it
is grade D unless the user says what grade the recorded sensor had, and its boundary always begins with "replay of".
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import stat
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from greencc.core.errors import InputError, UnavailableError
from greencc.core.meter import Grade, PowerSample, Reading
from greencc.meters._external import check_uncertainty, reason

MAX_BYTES = 256 << 20
_MAX_LINE = 1 << 16
_DOMAIN = "replay"


class Pace(Enum):
    """How a recording is played: against the clock, or a row at each call."""

    CLOCK = "clock"
    STEPS = "steps"


@dataclass(frozen=True)
class Recording:
    """What a file holds.

    Attributes:
        path: The file.
        domains: Names of the columns after `seconds`.
        energy: Whether the values are cumulative joules, instead of watts.
        seconds: Of each row, increasing.
        values: Of each row, in the order of `domains`.
        period_s: Median time between two rows.
    """

    path: Path
    domains: tuple[str, ...]
    energy: bool
    seconds: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    period_s: float


def load_recording(path: Path) -> Recording:
    """Read and check a recording.

    Raises:
        InputError: The file is missing, no regular file, too large or empty, a line is too long, a column is unknown or
            there twice, a value is no number, negative, NaN or infinite, time does not increase, or joules
            decrease; the message names the line.
    """
    try:
        with _opened(path) as file:
            rows = csv.reader(_lines(path, file), strict=True)
            header = next(rows, None)
            if not header:
                raise InputError(f"{path} is empty", hint="the first line names the columns: seconds,watts")
            domains, energy = _columns(path, header)
            seconds: list[float] = []
            values: list[tuple[float, ...]] = []
            for row in rows:
                if not row:
                    continue
                numbers = _numbers(path, rows.line_num, header, row)
                if seconds and numbers[0] <= seconds[-1]:
                    raise InputError(f"{path}, line {rows.line_num}: time does not increase")
                if energy and values and any(b < a for a, b in zip(values[-1], numbers[1:], strict=True)):
                    raise InputError(
                        f"{path}, line {rows.line_num}: cumulative joules decrease",
                        hint="cut the file at the reset",
                    )
                seconds.append(numbers[0])
                values.append(numbers[1:])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    if len(seconds) < 2:
        raise InputError(f"{path} has {len(seconds)} rows", hint="a recording has at least two")
    period = statistics.median(b - a for a, b in itertools.pairwise(seconds))
    return Recording(path, domains, energy, tuple(seconds), tuple(values), period)


def _opened(path: Path) -> io.BufferedReader:
    """A regular file; what else there may be at the path could wait or give bytes for ever."""
    # Not to wait for whoever writes into a pipe; regular files do not care.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot read {path}: Is a directory")
    raise InputError(f"{path} is no regular file", hint="give the file of a recording, no device or pipe")


def _lines(path: Path, file: io.BufferedReader) -> Iterator[str]:
    """The file's lines, within bounds however much is written to it meanwhile."""
    size = 0
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
        size += len(line)
        if len(line) > _MAX_LINE:
            raise InputError(f"{path}, line {number} has more than {_MAX_LINE} bytes")
        if size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES >> 20} MiB", hint="cut the recording")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _columns(path: Path, header: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    names = [name.strip() for name in header]
    hint = "the columns are seconds, then DOMAIN.watts or DOMAIN.joules"
    if names[0] != "seconds" or len(names) < 2:
        raise InputError(f"{path}: the first line is {','.join(names)[:80]!r}", hint=hint)
    domains, kinds = [], set()
    for name in names[1:]:
        domain, _, kind = name.rpartition(".")
        if kind not in ("watts", "joules"):
            raise InputError(f"{path}: column {name!r} is neither watts nor joules", hint=hint)
        domains.append(domain or _DOMAIN)
        kinds.add(kind)
    if len(kinds) > 1:
        raise InputError(f"{path} mixes watts and joules", hint="keep one kind of columns")
    twice = sorted({domain for domain in domains if domains.count(domain) > 1})
    if twice:
        raise InputError(f"{path}: the domain {twice[0]!r} is there twice")
    return tuple(domains), kinds == {"joules"}


def _numbers(path: Path, line: int, header: Sequence[str], row: Sequence[str]) -> tuple[float, ...]:
    if len(row) != len(header):
        raise InputError(f"{path}, line {line}: {len(row)} values for {len(header)} columns")
    numbers = []
    for name, text in zip(header, row, strict=True):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (number < 0.0 and name.strip() != "seconds"):
            raise InputError(
                f"{path}, line {line}: {name.strip()} is {text.strip()[:40]!r}",
                hint="expected a number, not below 0",
            )
        numbers.append(number)
    return tuple(numbers)


@dataclass
class _Replay:
    """What both kinds of replay share; against the clock, playing starts with the first call that takes a row."""

    recording: Recording
    pace: Pace = Pace.CLOCK
    grade: Grade = Grade.D
    uncertainty: float | None = None
    clock: Callable[[], float] = time.monotonic
    _start: float | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def boundary(self) -> str:
        return f"replay of {self.recording.path.name} ({' + '.join(self.recording.domains)})"

    @property
    def period_s(self) -> float:
        return self.recording.period_s

    def missing(self) -> str | None:
        """Why there is no next row; None does not use one up."""
        return reason(self._peek)

    def _row(self) -> tuple[float, dict[str, float]]:
        row, offset = self._peek()
        if self.pace is Pace.STEPS:
            self._next = row + 1
        elif self._start is None:
            self._start = offset
        values = dict(zip(self.recording.domains, self.recording.values[row], strict=True))
        return offset + self.recording.seconds[row], values

    def _peek(self) -> tuple[int, float]:
        """The row that is due, and what to add to its seconds."""
        seconds = self.recording.seconds
        if self.pace is Pace.STEPS:
            if self._next >= len(seconds):
                raise self._over()
            return self._next, 0.0
        now = self.clock()
        offset = now - seconds[0] if self._start is None else self._start
        # The last row holds for one more period, as long as every other did.
        if now - offset > seconds[-1] + self.period_s:
            raise self._over()
        return max(0, bisect_right(seconds, now - offset) - 1), offset

    def _over(self) -> UnavailableError:
        seconds = self.recording.seconds
        return UnavailableError(
            f"the recording {self.recording.path.name} is over after {seconds[-1] - seconds[0]:g} s",
            hint="record for longer, or measure for a shorter time",
        )


class PowerReplay(_Replay):
    """Implements `greencc.core.meter.PowerMeter` over recorded watts."""

    def sample(self) -> PowerSample:
        """The row that is due.

        Raises:
            UnavailableError: The recording is over.
        """
        return PowerSample(*self._row())


class EnergyReplay(_Replay):
    """Implements `greencc.core.meter.Meter` over recorded joules."""

    def read(self) -> Reading:
        """The row that is due.

        Raises:
            UnavailableError: The recording is over.
        """
        return Reading(*self._row())


def replay(
    path: Path, pace: Pace = Pace.CLOCK, grade: Grade = Grade.D, uncertainty: float | None = None
) -> PowerReplay | EnergyReplay:
    """A meter that plays a file back.

    Raises:
        InputError: As `load_recording`.
        UsageError: The uncertainty is no share.
    """
    check_uncertainty("csv", uncertainty)
    recording = load_recording(path)
    kind = EnergyReplay if recording.energy else PowerReplay
    return kind(recording, pace, grade, uncertainty)
