"""Simulated energy campaigns with known truth, through the real measuring code.

    python -m benchmarks.simulated_campaigns --campaigns 500

A synthetic machine on fake time draws power that drifts and is noisy; a synthetic meter counts it with a gain error,
in steps, and (as NVML does on A100 and H100: Yang, Adamek and Armour, "Part-time Power Measurements: nvidia-smi's
Lack of Attention", SC 2024, arXiv 2312.02741) from a quarter of the time alone. `greencc.measure.energy.measure_energy`
runs on it as it runs on hardware: idle windows, blocks, discards, stopping rule. Told are the share of campaigns whose
interval holds the truth, and how often two equal variants are called different.
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.signal import lfilter

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.meter import Grade, Reading
from greencc.core.report import Interval
from greencc.measure.blocks import Bench
from greencc.measure.clocks import ClockReading
from greencc.measure.energy import EnergyResult, measure_energy
from greencc.measure.protocols import DEFAULT, QUICK, EnergyProtocol
from greencc.measure.thermal import ThermalState

_GRID_SECONDS = 0.05
_FEEDS: list[Feeds] = [{"x": np.zeros(1, np.float32)}]


@dataclass(frozen=True)
class Scenario:
    """A machine, a meter and two variants.

    Attributes:
        name: Shown in the table.
        period: Seconds between the updates of the meter.
        window: Seconds before each update whose mean power stands for the whole period; `period`: all of it.
        step: Joules of one step of the counter.
        gain: Relative standard deviation of the meter's gain, and what it publishes.
        idle: Watts of the idle machine.
        drift: Idle power changes by this share over 600 s, half linearly, half as it does when a machine warms.
        wander: Standard deviation of the idle power's wandering (Ornstein-Uhlenbeck), relative.
        memory: Its correlation time in seconds.
        load_drift: Power of the load changes by this share over 600 s.
        load_wander: Standard deviation, relative, by which a block's power differs (clock, cache, data).
        watts: Of the load above idle, for the baseline and the artifact.
        seconds: Of one inference.
        jitter: Relative standard deviation of that.
        busy: Share of an inference that draws the most, the rest draws `ebb` of it: the meter's phase then matters.
        ebb: Likewise.
        protocol: As asked for on the command line.
    """

    name: str
    period: float = 0.001
    window: float = 0.001
    step: float = 61e-6
    gain: float = 0.0
    idle: float = 12.0
    drift: float = 0.04
    wander: float = 0.01
    memory: float = 5.0
    load_drift: float = 0.03
    load_wander: float = 0.02
    watts: tuple[float, float] = (25.0, 20.0)
    seconds: tuple[float, float] = (0.083, 0.0747)
    jitter: float = 0.03
    busy: float = 0.6
    ebb: float = 0.4
    protocol: EnergyProtocol = field(default=DEFAULT)

    def equal(self) -> Scenario:
        """The same with both variants equal."""
        return replace(self, watts=(self.watts[0],) * 2, seconds=(self.seconds[0],) * 2)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("counter, 1 ms, 61 uJ (as RAPL)"),
    Scenario("coarse counter, 0.1 s, 1 J", period=0.1, window=0.1, step=1.0, gain=0.01),
    Scenario("25 % of the time, 0.1 s, 1 mJ (as NVML)", period=0.1, window=0.025, step=1e-3, gain=0.02),
    Scenario(
        "the same, inferences locked to its period",
        period=0.1,
        window=0.025,
        step=1e-3,
        gain=0.02,
        seconds=(0.100, 0.100),
        jitter=0.0,
    ),
    Scenario("noisy load: 6 % between blocks, as RAPL", load_wander=0.06),
    Scenario(
        "quick protocol, as RAPL",
        protocol=QUICK,
        seconds=(0.020, 0.018),
    ),
)


class Machine:
    """Fake time and the energy drawn until then; also clock, sleep and every probe of the bench."""

    cpus = 1

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.now = 1000.0
        self.drawn = 0.0
        self.times, self.joules = [self.now], [0.0]
        horizon = 2.0 * scenario.protocol.limit_seconds + 200.0
        grid = np.arange(0.0, horizon, _GRID_SECONDS)
        keep = math.exp(-_GRID_SECONDS / scenario.memory)
        shocks = rng.normal(0.0, math.sqrt(1.0 - keep * keep), len(grid))
        shocks[0] = rng.normal()
        wander = scenario.wander * lfilter([1.0], [1.0, -keep], shocks)
        sign = rng.choice((-1.0, 1.0))
        course = 0.5 * grid / 600.0 + 0.5 * (1.0 - np.exp(-grid / 150.0))
        watts = scenario.idle * (1.0 + sign * scenario.drift * course + wander)
        self.grid = self.now + np.append(grid, horizon)
        self.idle = np.concatenate(([0.0], np.cumsum(watts * _GRID_SECONDS)))

    def seconds(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pass_by(seconds, 0.0)

    def pass_by(self, seconds: float, watts: float) -> None:
        """Draw `watts` above idle for a while."""
        self.now += seconds
        self.drawn += seconds * watts
        self.times.append(self.now)
        self.joules.append(self.drawn)

    def forget(self, before: float) -> None:
        """Nobody will ask for what was drawn before a moment."""
        keep = max(0, bisect.bisect_right(self.times, before) - 1)
        del self.times[:keep], self.joules[:keep]

    def consumed(self, at: Array) -> Array:
        """Joules drawn until each of the moments `at`."""
        load = np.interp(at, self.times, self.joules)
        return np.asarray(load + np.interp(at, self.grid, self.idle))

    def others_seconds(self) -> float:
        return 0.0

    def look(self) -> ClockReading:
        return ClockReading(self.now, self.now, self.now)


class _Cool:
    def look(self) -> ThermalState:
        return ThermalState()


class Engine:
    """Takes a random time and draws more in the first part of it; keeps what it really drew."""

    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()

    def __init__(self, machine: Machine, scenario: Scenario, which: int, rng: np.random.Generator) -> None:
        self.machine, self.scenario, self.rng = machine, scenario, rng
        self.watts, self.mean_seconds = scenario.watts[which], scenario.seconds[which]
        # Draws 1 on average over the inference.
        self.high = 1.0 / (scenario.busy + scenario.ebb * (1.0 - scenario.busy))
        self.factor, self.until = 1.0, -math.inf
        self.spans: list[tuple[float, float]] = []
        self.noise = np.zeros(0)
        self.number = 0

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        del feeds, outputs
        machine, scenario = self.machine, self.scenario
        if machine.now > self.until + 1e-9:
            # Someone else ran, or the machine rested: another block.
            self.factor = 1.0 + scenario.load_wander * float(self.rng.normal())
        if self.number == len(self.noise):
            self.noise, self.number = 1.0 + scenario.jitter * self.rng.normal(size=4096), 0
        seconds = self.mean_seconds * max(0.1, self.noise[self.number])
        self.number += 1
        warm = 1.0 + scenario.load_drift * (machine.now - 1000.0) / 600.0
        watts = self.watts * self.factor * warm * self.high
        machine.pass_by(scenario.busy * seconds, watts)
        machine.pass_by((1.0 - scenario.busy) * seconds, scenario.ebb * watts)
        self.until = machine.now
        return {}

    def close(self) -> None:
        pass


@dataclass
class SyntheticMeter:
    """Counts what the machine draws, as the scenario's meter would."""

    machine: Machine
    scenario: Scenario
    factor: float
    phase: float
    name: str = "synthetic"
    grade: Grade = Grade.B
    boundary: str = "synthetic machine"
    _updates: int = 0
    _joules: float = 0.0

    @property
    def period_s(self) -> float:
        return self.scenario.period

    @property
    def uncertainty(self) -> float | None:
        return self.scenario.gain

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        machine, scenario = self.machine, self.scenario
        start = 1000.0 + self.phase
        latest = max(self._updates, math.floor((machine.now - start) / scenario.period))
        if latest > self._updates:
            if scenario.window < scenario.period:
                ends = start + scenario.period * np.arange(self._updates + 1, latest + 1)
                means = machine.consumed(ends) - machine.consumed(ends - scenario.window)
                self._joules += float(means.sum()) * scenario.period / scenario.window
            else:
                ends = start + scenario.period * np.array([self._updates, latest])
                first, last = machine.consumed(np.maximum(ends, 1000.0))
                self._joules += float(last - first)
            self._updates = latest
            machine.forget(start + scenario.period * (latest - 1))
        shown = math.floor(self.factor * self._joules / scenario.step) * scenario.step
        return Reading(machine.now, {"total": shown})


