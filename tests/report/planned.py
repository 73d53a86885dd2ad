"""A report with a plan as a planner would leave it: forms, plans, a predicted one, units of every kind."""

from __future__ import annotations

import random
from dataclasses import replace

from greencc.core.report import Report
from greencc.core.report_plan import (
    LimitVerdict,
    PlanChoice,
    PlanInfo,
    PlanOption,
    PlanPoint,
    Prediction,
    SolverInfo,
)
from greencc.report.verdict import with_verdict

RECIPE = '[[pass]]\nname = "prune"\nratio = 0.3\n\n[[pass]]\nname = "quantize-int8"\nskip = ["/stem/Conv"]\n'
_FORMS = (
    ("original", 12.6, 0.0, 11_184_532, "4.1 times the energy of the chosen plan"),
    ("fp32", 12.4, 0.0, 11_180_012, "slower than the budget allows"),
    ("int8", 6.7, 0.0042, 2_893_117, "plan 7 takes less energy at as small a loss"),
    ("int4-weights", 13.9, 0.3121, 1_612_331, "loses 31 points, more than the 1 % allowed"),
    ("int8-dynamic", 31.0, 0.0018, 2_910_000, "slower than fp32"),
)


def _form(name: str, latency: float, drop: float, size: int, place: str) -> PlanPoint:
    return PlanPoint(
        name,
        f"the whole model as {name}",
        "cpu",
        latency,
        round(1.07 * latency, 3),
        round(31.0 * latency, 1),
        size,
        214_335_000.0,
        drop,
        round(0.4 * drop, 6),
        True,
        False,
        name in ("fp32", "int8", "int4-weights"),
        "form",
        place,
        "",
    )


def _plan(index: int, generator: random.Random) -> PlanPoint:
    latency = round(6.4 - 0.34 * index + generator.uniform(-0.2, 0.2), 3)
    drop = round(0.0008 + 0.0004 * index**1.5 + generator.uniform(-0.0004, 0.0004), 6)
    energy = round(29.0 * latency + generator.uniform(-3, 3), 1)
    chosen = index == 7
    return PlanPoint(
        f"plan {index}",
        f"{40 - 2 * index} layers in INT8, {index} groups pruned",
        "cpu",
        latency,
        round(1.06 * latency, 3),
        energy,
        2_893_120 - 150_000 * index,
        214_335_000.0 - 9e6 * index,
        drop,
        round(0.42 * drop, 6),
        True,
        chosen,
        index in (2, 4, 7, 9),
        "cache" if index == 1 else "plan",
        "least energy of all that keep the budget" if chosen else "takes more energy than plan 7",
        RECIPE if chosen else "",
        predicted_latency_ms=round(latency * generator.uniform(0.93, 1.04), 3),
        predicted_energy_mj=round(energy * generator.uniform(0.9, 1.05), 1),
        predicted_size_bytes=2_890_000.0 - 150_000.0 * index,
        predicted_error=round(0.42 * drop * generator.uniform(0.6, 1.5), 6),
    )


def _points() -> tuple[PlanPoint, ...]:
    generator = random.Random(3)
    plans = [_plan(index, generator) for index in range(1, 11)]
    predicted = PlanPoint(
        "plan 11", "28 layers in INT8, 12 groups pruned", "cpu", None, None, None, None, 1.1e8, None, None,
        False, False, False, "plan", "not built: the time was up", "",
        predicted_latency_ms=2.6, predicted_energy_mj=74.0, predicted_size_bytes=1_100_000.0,
        predicted_error=0.009, predicted_drop=0.0181,
    )  # fmt: skip
    return (*(_form(*form) for form in _FORMS), *plans, predicted)


def _predictions(points: tuple[PlanPoint, ...]) -> tuple[Prediction, ...]:
    found = []
    for point in points:
        for quantity, unit, predicted, measured in (
            ("latency", "ms", point.predicted_latency_ms, point.latency_ms),
            ("energy", "mJ", point.predicted_energy_mj, point.energy_mj),
            ("size", "bytes", point.predicted_size_bytes, point.size_bytes),
            ("error", "", point.predicted_error, point.error),
        ):
            if predicted is not None and measured is not None:
                found.append(Prediction(point.name, quantity, unit, predicted, float(measured)))
    return tuple(found)


