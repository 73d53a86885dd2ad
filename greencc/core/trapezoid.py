"""Energy from samples of power: the trapezoid rule, and where samples are too far apart to say anything.

What is not known is not made up: across a gap nothing is integrated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from greencc.core.errors import UnavailableError
from greencc.core.meter import PowerSample

GAP_PERIODS = 5
"""Samples further apart than so many intervals (and `GAP_SECONDS`) leave a gap: 5 s for a meter that updates every
second, half a second for one that is read ten times a second."""
GAP_SECONDS = 0.5


def longest_gap(interval_s: float) -> float:
    """Seconds that samples taken at this interval may be apart."""
    return max(GAP_SECONDS, GAP_PERIODS * interval_s)


def joules_from(name: str, last: PowerSample, sample: PowerSample) -> dict[str, float]:
    """Joules by domain from one sample to the next, whatever lies between them.

    Raises:
        UnavailableError: The samples of the meter of that `name` do not fit together.
    """
    elapsed = sample.seconds - last.seconds
    if elapsed < 0.0 or set(sample.watts) != set(last.watts):
        raise UnavailableError(
            f"the samples of {name} do not fit together: a domain came or went, or time ran backwards"
        )
    return {domain: elapsed * (watts + last.watts[domain]) / 2.0 for domain, watts in sample.watts.items()}


def joules_within(
    name: str, samples: Sequence[PowerSample], begin: float, end: float, gap_s: float
) -> dict[str, float]:
    """Joules by domain from `begin` to `end`; power is taken to change evenly between samples.

    Args:
        name: Of the meter.
        samples: In their order.
        begin: Seconds, by the clock of the samples.
        end: Likewise.
        gap_s: Samples may be so far apart (`longest_gap`).

    Raises:
        UnavailableError: The samples do not cover the stretch, have a gap in it, or do not fit together.
    """
    if not samples or samples[0].seconds > begin or samples[-1].seconds < end:
        raise UnavailableError(f"the samples of {name} do not cover the whole stretch")
    joules = dict.fromkeys(samples[0].watts, 0.0)
    for last, sample in itertools.pairwise(samples):
        if sample.seconds < begin or last.seconds > end:
            continue
        whole = joules_from(name, last, sample)
        elapsed = sample.seconds - last.seconds
        if elapsed > gap_s:
            raise UnavailableError(f"{name} has a gap: it gave no sample for {elapsed:.2g} s")
        if begin <= last.seconds and sample.seconds <= end:
            inside = whole
        else:
            inside = joules_from(name, _between(last, sample, begin), _between(last, sample, end))
        for domain, value in inside.items():
            joules[domain] += value
    return joules


def _between(last: PowerSample, sample: PowerSample, seconds: float) -> PowerSample:
    """The power at a moment, where it lies between two samples; that of the nearer one otherwise."""
    if seconds <= last.seconds:
        return last
    if seconds >= sample.seconds:
        return sample
    share = (seconds - last.seconds) / (sample.seconds - last.seconds)
    watts = {domain: value + share * (sample.watts[domain] - value) for domain, value in last.watts.items()}
    return PowerSample(seconds, watts)
