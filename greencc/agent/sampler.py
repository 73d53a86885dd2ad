"""Reads a meter in a thread, with the time of each reading; what goes wrong is told, and nothing is made up for it."""

import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from greencc.agent.meter import Meter
from greencc.agent.problem import Problem

_SHORTEST_S = 0.01
_COUNTER_S = 0.1
"""A counter is read no faster: it does not have to be, to know its sum."""
_FIRST_S = 10.0


class Sampler:
    """Watches a meter from `start` to `stop`.

    Args:
        meter: One that works.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.period_s = max(meter.period_s, _COUNTER_S if meter.counts else _SHORTEST_S)
        self._rows: List[Tuple[float, Dict[str, float], int]] = []
        self._epoch = 0
        self._problem: Optional[str] = None
        self._end = threading.Event()
        self._read_once = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin; returns when there is a first reading, or it has failed."""
        self._thread.start()
        self._read_once.wait(_FIRST_S)

    def stop(self) -> Dict[str, Any]:
        """Read once more, and end.

        Returns:
            {"samples": [{"seconds", "watts"}...], "readings": [{"seconds", "joules", "epoch"}...], "problem": ...}.
        """
        self._end.set()
        self._thread.join()
        samples: List[Dict[str, Any]] = []
        readings: List[Dict[str, Any]] = []
        for seconds, values, epoch in self._rows:
            if self.meter.counts:
                readings.append({"seconds": seconds, "joules": values, "epoch": epoch})
            else:
                samples.append({"seconds": seconds, "watts": values})
        return {"samples": samples, "readings": readings, "problem": self._problem}

    def _watch(self) -> None:
        due = time.monotonic()
        while True:
            # The last reading is one that begins after the end was asked for.
            last = self._end.is_set()
            self._take()
            self._read_once.set()
            if last:
                return
            now = time.monotonic()
            # The next multiple of the period that is ahead: late readings are not made up for in a burst.
            due += self.period_s * max(1.0, -(-(now - due) // self.period_s))
            self._end.wait(max(0.0, due - now))

    def _take(self) -> None:
        try:
            values = self.meter.read()
        except Problem as problem:
            # What a counter did meanwhile is not known.
            self._epoch += 1
            if self._problem is None:
                self._problem = problem.message
            return
        self._rows.append((time.monotonic(), values, self._epoch))
