"""A device as a machine that is measured on, and what was built there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from greencc.core.arrivals import due_offsets
from greencc.core.data import Feeds
from greencc.core.elsewhere import Driven, LostError, SiteMeter, Stretch
from greencc.core.engine import BuildOrder, NodeTime
from greencc.core.errors import UsageError
from greencc.core.meter import Grade
from greencc.core.progress import Progress, silent
from greencc.devices.advice import warnings
from greencc.devices.client import AgentClient
from greencc.devices.driven import BYTES_PER_TIME, LATENCIES, SERVICES, parse_driven
from greencc.devices.engines import Port, parse_ports
from greencc.devices.facts import DeviceFacts, MeterFacts
from greencc.devices.jobs import JobResult
from greencc.devices.protocol import CrashedError, ProtocolError
from greencc.devices.room import check_room, most_samples, room_of
from greencc.devices.tensors import packed
from greencc.devices.values import Told
from greencc.devices.waiting import WaitShown

BUILD_SECONDS = 3600.0
"""A builder may take so long: TensorRT on the smallest modules takes minutes for a middling network."""
WAIT_SECONDS = 3600.0
"""A job waits so long for a device that others use; then it fails, and names them (the agent's own default)."""
_PATIENCE_SECONDS = 900.0
"""Beyond what a stretch is to take, once the device is free for it: loading the engine."""
_IDLE_PATIENCE_SECONDS = 300.0
_SLACK_SECONDS = 60.0
"""So much later than the job itself the host gives up: what the device says of it is the better message."""
_MOST_RUNS = 50_000_000
_USUAL_PERIOD_SECONDS = 0.1


@dataclass(frozen=True)
class Built:
    """What a device has made of an artifact.

    Attributes:
        job: The build.
        inputs: In the engine's order; -1 where a size varies.
        outputs: Likewise.
        versions: Of what built it.
        facts: About the engine.
        seconds: That building took; None: it was there already.
        engine_bytes: Of the engine.
        resident: Runs are answered by a loaded engine. False: each of them starts a program that loads it, which takes
            seconds.
    """

    job: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    versions: Mapping[str, str]
    facts: Mapping[str, str]
    seconds: float | None
    engine_bytes: int
    resident: bool
    most: int | None = None


@dataclass(frozen=True)
class _Sent:
    """Inputs that the device has: their digest, and how the file of them is read."""

    feeds: Sequence[Feeds]
    digest: str
    ports: tuple[Port, ...]


class DeviceSite:
    """`greencc.core.elsewhere.Site` of a device.

    Args:
        client: The way there. It is closed by whoever opened it.
        processor: ``cpu`` or ``gpu``: where the work will be done; the meter must see it.
        facts: Of the device; default: it is asked.
        progress: Shows for whom a job waits there.
    """

    def __init__(
        self,
        client: AgentClient,
        processor: str,
        facts: DeviceFacts | None = None,
        progress: Progress = silent,
    ) -> None:
        self.client, self.processor, self._progress = client, processor, progress
        self.facts = client.facts() if facts is None else facts
        self._sent: _Sent | None = None
        self._modes: list[str] = []
        self._run_seconds: dict[str, float] = {}
        self.driving: dict[str, Mapping[str, str]] = {}
        """By build: how its engine is driven and timed, in words."""

    @property
    def name(self) -> str:
        """As `Site.name`."""
        return self.client.name

    @property
    def meter(self) -> SiteMeter | None:
        """As `Site.meter`: the first that sees the processor."""
        for each in self.facts.meters:
            if self.processor in each.sees and each.grade in Grade.__members__:
                return _meter(each)
        return None

    def idle(self, seconds: float) -> Driven:
        """As `Site.idle`."""
        spec = {
            "kind": "idle",
            "seconds": seconds,
            "metered": True,
            "processor": self.processor,
            "wait": WAIT_SECONDS,
            "limits": {"seconds": seconds + _IDLE_PATIENCE_SECONDS},
        }
        done = self._run(spec, f"Idle on {self.name}", quiet=seconds)
        return parse_driven(done.result, self.name)

    def conditions(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """As `Site.conditions`."""
        self.facts = facts = self.client.facts()
        told = {
            "device": self.name,
            "hostname": facts.hostname,
            "power_mode": self.power_mode,
            "temperature_c": None if facts.celsius is None else f"{facts.celsius:.0f}",
            "load_average": f"{facts.load[0]:g}" if facts.load else None,
            "clocks_fixed": _fixed(facts),
        }
        found = {key: value for key, value in told.items() if value is not None}
        left = (self.client.untidied,) if self.client.untidied else ()
        return found, (*(f"{self.name}: {each}" for each in warnings(facts)), *left)

    def build(self, order: BuildOrder, title: str = "the model") -> Built:
        """Send an artifact's files and have it built; what was built earlier is found again.

        Args:
            order: What to build.
            title: Of it, for messages.

        Raises:
            InputError: It is larger than the device's memory (nothing is sent then), or the builder refuses it.
            UnavailableError: The device lacks what builds or the disk for it, fails, or takes too long.
        """
        check_room(self.facts, room_of(order), title, self.name)
        folder = order.main.parent
        files = {
            path.relative_to(folder).as_posix(): self.client.upload(path, label=f"Sending {path.name}")
            for path in order.files
        }
        options = dict(order.options)
        if order.backend != "tensorrt":
            options.setdefault("threads", self.facts.processors or 1)
        spec = {
            "kind": "build",
            "backend": order.backend,
            "files": files,
            "main": order.main.relative_to(folder).as_posix(),
            "options": options,
            "limits": {"seconds": BUILD_SECONDS},
        }
        done = self._run(spec, f"Building on {self.name}")
        return self._built(done, most=most_samples(order))

    def drive(self, built: Built, feeds: Sequence[Feeds], stretch: Stretch) -> Driven:
        """Run an engine for a while over there, as `DistantEngine.drive`.

        Raises:
            InputError: It refuses an input.
            LostError: The device was restarted, or the engine died.
            UnavailableError: The device is not to be reached any more.
        """
        sent = self._send(built, feeds)
        spec = {
            "kind": "drive",
            "build": built.job,
            "feeds": sent.digest,
            "inputs": [port.as_json() for port in sent.ports],
            "count": len(feeds),
            "first": stretch.first % len(feeds),
            "metered": stretch.metered,
            "processor": self.processor,
            "wait": WAIT_SECONDS,
            **_pace(stretch),
        }
        seconds = self._seconds(built, stretch)
        spec["limits"] = {"seconds": seconds + _PATIENCE_SECONDS}
        try:
            done = self._run(spec, f"Running on {self.name}", quiet=seconds)
        except CrashedError as error:
            # The next stretch loads it again.
            raise LostError(f"the engine died: {error.message}", hint=error.hint) from error
        count = done.result.get("count")
        if not isinstance(count, int) or not 0 < count <= _MOST_RUNS:
            raise ProtocolError(f"{self.name} tells no number of runs")
        most = BYTES_PER_TIME * count
        latencies, services = (self.client.fetch(done.job, file, most=most) for file in (LATENCIES, SERVICES))
        driven = parse_driven(done.result, self.name, latencies, services)
        self._run_seconds[built.job] = driven.seconds / driven.count
        self.driving[built.job] = Told(done.result, f"a measurement of {self.name}").mapping("engine")
        return driven

    def _seconds(self, built: Built, stretch: Stretch) -> float:
        """How long a stretch will take, as far as that is known."""
        if stretch.seconds is not None:
            return stretch.seconds
        each = 1.0 / stretch.rate if stretch.rate else self._run_seconds.get(built.job, 0.0)
        return (stretch.runs or 0) * each

    def profile(self, built: Built, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Times of an engine's layers over there, on one input.

        Raises:
            UnavailableError: Its backend cannot tell them.
        """
        sent = self._send(built, (feeds,))
        spec = {
            "kind": "profile",
            "build": built.job,
            "feeds": sent.digest,
            "inputs": [port.as_json() for port in sent.ports],
            "count": 1,
            "first": 0,
            "runs": runs,
            "wait": WAIT_SECONDS,
            "limits": {"seconds": _PATIENCE_SECONDS},
        }
        done = self._run(spec, f"Profiling on {self.name}")
        where = f"a profile of {self.name}"
        found = []
        for node in Told(done.result, where).inners("nodes"):
            name, kind, time = node.text("name"), node.text("op_type"), node.number("us")
            if name is None or time is None:
                raise ProtocolError(f"{where} has a layer without name or time")
            found.append(NodeTime(name, kind or "", time))
        return found

    @property
    def power_mode(self) -> str | None:
        """The mode that the device is in, by name; None: it has none."""
        if self._modes:
            return self._modes[-1]
        return None if self.facts.power is None else self.facts.power.mode

    @contextmanager
    def in_power_mode(self, name: str) -> Iterator[None]:
        """The device in another power mode for a while.

        Raises:
            UnavailableError: It has no such mode, cannot change it now, or not to that one without a restart.
        """
        self.client.set_power_mode(name)
        self._modes.append(name)
        try:
            yield
        finally:
            self._modes.pop()
            if self._modes:
                self.client.set_power_mode(self._modes[-1])
            else:
                self.client.restore_power_mode()

    def _run(self, spec: Mapping[str, Any], label: str, *, quiet: float = 0.0) -> JobResult:
        """Run a job. It is given up here only after the device itself must have done so, also after waiting."""
        limit = spec["limits"]["seconds"] + WAIT_SECONDS + _SLACK_SECONDS
        with WaitShown(self._progress, self.name) as shown:
            return self.client.run_job(spec, label=label, limit=limit, quiet=quiet, on_event=shown)

    def _built(self, done: JobResult, most: int | None) -> Built:
        where = f"a build on {self.name}"
        told = Told(done.result, where)
        facts = told.mapping("facts")
        return Built(
            job=done.job,
            inputs=parse_ports(done.result.get("inputs"), f"{where}, inputs", known_shape=False),
            outputs=parse_ports(done.result.get("outputs"), f"{where}, outputs", known_shape=False),
            versions=told.mapping("versions"),
            facts=facts,
            seconds=None if done.found else told.number("seconds"),
            engine_bytes=told.count("engine_bytes") or 0,
            resident=not facts.get("builder", "").startswith("trtexec"),
            most=most,
        )

    def _send(self, built: Built, feeds: Sequence[Feeds]) -> _Sent:
        """Inputs are sent once: blocks of one measurement have the same ones."""
        if self._sent is not None and self._sent.feeds is feeds and _fit(self._sent.ports, built.inputs):
            return self._sent
        ports, data = packed(feeds, built.inputs, self.name)
        digest = self.client.upload(data, label="Sending inputs")
        self._sent = _Sent(feeds, digest, ports)
        return self._sent


def _pace(stretch: Stretch) -> dict[str, Any]:
    """How long, and when requests come.

    Raises:
        UsageError: Random arrivals without a rate or an end.
    """
    if not stretch.poisson:
        pace = {"seconds": stretch.seconds, "runs": stretch.runs, "rate": stretch.rate}
        return {key: value for key, value in pace.items() if value is not None}
    if stretch.rate is None or stretch.seconds is None:
        raise UsageError("random arrivals take a rate and a time")
    due, end = due_offsets(stretch.rate, poisson=True, seed=stretch.seed), stretch.seconds
    # At least one, though it may be due after the end: then it comes at the end.
    times = [next(due), *itertools.takewhile(lambda offset: offset < end, due)]
    return {"seconds": end, "rate": stretch.rate, "due": times}


def _fixed(facts: DeviceFacts) -> str | None:
    """Whether no clock can move; not known where none is told."""
    if facts.clocks.cpu_mhz is None and facts.clocks.gpu_mhz is None:
        return None
    return "no" if facts.clocks.free else "yes"


def _fit(sent: Sequence[Port], wanted: Sequence[Port]) -> bool:
    """Whether what was sent is what another engine takes, too."""
    return [(port.name, port.dtype) for port in sent] == [(port.name, port.dtype) for port in wanted]


def _meter(facts: MeterFacts) -> SiteMeter:
    period = _USUAL_PERIOD_SECONDS if facts.period_s is None else facts.period_s
    return SiteMeter(facts.name, Grade[facts.grade], facts.boundary, period, facts.uncertainty)
