"""What `bench_planner` compares, how `greencc compile` is called for it, and how a method is told to be the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DROP = 0.01
TARGET = "cpu:threads=1"
"""One thread, as in the other sections: the peers' artifacts are timed with one."""
SAMPLES = 256
"""Calibration samples, where there are as many."""
PERCENTILE_SAMPLES = 64
"""ONNX Runtime's percentiles keep the activations of all samples: more would not fit on a large model."""
TIME_BUDGET, QUICK_TIME_BUDGET = 300.0, 60.0
TRIALS, QUICK_TRIALS = 200, 8

ORIGINAL = "original"
PLAN = "greencc-plan"
SEARCH = "search"
GREENCC_INT8 = "greencc-int8"

Row = dict[str, Any]
# 15 of 1,500 samples are 1 %.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Method:
    """One way to a faster network.

    Attributes:
        key: Its name in results and folders.
        label: Its name in tables and plots.
        job: The build job; empty: nothing is built, or not by a job of one method alone.
        arguments: Settings of the job.
        transformer: What takes the place of some of them on transformers, as the peer's documentation asks.
        runtime: What runs the artifact.
        counted: Key of the method whose artifact its operations are counted in, where its own is no ONNX file.
    """

    key: str
    label: str
    job: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)
    runtime: str = "onnxruntime"
    counted: str = ""

    def settings(self, transformer: bool) -> dict[str, Any]:
        """The arguments of the job for a model."""
        return {**self.arguments, **(self.transformer if transformer else {})}


# The settings for transformers are those of the quantization benchmark (`benchmarks/tools.py` says why).
_ORT_TRANSFORMER = {
    "ops": ["Conv", "Gather", "Gemm", "MatMul"],
    "extra": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
}
_NNCF_TRANSFORMER = {"model_type": "transformer"}

METHODS: tuple[Method, ...] = (
    Method(ORIGINAL, "FP32, ONNX Runtime"),
    Method("original-openvino", "FP32, OpenVINO", runtime="openvino", counted=ORIGINAL),
    Method(PLAN, "greencc plan"),
    Method(GREENCC_INT8, "greencc INT8"),
    Method("ort-minmax", "ORT INT8, min-max", "build-ort", {"method": "minmax"}, _ORT_TRANSFORMER),
    Method(
        "ort-percentile",
        "ORT INT8, percentile",
        "build-ort",
        {"method": "percentile", "samples": PERCENTILE_SAMPLES},
        _ORT_TRANSFORMER,
    ),
    Method("nncf", "NNCF INT8", "build-nncf", transformer=_NNCF_TRANSFORMER),
    Method(
        "nncf-openvino",
        "NNCF INT8, OpenVINO",
        "build-nncf",
        {"form": "openvino"},
        _NNCF_TRANSFORMER,
        "openvino",
        "nncf",
    ),
    Method(SEARCH, "Optuna search"),
)
"""Everything but the plan is its rival, FP32 included: who finds nothing better keeps the original."""


def method_of(key: str) -> Method:
    return next(method for method in METHODS if method.key == key)


def plan_flags(seconds: float) -> list[str]:
    """How `greencc compile` is asked for the fastest plan within the drop."""
    return ["--minimize", "latency", "--time-budget", f"{seconds:g}s"]


def second_flags(seconds: float, latency_ms: float) -> list[str]:
    """The same model with another budget: the least energy of what is no more than a fifth slower than the first plan.

    The first plan meets it, so that there is an answer.
    """
    budget = f"{1.2 * latency_ms:.4g}ms p50"
    return ["--minimize", "energy", "--budget", budget, "--time-budget", f"{seconds:g}s"]


def within(row: Mapping[str, Any], max_drop: float = MAX_DROP) -> bool:
    """Whether a variant ran and loses no more than `max_drop` on the held-out split."""
    if row.get("error") is not None or row.get("latency_ms") is None:
        return False
    return loss_of(row) <= max_drop + _ROUNDING


def loss_of(row: Mapping[str, Any]) -> float:
    """The drop in accuracy, else the share of decisions that changed; all of them where neither can be told."""
    if row.get("drop") is not None:
        return float(row["drop"])
    agreement = row.get("agreement")
    return 1.0 if agreement is None else 1.0 - float(agreement)


def best_rival(rows: Mapping[str, Mapping[str, Any]], max_drop: float = MAX_DROP) -> str | None:
    """The fastest variant within the limit that is not greencc's plan; None: none ran."""
    found = {key: row["latency_ms"] for key, row in rows.items() if key != PLAN and within(row, max_drop)}
    return min(found, key=lambda key: float(found[key]), default=None)


def verdict(against: Mapping[str, Any]) -> str:
    """``won``, ``tied`` or ``lost`` by the interval of the rival's latency over the plan's; ``broke the limit``."""
    if not against["within"]:
        return "broke the limit"
    ratio = against["ratio"]
    if ratio is None:
        return "not compared"
    if against["same"] or ratio["low"] <= 1.0 <= ratio["high"]:
        return "tied"
    return "won" if ratio["low"] > 1.0 else "lost"


def geometric_mean(values: Sequence[float]) -> float | None:
    """Of positive numbers; None: there are none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None
