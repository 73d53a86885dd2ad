"""Budgets of every kind: kept in the verified report, or refused with the nearest points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from greencc.compiler import CompileOptions
from greencc.compiler.counts import sum_operations
from greencc.compiler.planning.budget import Asked
from greencc.core.describe import nodes_cost
from greencc.core.engine import Target
from greencc.core.errors import ExitCode
from greencc.core.model import load_model
from greencc.core.report_plan import LimitVerdict, PlanInfo
from greencc.core.shapes import bind_dims
from greencc.meters.model import Workload, central_millijoules, device_power, load_of
from greencc.targets import make_target
from tests.cli.conftest import Outcome, listing

from .conftest import COMPILE, TARGET, Plan
from .steady import install, milliseconds


@dataclass(frozen=True)
class Whole:
    """The digits model as it is: 83 us, 14.7 kB, 3,552 multiply-accumulates, and its energy here."""

    ms: float
    mj: float
    idle: float

    def watts(self, rate: float, mj: float, ms: float) -> float:
        return self.idle + rate * (mj - self.idle * ms) / 1e3


@pytest.fixture(scope="module")
def whole(digits_files: Path) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        target = make_target(TARGET)
        options = CompileOptions(target=TARGET, budget="5W")
        idle = Asked.of(options, target.device()).idle_watts
        ms = milliseconds((digits_files / "model.onnx").read_bytes())
        mj = central_energy(digits_files / "model.onnx", target, ms)
    return Whole(ms, mj, idle)


def central_energy(path: Path, target: Target, ms: float) -> float:
    """Millijoules of one inference, as the planner estimates them."""
    counts = sum_operations(nodes_cost(bind_dims(load_model(path), {"pixels": (1, 64)})))
    facts = target.device().facts
    return central_millijoules(Workload(counts, ms / 1e3), device_power(facts), load_of(facts))


def kept(found: PlanInfo, quantity: str) -> LimitVerdict:
    """The verdict on the only limit, which is met."""
    (verdict,) = found.limits
    assert verdict.quantity == quantity
    assert verdict.met
    assert verdict.found is not None
    assert verdict.found <= verdict.allowed
    return verdict


@pytest.mark.parametrize("percentile", ["", " p50", "@p99"])
def test_milliseconds(small: Path, plan: Plan, percentile: str) -> None:
    report, found = plan("--budget", f"50us{percentile}")
    verdict = kept(found, "latency")
    assert verdict.limit == f"50us {percentile.strip(' @') or 'p95'}"
    # The verdict is on the artifact's own figures, measured at the end.
    assert verdict.found == pytest.approx(report.artifact.latency_ms.median)


def test_bytes(small: Path, plan: Plan) -> None:
    for budget, allowed in (("8KB", 8000), ("0.006MB", 6000), ("3KiB", 3072)):
        report, found = plan("--budget", budget, "--minimize", "error")
        verdict = kept(found, "size")
        assert (verdict.limit, verdict.allowed) == (budget, allowed)
        assert verdict.found == report.artifact.size_bytes
        assert verdict.sure


def test_operations(small: Path, plan: Plan) -> None:
    report, found = plan("--budget", "1.5KMACs", "--minimize", "error")
    assert kept(found, "macs").found == report.artifact.macs
    assert any(choice.kind in ("channels", "rank") and choice.option != "whole" for choice in found.choices)


def test_millijoules(small: Path, plan: Plan, whole: Whole) -> None:
    report, found = plan("--budget", f"{0.6e3 * whole.mj:.3g}uJ", "--minimize", "error")
    verdict = kept(found, "energy")
    assert (verdict.grade, verdict.unit) == ("D", "mJ")
    assert "estimated" in verdict.note
    assert report.artifact.energy_mj is not None
    assert verdict.found == pytest.approx(report.artifact.energy_mj.value)


def test_watts_flat_out(small: Path, plan: Plan, whole: Whole) -> None:
    report, found = plan("--budget", f"{1.02 * whole.mj / whole.ms:.4g}W")
    verdict = kept(found, "power")
    assert "flat out" in verdict.note
    assert "estimated" in verdict.note
    assert any("without --rate is the power flat out" in warning for warning in report.warnings)


def test_watts_at_a_rate(small: Path, plan: Plan, whole: Whole) -> None:
    """Between what the model takes at 1,000/s and what it takes with half the energy and time."""
    most = whole.watts(1e3, 0.7 * whole.mj, 0.7 * whole.ms)
    assert most < whole.watts(1e3, whole.mj, whole.ms)
    report, found = plan("--budget", f"{1e3 * most:.5g}mW", "--rate", "1000/s", "--minimize", "error")
    assert "at 1000/s" in kept(found, "power").note
    assert found.rate == 1000.0
    assert report.artifact.latency_ms.median < 0.8 * whole.ms


def test_two_limits_together(small: Path, plan: Plan) -> None:
    report, found = plan("--budget", "6KB,50us p99", "--minimize", "error")
    assert [verdict.quantity for verdict in found.limits] == ["size", "latency"]
    assert all(verdict.met for verdict in found.limits)
    assert report.artifact.size_bytes <= 6_000
    assert report.artifact.latency_ms.p99 <= 0.05


def test_the_objective_decides_what_is_best(small: Path, plan: Plan) -> None:
    """Each objective's plan is the best of all in what it is for."""
    report, least = plan("--minimize", "error", "--budget", "10KB")
    # The last one knows the plans of all others.
    found = {"error": report, **{name: plan("--minimize", name)[0] for name in ("size", "latency", "energy")}}
    assert all(verdict.met for verdict in least.limits)

    def energy(name: str) -> float:
        value = found[name].artifact.energy_mj
        assert value is not None
        return value.value

    slack = 1.02
    assert all(energy("energy") <= slack * energy(other) for other in found)
    assert all(
        found["size"].artifact.size_bytes <= slack * other.artifact.size_bytes for other in found.values()
    )
    chosen = {name: report.plan.points for name, report in found.items() if report.plan is not None}
    errors = {name: next(point.error for point in points if point.chosen) for name, points in chosen.items()}
    assert errors["error"] is not None
    assert all(errors["error"] <= (error or 0.0) for error in errors.values())


