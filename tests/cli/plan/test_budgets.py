"""Budgets of every kind: kept in the verified report, or refused with the nearest points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from greencc.core.errors import ExitCode

from ..conftest import Outcome, listing
from .conftest import COMPILE, Plan

# The model as it is takes 524 us, 1.1 mJ, 100 kB and 1.3 million multiply-accumulates.
KEPT = [
    (("--budget", "2.13W"), "power", "2.13W", "flat out"),
    (("--budget", "1.2W", "--rate", "200/s"), "power", "1.2W", "at 200/s"),
    (("--budget", "0.3mJ"), "energy", "0.3mJ", "estimated"),
    (("--budget", "0.1ms p50"), "latency", "100us p50", ""),
    (("--budget", "0.1ms"), "latency", "100us p95", ""),
    (("--budget", "100us@p99"), "latency", "100us p99", ""),
    (("--budget", "0.04MB"), "size", "0.04MB", ""),
    (("--budget", "12KB", "--minimize", "error"), "size", "12KB", ""),
    (("--budget", "400KMACs", "--minimize", "error"), "macs", "400KMACs", ""),
]


@pytest.mark.parametrize(("arguments", "quantity", "limit", "note"), KEPT, ids=[" ".join(row[0]) for row in KEPT])
def test_every_kind_of_budget_is_kept(
    blocks: Path, known: Path, plan: Plan, arguments: tuple[str, ...], quantity: str, limit: str, note: str
) -> None:
    report, found = plan(*arguments)
    (verdict,) = found.limits
    assert (verdict.limit, verdict.quantity) == (limit, quantity)
    assert verdict.met
    assert verdict.found is not None
    assert verdict.found <= verdict.allowed
    assert note in verdict.note
    # The verdict is of the artifact's own figures, measured at the end.
    own = {
        "latency": report.artifact.latency_ms.median,
        "size": report.artifact.size_bytes,
        "macs": report.artifact.macs,
        "energy": report.artifact.energy_mj and report.artifact.energy_mj.value,
    }
    if quantity in own:
        assert verdict.found == pytest.approx(own[quantity])
    assert report.accuracy.certified
    assert any("without --rate is the power flat out" in warning for warning in report.warnings) == (
        quantity == "power" and "--rate" not in arguments
    )


def test_two_limits_together(blocks: Path, known: Path, plan: Plan) -> None:
    report, found = plan("--budget", "20KB,0.1ms p99", "--minimize", "error")
    assert [verdict.quantity for verdict in found.limits] == ["size", "latency"]
    assert all(verdict.met for verdict in found.limits)
    assert report.artifact.size_bytes <= 20_000
    assert report.artifact.latency_ms.p99 <= 0.1


def test_the_objective_decides_what_is_best(blocks: Path, known: Path, plan: Plan) -> None:
    """Each objective's plan is the best of all in what it is for."""
    found = {name: plan("--minimize", name)[0] for name in ("energy", "latency", "size")}
    found["error"], least = plan("--minimize", "error", "--budget", "60KB")
    assert all(verdict.met for verdict in least.limits)

    def energy(name: str) -> float:
        value = found[name].artifact.energy_mj
        assert value is not None
        return value.value

    slack = 1.02
    assert all(energy("energy") <= slack * energy(other) for other in found)
    assert all(
        found["latency"].artifact.latency_ms.median <= slack * other.artifact.latency_ms.median
        for other in found.values()
    )
    assert all(found["size"].artifact.size_bytes <= slack * other.artifact.size_bytes for other in found.values())
    chosen = {name: report.plan.points for name, report in found.items() if report.plan is not None}
    errors = {name: next(point.error for point in points if point.chosen) for name, points in chosen.items()}
    assert errors["error"] is not None
    assert all(errors["error"] <= (error or 0.0) for error in errors.values())


TOO_TIGHT = [
    (("--budget", "3KB"), "3KB", "misses 3KB (found"),
    (("--budget", "0.05mJ"), "0.05mJ", "misses 0.05mJ (found"),
    (("--budget", "30us"), "30us p95", "misses 30us p95 (found"),
    (("--budget", "30us,20KB"), "30us p95", "misses 30us p95 (found"),
]


@pytest.mark.parametrize(("arguments", "limit", "missed"), TOO_TIGHT, ids=[row[0][1] for row in TOO_TIGHT])
def test_too_tight_a_budget_ends_with_the_nearest_points(
    blocks: Path,
    known: Path,
    greencc: Callable[..., Outcome],
    arguments: tuple[str, ...],
    limit: str,
    missed: str,
) -> None:
    before = listing(blocks)
    outcome = greencc(*COMPILE, *arguments)
    assert outcome.code == ExitCode.LIMIT, outcome.err
    first, *rest = outcome.err.splitlines()
    assert first.startswith("greencc: ")
    assert limit in first
    assert first.endswith("the nearest points:")
    points = [line for line in rest if " ms (p95 " in line]
    assert 1 <= len(points) <= 5
    assert any(missed in line for line in points)
    assert any("--max-drop" in line for line in rest)
    assert outcome.out == ""
    assert listing(blocks) == before


def test_watts_below_the_idle_power_are_refused_with_the_bound(
    small: Path, refused: Callable[..., None]
) -> None:
    for arguments in (("--budget", "100mW"), ("--budget", "100mW", "--rate", "30/s")):
        refused((*COMPILE, *arguments), ExitCode.LIMIT, "100mW is out of reach: without any work the device draws")


def test_a_rate_that_nothing_keeps_up_with(small: Path, refused: Callable[..., None]) -> None:
    """The least that any plan takes is 10 us."""
    arguments = (*COMPILE, "--budget", "100W", "--rate", "1000000/s")
    refused(arguments, ExitCode.LIMIT, "100W")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--budget", "33ms p50,20ms p99"), "contradict each other", "drop"),
        (("--budget", "5W,6W"), "two limits on the power", "keep 5W"),
        (("--budget", "20MJ"), "20MJ", "did you mean 20mJ?"),
        (("--budget", "-5W"), "negative", "5W"),
        (("--budget", "0ms"), "zero", ""),
        (("--budget", "5 parsecs"), "parsecs", ""),
        (("--budget", ""), "budget is empty", ""),
        (("--minimize", "error"), "the least error without a budget", "--budget"),
        (("--budget", "5W", "--precision", "int8"), "exclude each other", "the plan decides the precision"),
        (("--budget", "5W", "--recipe", "r.toml"), "exclude each other", "--recipe"),
        (("--minimize", "size", "--passes", "quantize"), "exclude each other", "--passes"),
        (("--budget", "5W", "--rate", "0/s"), "not a rate", "30/s"),
        (("--budget", "5W", "--time-budget", "0"), "time_budget", "seconds"),
        (("--budget", "5W", "--workers", "0"), "workers", ""),
        (("--budget", "5W", "--engine", "slurm"), "slurm", ""),
    ],
)
def test_what_contradicts_itself_is_refused(
    digits: Path, greencc: Callable[..., Outcome], arguments: tuple[str, ...], message: str, hint: str
) -> None:
    before = listing(digits)
    outcome = greencc(*COMPILE, *arguments)
    assert outcome.code == ExitCode.USAGE, outcome.err
    assert outcome.err.startswith("greencc: ")
    assert message in outcome.err
    assert hint in outcome.err
    assert outcome.out == ""
    assert listing(digits) == before