@dataclass(frozen=True)
class Outcome:
    """One campaign: what was found, and the truth of it.

    `truth` is the net energy in mJ per inference of both variants, as their power is at the middle of the campaign.
    """

    result: EnergyResult
    truth: tuple[float, float]

    def covered(self, which: int) -> bool:
        """Whether the interval of a variant's energy holds the truth."""
        comparison = self.result.comparison
        assert comparison is not None
        energy = (comparison.baseline, comparison.artifact)[which]
        return energy.low <= self.truth[which] <= energy.high

    @property
    def ratio(self) -> Interval:
        assert self.result.comparison is not None
        return self.result.comparison.ratio

    @property
    def ratio_covered(self) -> bool:
        return self.ratio.low <= self.truth[0] / self.truth[1] <= self.ratio.high

    @property
    def claimed(self) -> bool:
        """Whether the variants are called different, either way."""
        return self.ratio.low > 1.0 or self.ratio.high < 1.0


def simulate(scenario: Scenario, seed: int) -> Outcome:
    """Run one campaign."""
    rng = np.random.default_rng(seed)
    machine = Machine(scenario, rng)
    engines = [Engine(machine, scenario, which, rng) for which in (0, 1)]
    meter = SyntheticMeter(
        machine, scenario, 1.0 + scenario.gain * float(rng.normal()), float(rng.uniform(0.0, scenario.period))
    )
    bench = Bench(
        clock=machine.seconds,
        sleep=machine.sleep,
        others=machine,
        clocks=machine,
        thermal=_Cool(),
        seed=seed,
    )
    result = measure_energy(engines[0], engines[1], _FEEDS, meter, scenario.protocol, bench=bench)
    blocks = [block for block in result.blocks if block.discarded is None]
    middle = sum(block.begin + block.seconds / 2.0 for block in blocks) / len(blocks)
    warm = 1.0 + scenario.load_drift * (middle - 1000.0) / 600.0
    truth = tuple(
        1e3 * watts * warm * seconds for watts, seconds in zip(scenario.watts, scenario.seconds, strict=True)
    )
    return Outcome(result, (truth[0], truth[1]))