def _choices(report: Report) -> tuple[PlanChoice, ...]:
    generator = random.Random(5)
    choices = []
    convolutions = [layer.name for layer in report.layers if layer.op_type == "Conv"]
    for index, name in enumerate(convolutions):
        error = round(2e-5 * generator.uniform(0.5, 30), 8)
        kept = index in (0, 11)
        options = (
            PlanOption("float32", 0.0, 0.0, 0.0, 0.0, "measured"),
            PlanOption("int8", error, round(generator.uniform(20, 160), 1), 0.31, 52_000.0, "measured"),
            PlanOption(
                "int4-weights", round(9 * error, 8), round(-generator.uniform(2, 9), 1), -0.02, 61_000.0,
                "interpolated", "from layers of equal shape",
            ),
        )  # fmt: skip
        reason = (
            f"INT8 would add {error:.2g} to the error, the most of any layer for what it saves"
            if kept
            else "saves most of all options that the error left room for"
        )
        choices.append(
            PlanChoice(name, "arithmetic", (name,), "float32" if kept else "int8", reason, options)
        )
    choices.append(
        PlanChoice(
            "stage2 hidden channels (128)",
            "channels",
            tuple(convolutions[4:7]),
            "96 of 128",
            "three aligned steps are kept: a fourth saves 2 us and doubles the error",
            tuple(
                PlanOption(f"{kept} of 128", 4e-4 * (128 - kept) / 32, 1.1 * (128 - kept), 0.01 * (128 - kept),
                           1_100.0 * (128 - kept), "predicted" if kept < 96 else "measured")
                for kept in (128, 112, 96, 64)
            ),
        )
    )  # fmt: skip
    choices.append(
        PlanChoice(
            "/head/fc",
            "rank",
            ("<script>alert(1)</script>",),
            "full rank",
            "no rank saves time on this CPU",
            (
                PlanOption("full rank", 0.0, 0.0, 0.0, 0.0, "measured"),
                PlanOption("rank 64", 0.0021, -4.0, None, 90_000.0, "measured", "two small products"),
            ),
        )
    )
    choices.append(
        PlanChoice(
            "block 14", "block", tuple(convolutions[20:22]), "removed", "its outputs are close to its inputs",
            (PlanOption("kept", 0.0, 0.0, 0.0, 0.0, "measured"),
             PlanOption("removed", 0.0009, 310.0, 1.2, 260_000.0, "measured")),
        )
    )  # fmt: skip
    return tuple(choices)


def with_plan(report: Report) -> Report:
    """The report of a compile with ``--budget 8W,7ms,3MB --max-drop 1%``."""
    points = _points()
    plan = PlanInfo(
        objective="energy",
        rate=30.0,
        limits=(
            LimitVerdict("8W", "power", "W", 8.0, 6.2, 4.4, 8.9, "D", True, False, "at 30 requests/s"),
            LimitVerdict("7ms", "latency", "ms", 7.0, 6.81, 6.7, 6.92, None, True, True, "median, measured"),
            LimitVerdict("2.5MB", "size", "bytes", 2.5e6, 2_893_120.0, None, None, None, False, False),
        ),
        points=points,
        choices=_choices(report),
        predictions=_predictions(points),
        solver=SolverInfo(33, 104, 12, 9, 0.84, 0.0),
        rounds=9,
        ended="the last 3 plans were no better than the one before",
        energy_boundary="package (model)",
        notes=("the meter is a model: power is estimated",),
    )
    asked = {"budget": "8W,7ms,2.5MB", "max_drop": 0.01, "confidence": 0.95}
    return with_verdict(
        replace(report, plan=plan, precision="plan 7", budget=replace(report.budget, asked=asked, met=False))
    )
