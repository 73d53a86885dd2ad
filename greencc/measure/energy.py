"""Energy per inference from a meter: warm-up, idle windows and interleaved blocks.

The protocol is in `greencc.measure.protocols`, what makes a block worthless in `greencc.measure.blocks`, the figures
in `greencc.measure.energy_statistics`; docs/methodology.md describes the whole and what it achieves on simulated
campaigns with known truth.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.core.meter import EnergyComparison, Reading, Sensor, is_counter
from greencc.core.report import Interval
from greencc.measure.blocks import Bench, Block, Discard, IdlePart, Stage, Windows
from greencc.measure.elsewhere import ElsewhereWindows, site_of
from greencc.measure.energy_statistics import IdlePower, Round, idle_power, summarise
from greencc.measure.intervals import half_width
from greencc.measure.loadgen import FLAT_OUT, Load
from greencc.measure.protocols import DEFAULT, IDLE_PARTS, EnergyProtocol
from greencc.measure.warm_up import WarmUp

IDLE_BEFORE, IDLE_AFTER = "idle before", "idle after"
BASELINE, ARTIFACT = "baseline", "artifact"
# So many rounds in a row lost to the meter, and it is given up.
_MAX_FAILURES = 3
_PAUSE_SECONDS = 1.0
_WARM_UP_SHARE = 0.25
# With the rounds that an interval takes, a device ends at so many limits, however long its stretches take to begin.
_MOST_LIMITS = 6
_SAME_POWER = 1e-9


@dataclass(frozen=True)
class EnergyResult:
    """What a measurement gave.

    Attributes:
        comparison: The figures; None without a meter, or where too little was measured.
        idle: Idle power; None where it was not measured.
        idle_watts: The same as an interval.
        idle_parts: All parts of the idle windows.
        blocks: All blocks, the discarded ones too.
        rounds: Rounds that count.
        discarded: Blocks and idle parts that do not count, by reason.
        stopped: Why measuring ended.
        problem: Why the figures are missing or rest on part of the measurement; None: all went well.
        meter_failed: The problem is the meter's: another one may do better. False: the machine's, such as being busy.
        warnings: What a reader must know besides those of the comparison.
        warm_up: How the machine was warmed up; None: by whoever came before.
        began: Monotonic seconds.
        readings: Of the meter of another machine, an epoch for every window; those of one here its watcher has.
    """

    comparison: EnergyComparison | None
    idle: IdlePower | None
    idle_watts: Interval | None
    idle_parts: tuple[IdlePart, ...]
    blocks: tuple[Block, ...]
    rounds: int
    discarded: Mapping[str, int]
    stopped: str
    problem: str | None
    meter_failed: bool
    warnings: tuple[str, ...]
    warm_up: WarmUp | None
    began: float
    readings: tuple[Reading, ...] = ()


def measure_energy(
    baseline: Engine,
    artifact: Engine,
    feeds: Sequence[Feeds],
    meter: Sensor | None,
    protocol: EnergyProtocol = DEFAULT,
    *,
    load: Load = FLAT_OUT,
    confidence: float = 0.95,
    bench: Bench | None = None,
) -> EnergyResult:
    """Measure both engines by turns, here or on the other machine that they both are on.

    Args:
        baseline: The model as given.
        artifact: What was built.
        feeds: Inputs of one inference each, cycled identically in every block of a round.
        meter: A grade A or B `Meter` whose `missing()` is None, or the other machine's own (`Site.meter`); None: there
            is none, and only the load is measured.
        protocol: How long and how often.
        load: How the engines are driven.
        confidence: Of the intervals.
        bench: The machine; default this one.

    A meter or another machine that fails in mid-run does not raise: what was measured is in the result, and `problem`
    says what happened.

    Raises:
        UsageError: There is no input, the meter is a model, or not that of the machine where the engines are, the time
            limit is too short for two rounds, or the rate too low for a request in every block.
        InputError: An engine refuses an input.
    """
    if not feeds:
        raise UsageError("measuring energy takes at least one input")
    if meter is not None and not meter.grade.measured:
        raise UsageError(
            f"{meter.name} (grade {meter.grade.name}) estimates; energy is measured with grade A or B"
        )
    period = 0.0 if meter is None else meter.period_s
    protocol.check_limit(period)
    protocol.check_rate(load.rate, period)
    bench = bench or Bench()
    stage = _stage((baseline, artifact), feeds, meter, load, bench)
    return _Campaign((baseline, artifact), stage, meter, protocol, confidence, bench).run()


def _stage(
    engines: tuple[Engine, Engine], feeds: Sequence[Feeds], meter: Sensor | None, load: Load, bench: Bench
) -> Stage:
    """Where the engines are measured."""
    site = site_of(engines)
    if site is None:
        if meter is not None and not is_counter(meter):
            raise UsageError(f"{meter.name} counts no energy on this machine, where the engines run")
        return Windows(meter, bench, feeds, load)
    if meter is not None and meter != site.meter:
        raise UsageError(
            f"{meter.name} is not the meter of {site.name}, where the engines run",
            hint="what runs there is measured with that machine's own meter",
        )
    return ElsewhereWindows(site, bench, feeds, load, metered=meter is not None)


class _Campaign:
    """One measurement as it goes on."""

    def __init__(
        self,
        engines: tuple[Engine, Engine],
        stage: Stage,
        meter: Sensor | None,
        protocol: EnergyProtocol,
        confidence: float,
        bench: Bench,
    ) -> None:
        self.engines, self.stage, self.meter, self.protocol = engines, stage, meter, protocol
        self.confidence, self.bench = confidence, bench
        period = 0.0 if meter is None else meter.period_s
        self.block_seconds = protocol.block_length(period)
        self.idle_seconds = 0.0 if meter is None else protocol.idle_length(period)
        self.blocks: list[Block] = []
        self.idle_parts: list[IdlePart] = []
        self.rounds: list[Round] = []
        self.stride = 1
        self.failure: str | None = None
        self.meter_failed = True
        self.began = bench.clock()

    def run(self) -> EnergyResult:
        warmed = self._warm_up()
        self._measure_idle(IDLE_BEFORE)
        stopped = self._measure_rounds()
        if self.failure is None and self.stage.gone is None:
            self._measure_idle(IDLE_AFTER)
        return self._result(stopped, warmed)

    def _warm_up(self) -> WarmUp | None:
        window = self.protocol.warm_up_seconds
        if window == 0.0:
            return None
        limit = max(0.0, self.protocol.limit_seconds - self.protocol.shortest(self._period))
        limit = min(limit, max(window, _WARM_UP_SHARE * self.protocol.limit_seconds))
        return self.stage.warm_up(self.engines, window=window, limit=limit)

    @property
    def _period(self) -> float:
        return 0.0 if self.meter is None else self.meter.period_s

    def _measure_idle(self, which: str) -> None:
        """An idle window in parts; those that were disturbed are measured again, at most once each on average."""
        if self.idle_seconds == 0.0:
            return
        good = 0
        for _ in range(2 * IDLE_PARTS):
            part = self.stage.idle(which, self.idle_seconds / IDLE_PARTS)
            self.idle_parts.append(part)
            good += part.discarded is None
            if good == IDLE_PARTS or self.stage.gone is not None:
                return
            if part.discarded is not None and part.discarded.of_meter:
                self.bench.sleep(_PAUSE_SECONDS)

    def _measure_rounds(self) -> str:
        """Measure until a reason to stop comes up."""
        failures = number = 0
        start = self.stage.seconds()
        while True:
            blocks, whole = self._measure_round(number)
            number += 1
            self.blocks += blocks
            if whole is not None:
                failures = 0
                self.rounds.append(whole)
            else:
                cause = next(block for block in blocks if block.discarded not in (None, Discard.COMPANION))
                assert cause.discarded is not None
                lasts, self.meter_failed = cause.discarded.lasts, cause.discarded.of_meter
                if self.stage.gone is not None:
                    self.failure = self.stage.gone
                    return "the device was lost"
                failures = failures + 1 if lasts else 0
                if failures >= _MAX_FAILURES:
                    name = self.meter.name if self.meter is not None and self.meter_failed else "the device"
                    self.failure = f"{name} failed {failures} times in a row: {cause.note}"
                    return "the meter failed" if self.meter_failed else "the device failed"
                if lasts:
                    self.bench.sleep(_PAUSE_SECONDS)
            if stopped := self._stop((self.stage.seconds() - start) / number):
                return stopped

    def _measure_round(self, number: int) -> tuple[list[Block], Round | None]:
        """The blocks of a round, and the round where all of them count. The first bad block ends it.

        Without a meter there is no energy to protect: a disturbed block is marked, and the round goes on. A block that
        never came back ends it in any case.
        """
        order: tuple[int, ...] = (0, 1, 1, 0) if self.protocol.mirrored else (0, 1)
        if number % 2 == 1:
            # A B B A B A A B: neither variant is always the first, and a drift of second order cancels as well.
            order = tuple(1 - index for index in order)
        blocks: list[Block] = []
        for index in order:
            name = (BASELINE, ARTIFACT)[index]
            block = self.stage.block(
                self.engines[index], name, number, self.block_seconds, number * self.stride
            )
            blocks.append(block)
            if block.discarded is not None and (self.meter is not None or block.discarded is Discard.LOST):
                spared = [replace(each, discarded=Discard.COMPANION) for each in blocks[:-1]]
                return [*spared, block], None
        self.stride = max(self.stride, *(block.count for block in blocks))
        sides = [tuple(block for block in blocks if block.variant == name) for name in (BASELINE, ARTIFACT)]
        return blocks, Round(sides[0], sides[1])

    def _stop(self, round_seconds: float) -> str | None:
        """Why to stop, or None to go on; `round_seconds` is what a round takes."""
        protocol, done = self.protocol, len(self.rounds)
        if done >= protocol.rounds:
            if protocol.target is None or self.meter is None:
                return f"all {protocol.rounds} rounds are measured"
            ratio = summarise(
                self.rounds, idle_power(self.idle_parts), self.meter, protocol, self.confidence
            ).ratio
            if half_width(ratio) <= protocol.target:
                return "the ratio is known well enough"
        left = protocol.limit_seconds - self.stage.seconds() - self.idle_seconds
        # Two rounds are worth going over the limit for, by one round at most.
        if left < round_seconds and (done >= 2 or left < 0.0):
            return f"the time limit of {protocol.limit_seconds:g} s"
        longest = _MOST_LIMITS * protocol.limit_seconds
        if done >= 2 and self.bench.clock() - self.began > longest:
            return f"{longest:g} s, most of which blocks took to begin"
        return None

    def _result(self, stopped: str, warmed: WarmUp | None) -> EnergyResult:
        idle = idle_power(self.idle_parts)
        problem, warnings = self.failure, self._warnings(idle, warmed)
        meter_failed = problem is not None and self.meter_failed
        comparison: EnergyComparison | None = None
        if self.meter is not None:
            if stuck := self._stuck():
                problem, meter_failed = stuck, True
            elif len(self.rounds) >= 2:
                comparison = summarise(self.rounds, idle, self.meter, self.protocol, self.confidence)
                stopped = f"{stopped}; {self._known(half_width(comparison.ratio))}"
            else:
                meter_failed = meter_failed or self._lost_to_the_meter()
                problem = problem or self._too_few()
        return EnergyResult(
            comparison=comparison,
            idle=idle,
            idle_watts=None if idle is None else idle.interval(self.confidence),
            idle_parts=tuple(self.idle_parts),
            blocks=tuple(self.blocks),
            rounds=len(self.rounds),
            discarded=self._discarded(),
            stopped=stopped,
            problem=problem,
            meter_failed=meter_failed,
            warnings=tuple(warnings),
            warm_up=warmed,
            began=self.began,
            readings=tuple(self.stage.readings),
        )

    def _known(self, half: float) -> str:
        """How well the ratio is known in the end, with both idle windows."""
        target = self.protocol.target
        asked = "" if target is None else f" ({100 * target:g}% was asked for)"
        return f"the half-width of the ratio is {half:.2%}{asked}"

    def _discarded(self) -> dict[str, int]:
        windows: list[Block | IdlePart] = [*self.blocks, *self.idle_parts]
        return dict(Counter(each.discarded.value for each in windows if each.discarded is not None))

    def _lost_to_the_meter(self) -> bool:
        """Whether the meter spoilt as many windows as the machine did, or more."""
        windows: list[Block | IdlePart] = [*self.blocks, *self.idle_parts]
        causes = [each.discarded for each in windows if each.discarded not in (None, Discard.COMPANION)]
        meters = sum(cause is not None and cause.of_meter for cause in causes)
        return 0 < meters >= len(causes) - meters

    def _too_few(self) -> str:
        counts = ", ".join(f"{reason}: {count}" for reason, count in self._discarded().items())
        done, limit = len(self.rounds), f"{self.protocol.limit_seconds:g} s"
        what = f"only {done} round{'s' * (done != 1)} of blocks"
        if not counts:
            return f"{what} fitted into the time limit of {limit}"
        return f"{what} {'was' if done == 1 else 'were'} undisturbed within {limit} ({counts})"

    def _warnings(self, idle: IdlePower | None, warmed: WarmUp | None) -> list[str]:
        found: list[str] = list(self.stage.notes)
        windows: list[Block | IdlePart] = [*self.blocks, *self.idle_parts]
        modes = [each.note for each in windows if each.discarded is Discard.MODE]
        if modes:
            counts = "; the energy measured in it does not count" if self.meter is not None else ""
            found.append(f"somebody changed the power mode of the device meanwhile: {modes[0]}{counts}")
        if warmed is not None and not warmed.steady:
            found.append(f"the machine did not get warm: {warmed.why}")
        late = sum(block.late for block in self.blocks)
        count = sum(block.count for block in self.blocks)
        if late > 0.5 * count:
            found.append(
                f"the rate is too high: {late:,} of {count:,} requests started late; latencies grow with the time"
            )
        if self.meter is None or len(self.rounds) < 2:
            return found
        if self.block_seconds < 100 * self.meter.period_s:
            periods = self.block_seconds / self.meter.period_s
            found.append(
                f"blocks of {self.block_seconds:g} s are {periods:.0f} periods of {self.meter.name}, "
                "fewer than 100: where they begin and end moves the figures"
            )
        if self.idle_seconds > 0.0:
            whole = {part.which for part in self.idle_parts if part.discarded is None}
            if idle is None:
                found.append("the idle power is not known: energy is gross")
            elif len(whole) < 2:
                found.append("idle power was measured on one side only: its drift is not known")
        return found

    def _stuck(self) -> str | None:
        """Say when the meter shows one and the same power at rest and under load, all the time or in the end."""
        assert self.meter is not None
        every: list[Block | IdlePart] = [*self.idle_parts, *self.blocks]
        ending: list[Block | IdlePart] = [part for part in self.idle_parts if part.which == IDLE_AFTER]
        rested = bool(ending)
        for each in self.rounds[-1:]:
            ending += [*each.baseline, *each.artifact]
        if self.idle_parts and _same_power(every):
            return f"{self.meter.name} is stuck: it shows the same power at rest and under load"
        if rested and self.rounds and _same_power(ending):
            return f"{self.meter.name} got stuck: in the last round and at rest after it, it shows the same power"
        return None


def _same_power(windows: Sequence[Block | IdlePart]) -> bool:
    """Whether windows, enough to tell, have the same mean power to the last digits."""
    powers = [
        each.joules / each.seconds for each in windows if each.joules is not None and each.seconds > 0.0
    ]
    if len(powers) <= IDLE_PARTS:
        return False
    return max(powers) - min(powers) <= _SAME_POWER * abs(statistics.fmean(powers))