@dataclass(frozen=True)
class Summary:
    """Shares over many campaigns.

    Attributes:
        campaigns: How many.
        energy: Share whose interval of J/inference holds the truth, over both variants.
        ratio: Share whose interval of the ratio does.
        false_claims: Share in which two equal variants are called different, either way.
        false_savings: Share in which one of two equal variants is said to save energy.
        found: Share in which two variants that differ are called different.
        half_width: Median relative half-width of the ratio.
        rounds: Mean number of rounds.
    """

    campaigns: int
    energy: float
    ratio: float
    false_claims: float
    false_savings: float
    found: float
    half_width: float
    rounds: float


def summarise(scenario: Scenario, campaigns: int, seed: int = 0) -> Summary:
    """Run campaigns of a scenario, and as many with equal variants."""
    seeds = range(seed, seed + campaigns)
    different = [simulate(scenario, each) for each in seeds]
    equal = [simulate(scenario.equal(), each + 1_000_000) for each in seeds]
    covered = [outcome.covered(which) for outcome in different for which in (0, 1)]
    return Summary(
        campaigns=campaigns,
        energy=float(np.mean(covered)),
        ratio=float(np.mean([outcome.ratio_covered for outcome in different])),
        false_claims=float(np.mean([outcome.claimed for outcome in equal])),
        false_savings=float(np.mean([outcome.ratio.low > 1.0 for outcome in equal])),
        found=float(np.mean([outcome.claimed for outcome in different])),
        half_width=float(np.median([math.log(o.ratio.high / o.ratio.low) / 2.0 for o in different])),
        rounds=float(np.mean([outcome.result.rounds for outcome in different])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--campaigns", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", type=int, nargs="+", choices=range(1, len(SCENARIOS) + 1), help="rows of the table"
    )
    arguments = parser.parse_args()
    columns = (
        "J/inference held",
        "ratio held",
        "called different",
        "called a saving",
        "found",
        "half-width",
        "rounds",
    )
    print(f"| scenario | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for scenario in [SCENARIOS[row - 1] for row in arguments.only or range(1, len(SCENARIOS) + 1)]:
        found = summarise(scenario, arguments.campaigns, arguments.seed)
        shares = found.energy, found.ratio, found.false_claims, found.false_savings, found.found
        print(
            f"| {scenario.name} | {' | '.join(f'{share:.1%}' for share in shares)} "
            f"| {found.half_width:.2%} | {found.rounds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
