"""Drives an engine for a stretch, as `greencc.measure.loadgen` does: latency counts from when a request was due."""

import array
import os
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from greencc.agent.backends.tensors import Spec
from greencc.agent.problem import Problem

LATENCIES, SERVICES = "latencies.f64", "services.f64"


class Plan:
    """What is asked of a stretch; see `greencc.agent.backends`.

    Raises:
        Problem: ``usage``: it makes no sense.
    """

    def __init__(self, arguments: Dict[str, Any]) -> None:
        self.seconds = _number(arguments, "seconds")
        runs = _number(arguments, "runs")
        self.runs = None if runs is None else int(runs)
        self.rate = _number(arguments, "rate")
        self.due: Optional[List[float]] = arguments.get("due")
        self.first = int(_number(arguments, "first") or 0)
        self.into = str(arguments.get("into", ""))
        if (self.seconds is None) == (self.runs is None):
            raise Problem("usage", "a stretch has either seconds or a number of runs")
        if self.runs is not None and self.runs < 1:
            raise Problem("usage", "a stretch has one run at least")
        if self.rate is not None and not self.rate > 0.0:
            raise Problem("usage", "a rate is more than 0 per second")

    @property
    def paced(self) -> bool:
        """Requests come at their own times."""
        return self.rate is not None or self.due is not None

    def offset(self, count: int, now: float) -> float:
        """Seconds from the beginning to when a request is due; infinity after the last that is listed."""
        if self.due is not None:
            return float(self.due[count]) if count < len(self.due) else float("inf")
        return now if self.rate is None else count / self.rate


def _number(arguments: Dict[str, Any], name: str) -> Optional[float]:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise Problem("usage", "%s: a number that is not below 0 is wanted, and not %r" % (name, value))
    return float(value)


class Recorded:
    """What a stretch gave: seconds of the monotonic clock, and milliseconds of each run."""

    def __init__(self, begin: float) -> None:
        self.begin = self.end = begin
        self.latencies = array.array("d")
        self.services = array.array("d")
        self.late = 0

    def save(self, into: str) -> Dict[str, Any]:
        """Write both files, and say the rest as the answer to ``drive``.

        Raises:
            Problem: ``disk``: they cannot be written.
        """
        for name, values in ((LATENCIES, self.latencies), (SERVICES, self.services)):
            path = os.path.join(into, name)
            try:
                with open(path + ".part", "wb") as file:
                    values.tofile(file)
                os.replace(path + ".part", path)
            except OSError as error:
                raise Problem("disk", "%s cannot be written: %s" % (path, error.strerror)) from error
        return {
            "begin": self.begin,
            "seconds": self.end - self.begin,
            "count": len(self.services),
            "late": self.late,
        }


def drive(run: Callable[[int], None], count: int, plan: Plan) -> Recorded:
    """Run until the stretch ends; once at least.

    Args:
        run: Runs the feed of a number, and returns when its outputs are there.
        count: Feeds; they are cycled.
        plan: How.
    """
    clock, sleep, first = time.monotonic, time.sleep, plan.first
    start = now = clock()
    recorded = Recorded(start)
    add_service, add_latency = recorded.services.append, recorded.latencies.append
    done = 0
    while plan.runs is None or done < plan.runs:
        offset = plan.offset(done, now - start)
        if plan.seconds is not None:
            if done and offset >= plan.seconds:
                break
            # One request at least, within the stretch: at random arrivals the first may be due long after.
            offset = min(offset, plan.seconds)
        elif offset == float("inf"):
            break
        due = start + offset
        if due > now:
            sleep(due - now)
        began = clock()
        run((first + done) % count)
        now = clock()
        done += 1
        add_service((now - began) * 1e3)
        add_latency((now - due) * 1e3)
        recorded.late += plan.paced and began - due > now - began
    if plan.paced and plan.seconds is not None and now - start < plan.seconds:
        sleep(plan.seconds - (now - start))
        now = clock()
    recorded.end = now
    return recorded


class FeedFile:
    """Feeds one after another in a file, each the bytes of all inputs in order.

    Raises:
        Problem: ``input``: it has another size than its feeds need, or cannot be read.
    """

    def __init__(self, path: str, specs: Sequence[Spec], count: int) -> None:
        self._each = sum(spec.nbytes for spec in specs)
        wanted = self._each * count
        if count < 1:
            raise Problem("input", "driving an engine takes at least one input")
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != wanted:
                    raise Problem(
                        "input", "%d inputs have %d bytes, and the file has %d" % (count, wanted, size)
                    )
                # A private copy: reading from the disk within a run would be timed.
                data = file.read() if size else b""
        except OSError as error:
            raise Problem("input", "%s cannot be read: %s" % (path, error.strerror)) from error
        self._data = memoryview(data)

    def __getitem__(self, index: int) -> memoryview:
        return self._data[index * self._each : (index + 1) * self._each]
