"""From blocks to joules per inference and their ratio, with uncertainties after the GUM (JCGM 100:2008).

Per round, over its blocks of a variant (`E` joules, `t` seconds, `n` inferences in all):

    gross = E / n            net = (E - P_idle t) / n
    u^2   = max(s_0, s)^2 / N + (t/n)^2 u_idle^2 + (u_gain net)^2 + (period / (sqrt(6) t_block) gross)^2

The expanded uncertainty adds the terms in quadrature, each expanded by Student's t at its own degrees of freedom. (The
effective degrees of freedom of Welch and Satterthwaite, GUM G.4, promise too much with few rounds: a systematic term as
large as the spread of three rounds makes eight degrees of freedom out of two.)

The ratio comes from the rounds' log-ratios, in which the meter's gain and a linear drift cancel.

Measuring ends when the spread is small enough, which would favour rounds whose spread is small by chance. Stein's
two-stage procedure ("A two-sample test for a linear hypothesis whose power is independent of the variance", Annals of
Mathematical Statistics 16, 1945) does not suffer from that: the standard deviation `s_0` of the first stage with its
`n_0 - 1` degrees of freedom gives an exact interval however many rounds follow because of the spread, since the mean
of normal values does not depend on their residuals. Here the larger of `s_0` and the standard deviation of all rounds
takes that place, with `n_0 - 1` degrees of freedom: never narrower than Stein's, and honest where the machine got
noisier later or the rounds are not quite independent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greencc.core.meter import EnergyComparison, Sensor
from greencc.core.report import Energy, Interval
from greencc.measure.blocks import Block, IdlePart
from greencc.measure.intervals import t_quantile
from greencc.measure.protocols import EnergyProtocol

# Where net energy is less than so many standard uncertainties of the idle share, it cannot be told from nothing.
_TELLABLE = 3.0
# As good as infinitely many degrees of freedom.
_MANY = 1e6

Uncertainty = tuple[float, float]
"""A standard uncertainty and its degrees of freedom."""


@dataclass(frozen=True)
class Round:
    """The blocks of one comparison, one or two of each variant."""

    baseline: tuple[Block, ...]
    artifact: tuple[Block, ...]


@dataclass(frozen=True)
class IdlePower:
    """Power of the idle machine.

    Attributes:
        watts: At `centre`.
        error: Standard uncertainty of the noise within the windows, the same for all blocks.
        degrees: Degrees of freedom of the error.
        unknown: Standard uncertainty of what it did between the windows, likewise.
        slope: Watts per second.
        centre: Monotonic seconds.
    """

    watts: float
    error: float
    degrees: float = math.inf
    unknown: float = 0.0
    slope: float = 0.0
    centre: float = 0.0

    def terms(self, factor: float) -> list[Uncertainty]:
        """What `factor` times the power has of uncertainty."""
        return [(factor * self.error, self.degrees), (factor * self.unknown, math.inf)]

    def interval(self, confidence: float) -> Interval:
        """Watts at `centre`."""
        half = _expanded(self.terms(1.0), confidence)
        return Interval(self.watts, self.watts - half, self.watts + half)

    def at(self, seconds: float) -> float:
        """Watts at a moment."""
        return self.watts + self.slope * (seconds - self.centre)


def idle_power(parts: Sequence[IdlePart]) -> IdlePower | None:
    """Idle power between the window before and the one after, on the line through both; None without two good parts.

    How the power went in between is not known: a rectangular distribution between both means adds their difference
    / sqrt(12) (GUM, 4.3.7).
    """
    good = [part for part in parts if part.discarded is None and part.joules is not None]
    names = dict.fromkeys(part.which for part in good)
    windows = [[part for part in good if part.which == name] for name in names]
    windows = [window for window in windows if len(window) >= 2]
    if not windows:
        return None
    powers = [[_watts(part) for part in window] for window in windows]
    means = [statistics.fmean(values) for values in powers]
    centres = [statistics.fmean(part.begin + part.seconds / 2.0 for part in window) for window in windows]
    noise = [statistics.stdev(values) / math.sqrt(len(values)) for values in powers]
    degrees = min(len(values) for values in powers) - 1.0
    if len(windows) == 1:
        return IdlePower(means[0], noise[0], degrees, centre=centres[0])
    drift = means[-1] - means[0]
    return IdlePower(
        watts=statistics.fmean(means),
        error=math.hypot(*noise) / 2.0,
        degrees=degrees,
        unknown=abs(drift) / math.sqrt(12.0),
        slope=drift / (centres[-1] - centres[0]),
        centre=statistics.fmean(centres),
    )


def summarise(
    rounds: Sequence[Round],
    idle: IdlePower | None,
    meter: Sensor,
    protocol: EnergyProtocol,
    confidence: float = 0.95,
) -> EnergyComparison:
    """Figures and ratio of rounds, at least two.

    All of them are net, with gross figures beside; or all gross, where `idle` is not known or explains the load.
    """
    sides = [_Side(blocks) for blocks in _sides(rounds)]
    warnings: list[str] = []
    net = idle if idle is not None and all(side.tellable(idle) for side in sides) else None
    against = "gross, idle is not subtracted"
    if idle is not None:
        known = idle.interval(confidence)
        power = f"{known.value:.3g} W idle [{known.low:.3g}, {known.high:.3g}]"
        against = f"net of {power}" if net is not None else f"gross, too little to tell from {power}"
    if idle is not None and net is None:
        warnings.append("the load is too small to tell from idle: energy and its ratio are gross")
    basis = _Basis(meter, protocol, confidence, net, against)
    if not protocol.clears_gate:
        warnings.append(f"energy was measured with the {protocol.name} protocol, which cannot clear a gate")
    return EnergyComparison(
        sides[0].energy(basis),
        sides[1].energy(basis),
        _ratio(sides[0], sides[1], net, protocol.rounds, confidence),
        tuple(warnings),
    )


@dataclass(frozen=True)
class _Basis:
    """What figures rest on: `idle` is what they are net of, and `against` says so in words."""

    meter: Sensor
    protocol: EnergyProtocol
    confidence: float
    idle: IdlePower | None
    against: str


@dataclass(frozen=True)
class _Side:
    """The blocks of one variant, by round."""

    rounds: tuple[tuple[Block, ...], ...]

    def gross(self) -> list[float]:
        """Joules per inference, by round."""
        return [_total(blocks) / _count(blocks) for blocks in self.rounds]

    def values(self, idle: IdlePower | None) -> list[float]:
        """Net joules per inference, by round; gross without `idle`."""
        if idle is None:
            return self.gross()
        return [
            (
                _total(blocks)
                - sum(idle.at(block.begin + block.seconds / 2.0) * block.seconds for block in blocks)
            )
            / _count(blocks)
            for blocks in self.rounds
        ]

    def seconds_per_inference(self) -> float:
        return statistics.fmean(
            sum(block.seconds for block in blocks) / _count(blocks) for blocks in self.rounds
        )

    def tellable(self, idle: IdlePower) -> bool:
        """Whether net energy stands clear of what is not known about idle."""
        values = self.values(idle)
        return min(values) > 0.0 and statistics.fmean(values) > _TELLABLE * (
            self.seconds_per_inference() * math.hypot(idle.error, idle.unknown)
        )

    def energy(self, basis: _Basis) -> Energy:
        meter = basis.meter
        blocks = [block for each in self.rounds for block in each]
        seconds = statistics.fmean(block.seconds for block in blocks)
        figure, gross = self._figure(basis, basis.idle), self._figure(basis, None)
        gain = (
            ""
            if meter.uncertainty is not None
            else "; the gain error of the meter is not published and not in it"
        )
        found = Energy(
            value=figure.value,
            low=figure.low,
            high=figure.high,
            grade=meter.grade.name,
            boundary=meter.boundary,
            method=(
                f"measured with {meter.name}, {basis.against}, {basis.protocol.title}: "
                f"{len(blocks)} blocks of {seconds:.3g} s{gain}"
            ),
        )
        if basis.idle is None:
            return found
        return replace(found, gross=gross.value, gross_low=gross.low, gross_high=gross.high)

    def _figure(self, basis: _Basis, idle: IdlePower | None) -> Interval:
        """Millijoules per inference, net of `idle`; gross without."""
        values, gross = self.values(idle), statistics.fmean(self.gross())
        mean = statistics.fmean(values)
        seconds = statistics.fmean(block.seconds for each in self.rounds for block in each)
        systematic: list[Uncertainty] = [
            ((basis.meter.uncertainty or 0.0) * mean, math.inf),
            # Each end of a block falls anywhere between two updates: a triangular distribution.
            (basis.meter.period_s / (math.sqrt(6.0) * seconds) * gross, math.inf),
        ]
        if idle is not None:
            systematic += idle.terms(self.seconds_per_inference())
        half = _half(values, basis.protocol.rounds, systematic, basis.confidence)
        value = statistics.median(values) if basis.protocol.median else mean
        return Interval(value * 1e3, min(value, mean - half) * 1e3, max(value, mean + half) * 1e3)


def _ratio(first: _Side, second: _Side, idle: IdlePower | None, stage: int, confidence: float) -> Interval:
    pairs = list(zip(first.values(idle), second.values(idle), strict=True))
    logs = [math.log(a / b) for a, b in pairs]
    systematic: list[Uncertainty] = []
    if idle is not None:
        # What the error of the idle power, common to all rounds, does to the ratio: d log(A/B) / d P_idle.
        slopes = [
            side.seconds_per_inference() / statistics.fmean(side.values(idle)) for side in (first, second)
        ]
        systematic += idle.terms(abs(slopes[0] - slopes[1]))
    half = _half(logs, stage, systematic, confidence)
    mean = statistics.fmean(logs)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(min(mean + half, 700.0)))


def _half(values: Sequence[float], stage: int, systematic: Sequence[Uncertainty], confidence: float) -> float:
    """Expanded uncertainty of the mean of rounds, the first `stage` of which had to be measured in any case."""
    stage = min(stage, len(values))
    spread = max(statistics.stdev(values[:stage]), statistics.stdev(values))
    return _expanded([(spread / math.sqrt(len(values)), stage - 1.0), *systematic], confidence)


def _expanded(terms: Sequence[Uncertainty], confidence: float) -> float:
    return math.hypot(*(t_quantile(confidence, degrees) * error for error, degrees in terms))


def _sides(rounds: Sequence[Round]) -> tuple[tuple[tuple[Block, ...], ...], tuple[tuple[Block, ...], ...]]:
    return tuple(each.baseline for each in rounds), tuple(each.artifact for each in rounds)


def _total(blocks: Sequence[Block]) -> float:
    return math.fsum(block.joules for block in blocks if block.joules is not None)


def _count(blocks: Sequence[Block]) -> int:
    return sum(block.count for block in blocks)


def _watts(part: IdlePart) -> float:
    assert part.joules is not None
    return part.joules / part.seconds
