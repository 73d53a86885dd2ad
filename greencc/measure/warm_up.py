"""Warm up under the load that is measured, until the temperature stands still."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.measure.loadgen import Load, drive

if TYPE_CHECKING:
    from greencc.measure.blocks import Bench

STEADY_KELVIN = 1.0
_SLICE_SECONDS = 1.0


@dataclass(frozen=True)
class WarmUp:
    """How long it took and why it ended; `steady` is false where the time ran out before the temperature settled."""

    seconds: float
    why: str
    steady: bool


def warm_up(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    load: Load,
    bench: Bench,
    *,
    window: float,
    limit: float,
) -> WarmUp:
    """Run the engines by turns.

    Args:
        engines: All that will be measured.
        feeds: Inputs of one inference each.
        load: How they will be driven.
        bench: The machine.
        window: Seconds in which the temperature may move less than `STEADY_KELVIN`; for so long without a sensor.
        limit: Seconds after which it ends in any case.
    """
    # At a low rate a slice is long enough for a request: shorter ones would raise the rate.
    length = _SLICE_SECONDS if load.rate is None else max(_SLICE_SECONDS, 1.0 / load.rate)

    def run(engine: Engine) -> None:
        drive(engine, feeds, length, load, clock=bench.clock, sleep=bench.sleep)

    return run_until_steady(
        engines, run, lambda: bench.thermal.look().celsius, bench.clock, window=window, limit=limit
    )


def run_until_steady(
    engines: Sequence[Engine],
    run: Callable[[Engine], None],
    celsius_now: Callable[[], float | None],
    clock: Callable[[], float],
    *,
    window: float,
    limit: float,
) -> WarmUp:
    """As `warm_up`, wherever the engines are: `run` drives one for a second or a few, `celsius_now` looks there."""
    start = clock()
    seen: deque[tuple[float, float]] = deque()
    number = 0
    while True:
        elapsed = clock() - start
        celsius = celsius_now()
        if celsius is None:
            if elapsed >= min(window, limit):
                return WarmUp(elapsed, f"{elapsed:.0f} s: there is no temperature sensor", steady=True)
        else:
            seen.append((elapsed, celsius))
            while len(seen) > 1 and seen[1][0] <= elapsed - window:
                seen.popleft()
            moved = max(value for _, value in seen) - min(value for _, value in seen)
            if elapsed - seen[0][0] >= window and moved < STEADY_KELVIN:
                return WarmUp(elapsed, f"the temperature moved {moved:.1f} K in {window:.0f} s", steady=True)
            if elapsed >= limit:
                return WarmUp(
                    elapsed, f"the temperature still moved {moved:.1f} K after {elapsed:.0f} s", steady=False
                )
        run(engines[number % len(engines)])
        number += 1
