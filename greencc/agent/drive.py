"""Jobs of kind ``drive``, ``idle`` and ``profile``: an engine under load, with the meter watched meanwhile.

They have the device for themselves. Besides what `greencc.agent` says of them, their specs may have ``meter`` (a name
that `probe` tells; default: the first that sees the processor), ``processor`` (``cpu`` or ``gpu``; default: that of the
build's backend) and ``wait`` (seconds for which to wait for a device that is in use).

The result of ``drive`` and ``idle``: ``begin seconds count late others suspended problem`` as in
`greencc.core.elsewhere.Driven`; ``samples`` [{"seconds", "watts": {rail: ...}}...] or ``readings`` [{"seconds",
"joules": {...}, "epoch"}...]; ``before`` and ``after`` {"celsius", "clock_mhz", "throttle_count", "facts"}; ``meter``
(what it says of itself, or null) and ``engine`` (facts). All times are of the device's monotonic clock. Times of runs
are in the job's files.
"""

import contextlib
import os
import time
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from greencc.agent import condition, meters
from greencc.agent.build import waiting_time
from greencc.agent.device import used
from greencc.agent.engine import Engine
from greencc.agent.places import check_count, check_number, check_sha256
from greencc.agent.problem import Problem
from greencc.agent.processes import cpu_seconds, family
from greencc.agent.sampler import Sampler
from greencc.agent.supervisor import Run

_LONGEST_S = 24 * 3600.0
_MOST_RUNS = 1 << 40
_MOST_THREADS = 4096
_GRACE_S = 30.0
_BOOTTIME = 7
"""Linux's CLOCK_BOOTTIME, which Python has a name for since 3.7."""
_PASSED_ON = ("seconds", "runs", "rate", "due", "first", "inputs", "count")


def drive(run: Run) -> Dict[str, Any]:
    """An engine, driven.

    Raises:
        Problem: It is not there, refuses its inputs, or dies.
    """
    engine, arguments = _engine(run)
    arguments["into"] = str(run.job.folder)
    with _device(run):
        facts = _opened(run, engine)
        told: Dict[str, Any] = {}

        def work() -> None:
            answer, _ = engine.ask("drive", arguments, seconds=run.limits.seconds + _GRACE_S)
            told.update(answer)

        watched = _watched(run, _processor(run, engine), engine.pid(), work)
    return dict(
        watched,
        begin=told["begin"],
        seconds=told["seconds"],
        count=told["count"],
        late=told["late"],
        engine=dict(facts, **told.get("facts", {})),
    )


def idle(run: Run) -> Dict[str, Any]:
    """The device without load.

    Raises:
        Problem: The spec makes no sense.
    """
    seconds = check_number(run.spec.get("seconds"), "seconds", 0.0, _LONGEST_S)
    with _device(run):
        times = [0.0, 0.0]

        def work() -> None:
            times[0] = time.monotonic()
            time.sleep(seconds)
            times[1] = time.monotonic()

        watched = _watched(run, _processor(run, None), None, work)
    return dict(watched, begin=times[0], seconds=times[1] - times[0], count=0, late=0, engine={})


def profile(run: Run) -> Dict[str, Any]:
    """Times of an engine's layers.

    Raises:
        Problem: As `drive`.
    """
    engine, arguments = _engine(run)
    arguments["into"] = str(run.job.folder)
    with _device(run):
        _opened(run, engine)
        answer, _ = engine.ask("profile", arguments, seconds=run.limits.seconds + _GRACE_S)
    return answer


