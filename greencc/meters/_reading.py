"""What the meters share: reading one small file with a clear message, and summing counters that must only go up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.meter import Reading

SYSFS = Path("/sys")
_NUMBER = re.compile(r"-?\d{1,20}")
_PROBE_STEPS = 50


def read_integer(path: Path, denied: str) -> int:
    """The whole number in a sysfs attribute; opened anew each time, for that is what makes the kernel measure.

    Args:
        path: The attribute.
        denied: What to do where it may not be read.

    Raises:
        UnavailableError: It cannot be read, or holds no number.
    """
    try:
        # Twice as fast as Path.read_text, which matters at 100 readings a second.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(handle, 256).decode("ascii", "replace").strip()
        finally:
            os.close(handle)
    except PermissionError as error:
        raise UnavailableError(f"no permission to read {path}", hint=denied) from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
    if not _NUMBER.fullmatch(text):
        raise UnavailableError(f"{path} reads {text!r}, not a whole number")
    return int(text)


@dataclass
class Tally:
    """Joules since the first reading, from counters that do not wrap within a measurement.

    Args:
        source: Names the meter in messages.
        stuck_after_s: A counter that has not moved for so long has stopped counting.
    """

    source: str
    stuck_after_s: float
    epoch: int = 0
    _first: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _last: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _moved: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def reading(self, seconds: float, joules: Mapping[str, float]) -> Reading:
        """The reading that raw counters (in joules) make at `seconds`.

        Raises:
            UnavailableError: A counter came, went, went back or stands still. The next reading starts a new epoch.
        """
        if self._last and set(joules) != set(self._last):
            raise self._restart(
                f"the counters of {self.source} changed from {', '.join(self._last)} to {', '.join(joules)}"
            )
        for name, value in joules.items():
            before = self._last.get(name, value)
            if value < before:
                raise self._restart(
                    f"the {self.source} counter of {name} went back from {before:.6g} to {value:.6g} J",
                    "it was reset (suspend, driver reload); measure again",
                )
            if value != before or name not in self._moved:
                self._moved[name] = seconds
            elif seconds - self._moved[name] >= self.stuck_after_s:
                raise self._restart(f"the {self.source} counter of {name} is stuck at {value:.6g} J")
            self._first.setdefault(name, value)
            self._last[name] = value
        return Reading(
            seconds, {name: value - self._first[name] for name, value in joules.items()}, self.epoch
        )

    def restart(self) -> None:
        """Begin a new epoch."""
        self.epoch += 1
        self._first.clear()
        self._last.clear()
        self._moved.clear()

    def _restart(self, message: str, hint: str | None = None) -> UnavailableError:
        self.restart()
        return UnavailableError(message, hint=hint)


def moving(
    read: Callable[[], Mapping[str, float]], sleep: Callable[[float], None], wait_s: float
) -> set[str]:
    """Names of the counters that change within `wait_s` seconds; ends as soon as all have.

    Raises:
        UnavailableError: As `read`.
    """
    first = read()
    moved: set[str] = set()
    for _ in range(_PROBE_STEPS):
        sleep(wait_s / _PROBE_STEPS)
        moved |= {name for name, value in read().items() if value != first.get(name)}
        if len(moved) == len(first):
            break
    return moved
