"""One energy campaign: a meter that is watched, both variants by turns, and what the load found on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from greencc.core.data import Feeds
from greencc.core.elsewhere import SiteMeter
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.core.meter import Grade, Meter, PowerMeter, Reading
from greencc.measure.blocks import Bench, Block, Discard
from greencc.measure.energy import ARTIFACT, BASELINE, EnergyResult, measure_energy
from greencc.measure.loadgen import FLAT_OUT, Arrivals, Load
from greencc.measure.profiles import QUICK as QUICK_PROFILE
from greencc.measure.profiles import STANDARD as STANDARD_PROFILE
from greencc.measure.profiles import Profile
from greencc.measure.protocols import DEFAULT, QUICK, EnergyProtocol, protocol_named
from greencc.measure.times import Times, joined
from greencc.meters.opening import open_working_meter
from greencc.meters.sampling import Sampler, SamplingCost, TracePoint

NO_METER = "none"
_COSTLY_SHARE = 0.01


@dataclass(frozen=True)
class MeasurePlan:
    """How a measurement is done.

    Attributes:
        protocol: Of the energy.
        load: How the engines are driven while energy is measured.
        meter: What to measure with; None: the best that works here, or none where not `metered`.
        drive: Drive the engines by the load even where no meter works: latencies under load are figures of their own.
        metered: False: no meter is used, though one may work.
    """

    protocol: EnergyProtocol = DEFAULT
    load: Load = FLAT_OUT
    meter: Meter | PowerMeter | None = None
    drive: bool = True
    metered: bool = True

    @property
    def profile(self) -> Profile:
        """How long latency is measured, before the energy."""
        return QUICK_PROFILE if self.protocol.name == QUICK.name else STANDARD_PROFILE

    def meters(self, working: Callable[[], Iterable[Meter | PowerMeter]]) -> Iterable[Meter | PowerMeter]:
        """Meters to try, the best first; `working` finds those of this machine."""
        if not self.metered:
            return ()
        return working() if self.meter is None else (self.meter,)


def make_plan(
    protocol: str = DEFAULT.name,
    *,
    rate: float | None = None,
    poisson: bool = False,
    until: float | None = None,
    limit_seconds: float | None = None,
    meter: str | None = None,
) -> MeasurePlan:
    """The plan that the options of `greencc measure` describe; opens the meter.

    Args:
        protocol: By name.
        rate: Requests per second; None: flat out.
        poisson: They come at random rather than evenly.
        until: Stop at this relative half-width of the energy ratio; None: as the protocol has it.
        limit_seconds: Stop after this time; None: likewise.
        meter: Spec of a meter such as ``shelly:http://...``; ``none``: no meter; None: the best that works here.

    Raises:
        UsageError: A value makes no sense, the limit is too short for the protocol or the rate too low, or the meter is
            a model.
        UnavailableError: The meter gives no reading.
    """
    if poisson and rate is None:
        raise UsageError("random arrivals take a rate", hint="such as --rate 30/s --poisson")
    arrivals = Arrivals.POISSON if poisson else Arrivals.FLAT_OUT if rate is None else Arrivals.FIXED
    found = protocol_named(protocol).adapted(target=until, limit_seconds=limit_seconds)
    named = None if meter == NO_METER else meter
    opened = None if named is None else open_working_meter(named)
    if opened is not None and not opened.grade.measured:
        raise UsageError(
            f"{opened.name} (grade {opened.grade.name}) estimates; energy is measured with grade A or B",
            hint="what a recording was made with, its spec tells: csv:FILE?grade=A",
        )
    period = 0.0 if opened is None else opened.period_s
    found.check_limit(period)
    found.check_rate(rate, period)
    return MeasurePlan(found, Load(arrivals, rate), opened, metered=meter != NO_METER)


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float
    p999: float


@dataclass(frozen=True)
class LoadFigures:
    """One variant under the load.

    Attributes:
        requests: Finished in the blocks that count.
        per_second: Of them, while the blocks lasted.
        late: Requests that started later than they were due by more than a service time.
        latency_ms: From when a request was due, so that waiting counts (no coordinated omission).
        service_ms: Of the runs alone.
        clean: False where every block was disturbed (another process, throttling): the figures include that.
    """

    requests: int
    per_second: float
    late: int
    latency_ms: Percentiles
    service_ms: Percentiles
    clean: bool


@dataclass(frozen=True)
class MeterFacts:
    """What the meter says of itself."""

    name: str
    grade: str
    boundary: str
    period_s: float
    uncertainty: float | None

    @property
    def title(self) -> str:
        """``rapl: measured, grade B, boundary package-0, gain error not published``."""
        word = "measured" if Grade[self.grade].measured else "estimated"
        gain = (
            "gain error not published"
            if self.uncertainty is None
            else f"gain uncertain by {100 * self.uncertainty:.3g}% (one standard uncertainty)"
        )
        return f"{self.name}: {word}, grade {self.grade}, boundary {self.boundary}, {gain}"


@dataclass(frozen=True)
class Campaign:
    """What a campaign gave.

    Attributes:
        plan: As asked for.
        meter: None: there was none.
        result: Energy, blocks, discards.
        baseline: Under the load; None where no block counts.
        artifact: Likewise.
        trace: Readings of the meter over the whole campaign.
        cost: What watching the meter took.
        failures: Readings that failed in the background.
    """

    plan: MeasurePlan
    meter: MeterFacts | None
    result: EnergyResult
    baseline: LoadFigures | None
    artifact: LoadFigures | None
    trace: tuple[TracePoint, ...] = ()
    cost: SamplingCost | None = None
    failures: int = 0

    def warnings(self) -> list[str]:
        """What a reader of the figures must know."""
        found = [*(self.result.comparison.warnings if self.result.comparison else ()), *self.result.warnings]
        if self.result.problem and self.result.comparison:
            found.append(f"energy rests on part of the measurement: {self.result.problem}")
        if any(figures is not None and not figures.clean for figures in (self.baseline, self.artifact)):
            found.append("no block under the load was undisturbed: its latencies include the disturbance")
        if self.result.discarded:
            found.append(f"discarded blocks and idle windows: {self.discards()}")
        if self.cost is not None and self.cost.core_share > _COSTLY_SHARE:
            found.append(
                f"watching the meter took {self.cost.core_share:.1%} of a core, which is in the figures"
            )
        return found

    def discards(self) -> str:
        """Reasons with their counts, or ``none``."""
        return ", ".join(f"{reason} ({count})" for reason, count in self.result.discarded.items()) or "none"

    def facts(self) -> dict[str, object]:
        """What belongs to the conditions of the measurement."""
        result = self.result
        facts: dict[str, object] = {
            "energy_protocol": self.plan.protocol.title,
            "load": describe_load(self.plan.load),
            "energy_stopped": result.stopped,
            "blocks_discarded": self.discards(),
        }
        if result.warm_up is not None:
            facts["warm_up"] = result.warm_up.why
        if result.idle_watts is not None:
            idle = result.idle_watts
            facts.update(idle_watts=idle.value, idle_watts_low=idle.low, idle_watts_high=idle.high)
        if self.cost is not None:
            facts["sampling_core_share"] = self.cost.core_share
            facts["sampling_readings"] = self.cost.samples
            facts["sampling_late"] = self.cost.late
            facts["sampling_failures"] = self.failures
        if result.problem:
            facts["energy_problem"] = result.problem
        return facts


def describe_load(load: Load) -> str:
    """``flat-out`` or ``poisson, 30/s``."""
    return load.arrivals.value if load.rate is None else f"{load.arrivals.value}, {load.rate:g}/s"


def run_campaign(
    engines: tuple[Engine, Engine],
    feeds: Sequence[Feeds],
    meter: Meter | PowerMeter,
    plan: MeasurePlan,
    *,
    confidence: float = 0.95,
    bench: Bench | None = None,
) -> Campaign:
    """Measure baseline and artifact with a working meter, which is watched in a thread meanwhile.

    Raises:
        UsageError: As `measure_energy`.
        InputError: An engine refuses an input.
    """
    sampler = Sampler(meter)
    facts = MeterFacts(meter.name, meter.grade.name, meter.boundary, sampler.period_s, meter.uncertainty)
    with sampler:
        found = _measured(engines, feeds, sampler, facts, plan, confidence, bench)
    return replace(found, trace=tuple(sampler.trace()), cost=sampler.cost(), failures=len(sampler.failures()))


def run_campaign_elsewhere(
    engines: tuple[Engine, Engine],
    feeds: Sequence[Feeds],
    meter: SiteMeter,
    plan: MeasurePlan,
    *,
    confidence: float = 0.95,
    bench: Bench | None = None,
) -> Campaign:
    """The same on the other machine that both engines are on, with its own meter, which is watched over there.

    Raises:
        UsageError: As `measure_energy`.
        InputError: An engine refuses an input.
        UnavailableError: The machine was lost several times while it was warmed up, or cannot be reached.
    """
    facts = MeterFacts(meter.name, meter.grade.name, meter.boundary, meter.period_s, meter.uncertainty)
    found = _measured(engines, feeds, meter, facts, plan, confidence, bench)
    return replace(found, trace=_trace(found.result.readings))


def _measured(
    engines: tuple[Engine, Engine],
    feeds: Sequence[Feeds],
    meter: Sampler | SiteMeter,
    facts: MeterFacts,
    plan: MeasurePlan,
    confidence: float,
    bench: Bench | None,
) -> Campaign:
    """Without what is known of the meter itself."""
    result = measure_energy(
        engines[0],
        engines[1],
        feeds,
        meter,
        plan.protocol,
        load=plan.load,
        confidence=confidence,
        bench=bench,
    )
    return Campaign(
        plan=plan,
        meter=facts,
        result=result,
        baseline=load_figures(result.blocks, BASELINE),
        artifact=load_figures(result.blocks, ARTIFACT),
    )


def _trace(readings: Sequence[Reading]) -> tuple[TracePoint, ...]:
    """Readings with the mean power since the one before."""
    found: list[TracePoint] = []
    for index, reading in enumerate(readings):
        before = readings[index - 1] if index else None
        watts = None
        if before is not None and before.epoch == reading.epoch and before.seconds < reading.seconds:
            elapsed = reading.seconds - before.seconds
            watts = {
                name: (joules - before.joules[name]) / elapsed for name, joules in reading.joules.items()
            }
        found.append(TracePoint(reading.seconds, reading.epoch, reading.joules, watts))
    return tuple(found)


def run_load(
    engines: tuple[Engine, Engine],
    feeds: Sequence[Feeds],
    plan: MeasurePlan,
    *,
    bench: Bench | None = None,
) -> Campaign:
    """Without a meter: drive both by turns for as long as latency is measured. There is no energy in the result."""
    protocol, seconds = plan.protocol, min(plan.profile.seconds, plan.protocol.limit_seconds)
    blocks = 2 * protocol.per_variant * protocol.rounds
    # At a low rate a block is long enough for a request.
    block = max(seconds / blocks, 0.0 if plan.load.rate is None else 1.0 / plan.load.rate)
    brief = replace(
        protocol,
        idle_seconds=0.0,
        warm_up_seconds=0.0,
        block_seconds=block,
        target=None,
        limit_seconds=max(2.0 * seconds, 4 * protocol.per_variant * block),
    )
    result = measure_energy(engines[0], engines[1], feeds, None, brief, load=plan.load, bench=bench)
    return Campaign(
        plan=plan,
        meter=None,
        result=result,
        baseline=load_figures(result.blocks, BASELINE),
        artifact=load_figures(result.blocks, ARTIFACT),
    )


def load_figures(blocks: Sequence[Block], variant: str) -> LoadFigures | None:
    """Latencies of a variant over the blocks during which the machine was undisturbed, whatever the meter did.

    Where there are none, over all of its blocks, which is said; None without any.
    """
    ran = [block for block in blocks if block.variant == variant and block.count]
    fine = (None, Discard.COMPANION)
    good = [
        block for block in ran if block.discarded in fine or (block.discarded and block.discarded.of_meter)
    ]
    clean = bool(good)
    good = good or ran
    if not good:
        return None
    requests = sum(block.count for block in good)
    return LoadFigures(
        requests=requests,
        per_second=requests / sum(block.seconds for block in good),
        late=sum(block.late for block in good),
        latency_ms=percentiles(joined([block.latencies_ms for block in good])),
        service_ms=percentiles(joined([block.services_ms for block in good])),
        clean=clean,
    )


def percentiles(times: Times) -> Percentiles:
    """Of some milliseconds, at least one."""
    return Percentiles(*times.percentiles((50.0, 95.0, 99.0, 99.9)))
