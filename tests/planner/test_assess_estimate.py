"""Verdicts that rest on an estimate: it refuses what even its best end breaks, and shows nothing to be met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greencc.core.report import Energy, Interval
from greencc.core.report_plan import LimitVerdict
from greencc.meters.roofline import AtRate, Estimate, Estimated
from greencc.planner.assess_estimate import assess_estimate
from greencc.planner.budget import parse_budget

RAIL = "module (VDD_IN rail)"
FOUND = Estimate(
    latency_ms=Interval(10.0, 5.0, 20.0),
    energy=Energy(40.0, 20.0, 90.0, "D", RAIL, "estimated, gross"),
    watts=Estimated(5.0, 3.0, 7.0, "D", RAIL),
    throttled=False,
    unthrottled_ms=10.0,
    layers=(),
    at_rate=None,
    latency_method="estimated",
    notes=(),
)


def verdict(text: str, found: Estimate = FOUND, macs: float | None = 5e6) -> LimitVerdict:
    (limit,) = parse_budget(text)
    return assess_estimate(limit, found, size_bytes=1000, macs=macs, meaning="the average of VDD_IN")


def paced(reachable: str, watts: Estimated | None) -> Estimate:
    share = Interval(0.3, 0.15, 0.6)
    return replace(FOUND, at_rate=AtRate(30.0, reachable, share, watts, None))


@pytest.mark.parametrize(
    ("text", "met", "sure"),
    [
        ("20ms p50", None, True),
        ("12ms p50", None, False),
        ("6ms p50", None, False),
        ("4.9ms p50", False, False),
        ("100ms p95", None, False),
        ("4ms p99", False, False),
        ("90mJ", None, True),
        ("25mJ", None, False),
        ("19mJ", False, False),
        ("7W", None, True),
        ("3W", None, False),
        ("2.9W", False, False),
    ],
)
def test_only_what_the_best_end_breaks_is_refused(text: str, met: bool | None, sure: bool) -> None:
    got = verdict(text)
    assert (got.met, got.sure, got.estimated) == (met, sure, True)
    assert got.low is not None
    assert got.high is not None


def test_of_a_percentile_only_the_median_is_known_and_it_says_so() -> None:
    assert "no p95" in verdict("33ms").note
    assert verdict("33ms p50").note == ""
    assert "idle power is in it" in verdict("50mJ").note


@pytest.mark.parametrize(
    ("text", "met"), [("1KB", True), ("999B", False), ("5MMACs", True), ("4MMACs", False)]
)
def test_what_is_counted_is_met_or_not(text: str, met: bool) -> None:
    got = verdict(text)
    assert (got.met, got.sure, got.estimated, got.low) == (met, met, False, None)


def test_macs_that_nobody_counted_keep_no_limit() -> None:
    got = verdict("5MMACs", macs=None)
    assert (got.met, got.found) == (False, None)


def test_watts_at_a_rate_are_the_average() -> None:
    got = verdict("5W", paced("yes", Estimated(4.1, 2.6, 6.2, "D", RAIL)))
    assert (got.found, got.low, got.high) == (4.1, 2.6, 6.2)
    assert (got.met, got.sure, got.note) == (None, False, "the average of VDD_IN")
    assert verdict("6.2W", paced("yes", Estimated(4.1, 2.6, 6.2, "D", RAIL))).sure


def test_a_device_that_does_not_keep_up_keeps_no_watts() -> None:
    late = verdict("100W", paced("no", None))
    assert (late.met, late.sure) == (False, False)
    assert "cannot keep up with 30/s, which takes 33.33 ms" in late.note
    perhaps = verdict("100W", paced("uncertain", Estimated(4.1, 2.6, 6.2, "D", RAIL)))
    assert (perhaps.met, perhaps.sure) == (None, False)
    assert "may not keep up" in perhaps.note
