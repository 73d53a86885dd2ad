"""How energy is measured: windows, blocks, order, what is reported and when it is enough (docs/methodology.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from greencc.core.errors import UsageError, did_you_mean

IDLE_PARTS = 5
"""An idle window is read in so many parts, whose spread is its noise."""


@dataclass(frozen=True)
class EnergyProtocol:
    """How energy is measured.

    A *round* is one comparison: A B B A where `mirrored` (a linear drift cancels within it), otherwise A B. Every
    second round has A and B exchanged.

    Attributes:
        name: As asked for.
        idle_seconds: Shortest idle window, one before and one after; 0: none, and idle is not subtracted.
        block_seconds: Shortest block.
        rounds: Rounds before the stopping rule is looked at. Their spread stays in the interval (Stein's first stage).
        target: Stop when the ratio's relative half-width is at most this; None: stop after `rounds`.
        limit_seconds: Stop after this time in any case.
        mirrored: Four blocks to a round rather than two.
        median: Report the median of the rounds rather than their mean.
        periods: A block and an idle window last at least so many periods of the meter.
        warm_up_seconds: Without a temperature sensor, warm up for so long; with one, until it moves less than 1 K in
            that time. 0: no warm-up of its own.
        label: How figures say what they were measured with.
        clears_gate: Whether a result may decide a pass/fail gate; quick ones never may.
    """

    name: str
    idle_seconds: float
    block_seconds: float
    rounds: int
    target: float | None
    limit_seconds: float
    mirrored: bool = True
    median: bool = False
    periods: int = 100
    warm_up_seconds: float = 30.0
    label: str = ""
    clears_gate: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UsageError(f"the {self.name} protocol has {self.rounds} rounds; an interval takes two")
        if self.target is not None and not 0.0 < self.target < 1.0:
            raise UsageError(
                f"a half-width of {self.target:.3g} cannot be reached", hint="such as --until 2%"
            )
        if not (math.isfinite(self.limit_seconds) and self.limit_seconds > 0.0):
            raise UsageError(f"the time limit is {self.limit_seconds:g} s", hint="such as --limit 10m")

    @property
    def per_variant(self) -> int:
        """Blocks of each variant in a round."""
        return 2 if self.mirrored else 1

    @property
    def title(self) -> str:
        return self.label or f"{self.name} protocol"

    def block_length(self, period_s: float) -> float:
        """Seconds of a block with a meter of this period."""
        return max(self.block_seconds, self.periods * period_s)

    def idle_length(self, period_s: float) -> float:
        """Seconds of an idle window; 0 where idle is not measured."""
        return max(self.idle_seconds, self.periods * period_s) if self.idle_seconds > 0.0 else 0.0

    def shortest(self, period_s: float) -> float:
        """Seconds that idle windows and two rounds take, the least that gives an interval."""
        return 2 * self.idle_length(period_s) + 4 * self.per_variant * self.block_length(period_s)

    def check_limit(self, period_s: float) -> None:
        """Make sure that an interval is possible within the time limit.

        Raises:
            UsageError: It is not.
        """
        if (shortest := self.shortest(period_s)) > self.limit_seconds:
            meter = f" with a meter that updates every {period_s:g} s" if period_s > 0.0 else ""
            shorter = "" if self.name == "quick" else ", or --protocol quick"
            raise UsageError(
                f"two rounds of the {self.name} protocol{meter} take {shortest:.0f} s, more than the limit of "
                f"{self.limit_seconds:g} s",
                hint=f"a longer --limit{shorter}",
            )

    def check_rate(self, rate: float | None, period_s: float) -> None:
        """Make sure that a request comes in every block.

        Raises:
            UsageError: It does not.
        """
        length = self.block_length(period_s)
        if rate is not None and rate * length < 1.0 - 1e-9:
            raise UsageError(
                f"at {rate:g} requests per second most blocks of {length:g} s would have none",
                hint=f"a --rate of {1.0 / length:.3g}/s or more, or flat out",
            )

    def adapted(self, *, target: float | None = None, limit_seconds: float | None = None) -> EnergyProtocol:
        """The protocol with another target or time limit; None leaves what there is.

        Raises:
            UsageError: The values make no sense.
        """
        return replace(
            self,
            target=self.target if target is None else target,
            limit_seconds=self.limit_seconds if limit_seconds is None else limit_seconds,
        )


def _unofficial(name: str, what: str) -> str:
    # The names are trademarks for reviewed results; meters of the device itself would not be admitted at all.
    return f"windows as in {name} ({what}), not an MLPerf result"


QUICK = EnergyProtocol("quick", 4.0, 0.5, 4, 0.05, 20.0, periods=10, warm_up_seconds=0.0, clears_gate=False)
DEFAULT = EnergyProtocol("default", 30.0, 10.0, 5, 0.02, 600.0)
# EEMBC's runner takes the median of five loops of at least 10 s, of everything the board draws (Banbury et al., 2021).
MLPERF_TINY = EnergyProtocol(
    "mlperf-tiny",
    0.0,
    10.0,
    5,
    None,
    600.0,
    mirrored=False,
    median=True,
    label=_unofficial("MLPerf Tiny", "median of five loops of at least 10 s, idle not subtracted"),
)
# Power is averaged over at least 600 s of the whole system, idle included (Tschand et al., 2024).
MLPERF_POWER = EnergyProtocol(
    "mlperf-power",
    0.0,
    600.0,
    4,
    None,
    3 * 3600.0,
    mirrored=False,
    label=_unofficial("MLPerf Power", "at least 600 s, idle not subtracted"),
)

PROTOCOLS: tuple[EnergyProtocol, ...] = (DEFAULT, QUICK, MLPERF_TINY, MLPERF_POWER)


def protocol_named(name: str) -> EnergyProtocol:
    """The protocol of that name.

    Raises:
        UsageError: There is none.
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    if name not in known:
        raise UsageError(f"there is no protocol {name!r}", hint=did_you_mean(name, known))
    return known[name]