def _engine(run: Run) -> Tuple[Engine, Dict[str, Any]]:
    """The engine that a spec names, and what to ask of it."""
    spec = run.spec
    arguments = {name: spec[name] for name in _PASSED_ON if spec.get(name) is not None}
    if spec.get("seconds") is not None:
        check_number(spec["seconds"], "seconds", 0.0, _LONGEST_S)
    if spec.get("runs") is not None:
        check_count(spec["runs"], "runs", 1, _MOST_RUNS)
    digest = check_sha256(spec.get("feeds"))
    feeds = run.places.store / digest
    if not feeds.exists():
        raise Problem("input", "the inputs (%s) are not on the device" % digest[:12], "send them again")
    arguments["feeds"] = str(feeds)
    # The worker's own limit is the job's, which ends it from outside as well.
    arguments["limit_s"] = run.limits.seconds + _GRACE_S
    return Engine(run.places, spec.get("build")), arguments


def _opened(run: Run, engine: Engine) -> Dict[str, Any]:
    threads = run.spec.get("threads")
    if threads is not None:
        check_count(threads, "threads", 1, _MOST_THREADS)
    facts = engine.open(threads).get("facts", {})
    pid = engine.pid()
    if pid is not None:
        run.watch(pid)
    return dict(facts)


def _processor(run: Run, engine: Optional[Engine]) -> str:
    """Where the work is done: it decides which meter is read."""
    told = run.spec.get("processor")
    if told is None and engine is None and run.spec.get("build") is not None:
        engine = Engine(run.places, run.spec["build"])
    if told is None:
        backend = engine.job.spec.get("backend") if engine is not None else None
        return "gpu" if backend in ("tensorrt", None) else "cpu"
    if told not in ("cpu", "gpu"):
        raise Problem("usage", "%.60r is no processor" % (told,), "cpu or gpu")
    return str(told)


@contextlib.contextmanager
def _device(run: Run) -> Iterator[None]:
    """The device for this job alone."""

    def waiting(holder: str) -> None:
        run.event(text="the device is in use by %s: waiting" % holder)

    run.waiting(True)
    with used(run.places, "job %s" % run.job.name, True, waiting_time(run.spec), waiting):
        run.waiting(False)
        yield


def _watched(run: Run, processor: str, keeper: Optional[int], work: Callable[[], None]) -> Dict[str, Any]:
    """Do the work while the meter is read, from before it begins to after it has ended."""
    places, problem = run.places, None
    sampler = None
    if run.spec.get("metered"):
        name = run.spec.get("meter")
        if name is not None and not isinstance(name, str):
            raise Problem("usage", "%.60r is no meter" % (name,))
        meter, problem = meters.choose(places, processor, name)
        sampler = Sampler(meter) if meter is not None else None
    before = condition.describe(places, processor)
    asleep = _asleep()
    if sampler is not None:
        sampler.start()
    use = _Use(run, keeper)
    try:
        work()
    finally:
        others = use.others()
        rows = sampler.stop() if sampler is not None else {"samples": [], "readings": [], "problem": problem}
    return dict(
        rows,
        others=others,
        suspended=max(0.0, _asleep() - asleep),
        before=before,
        after=condition.describe(places, processor),
        meter=None if sampler is None else sampler.meter.as_json(),
    )


def _asleep() -> float:
    """Seconds that the machine has slept since it was started: its monotonic clock leaves them out."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", _BOOTTIME)) - time.monotonic()


class _Use:
    """Which share of the machine's processors others use: all that is used, less what this job does."""

    def __init__(self, run: Run, keeper: Optional[int]) -> None:
        self._root, self._keeper = run.places.root, keeper
        self._began = time.monotonic()
        self._before = self._look()

    def others(self) -> Optional[float]:
        """The share since this was made, in [0, 1]; None: not told."""
        after, seconds = self._look(), time.monotonic() - self._began
        if self._before is None or after is None or seconds <= 0.0:
            return None
        return min(1.0, max(0.0, after - self._before) / (seconds * condition.processors(self._root)))

    def _look(self) -> Optional[float]:
        busy = condition.busy_seconds(self._root)
        own = set(family(os.getpid())) | set(family(self._keeper) if self._keeper is not None else ())
        return None if busy is None else busy - cpu_seconds(own)
