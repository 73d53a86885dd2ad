"""The window: its meter is watched whatever the work does. (What it reports: tests/recover, tests/compiler.)"""

from __future__ import annotations

import threading
import time

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Reading
from greencc.meters.model import device_power
from greencc.meters.window import Window


class Counter:
    """10 J each reading; fails at one of them, and tells by `seen` that it has been read so often."""

    name, grade, boundary, period_s, uncertainty = "counter", Grade.B, "package-0", 0.001, None

    def __init__(self, failing: int | None = None) -> None:
        self.readings, self.failing, self.seen = 0, failing, threading.Event()

    def missing(self) -> None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        if self.readings >= 4:
            self.seen.set()
        if self.readings == self.failing:
            raise UnavailableError("the counter is stuck")
        return Reading(time.monotonic(), {"package-0": 10.0 * self.readings})


def test_a_counter_is_read_while_the_work_makes_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greencc.meters.window._COUNTER_SECONDS", 0.01)
    counter = Counter()
    window = Window(lambda: [counter])
    assert counter.seen.wait(30)
    spent = window.close(None, device_power({}), 1.0)
    assert spent.energy is not None
    assert spent.energy.value == 10.0 * (counter.readings - 1)
    assert spent.energy.method == "measured with counter, gross, everything on the machine"


def test_a_counter_that_was_stuck_meanwhile_tells_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greencc.meters.window._COUNTER_SECONDS", 0.01)
    counter = Counter(failing=2)
    window = Window(lambda: [counter])
    assert counter.seen.wait(30)
    assert window.close(None, device_power({}), 1.0).energy is None