@pytest.mark.parametrize(
    ("budget", "limit"),
    [("500B", "500B"), ("1uJ", "1uJ"), ("5us", "5us p95"), ("5us,5KB", "5us p95"), ("20MACs", "20MACs")],
)
def test_too_tight_a_budget_ends_with_the_nearest_points(
    small: Path, greencc: Callable[..., Outcome], budget: str, limit: str
) -> None:
    before = listing(small)
    outcome = greencc(*COMPILE, "--budget", budget)
    assert outcome.code == ExitCode.LIMIT, outcome.err
    first, *rest = outcome.err.splitlines()
    assert first.startswith("greencc: ")
    assert limit in first
    assert first.endswith("the nearest points:")
    points = [line for line in rest if " ms (p95 " in line]
    assert 1 <= len(points) <= 5
    assert all(f"misses {limit} (found" in line for line in points)
    assert any("--max-drop" in line for line in rest)
    assert outcome.out == ""
    assert listing(small) == before


def test_what_the_accuracy_does_not_allow(small: Path, greencc: Callable[..., Outcome]) -> None:
    """2 kB can be reached, but not with next to no loss; the nearest points say so."""
    outcome = greencc(*COMPILE, "--budget", "1.9KB", "--max-drop", "0.1%")
    assert outcome.code == ExitCode.LIMIT, outcome.err
    assert "1.9KB" in outcome.err.splitlines()[0]
    assert not (small / "out.greencc").exists()


def test_watts_below_the_idle_power_are_refused_with_the_bound(
    small: Path, refused: Callable[..., None]
) -> None:
    for arguments in (("--budget", "100mW"), ("--budget", "100mW", "--rate", "30/s")):
        refused(
            (*COMPILE, *arguments), ExitCode.LIMIT, "100mW is out of reach: without any work the device draws"
        )


def test_a_rate_that_nothing_keeps_up_with(small: Path, refused: Callable[..., None]) -> None:
    """The least that any plan takes is 10 us."""
    arguments = (*COMPILE, "--budget", "100W", "--rate", "1000000/s")
    refused(arguments, ExitCode.LIMIT, "keeping up with 1e+06/s is out of reach")


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
        (("--budget", "5W", "--workers", "-1"), "workers", ""),
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
