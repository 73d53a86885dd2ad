"""Jobs of the planner's benchmark: one `greencc compile`, one comparison of all variants of a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_tools import Clock, Result
from benchmarks.planner_exhaustive import exhaust
from benchmarks.planner_search import search_plan

if TYPE_CHECKING:
    from greencc.core.data import Feeds
    from greencc.core.engine import Engine
    from greencc.core.report import Interval

THREADS = 1
LATENCY_FEEDS = 16


def compile_plan(
    model: str,
    calibration: str,
    samples: int,
    evaluation: str,
    metric: str | None,
    folder: str,
    flags: list[str],
    target: str,
    effort: str,
    cache: str,
) -> Result:
    """`greencc compile` with `flags`, as a user runs it; `cache` is the folder where results are kept for the next."""
    from greencc.bundle import load
    from greencc.cli.main import run

    clock = Clock()
    os.environ["GREENCC_CACHE"] = cache
    bundle = Path(folder) / "model.greencc"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    command = ["compile", model, "--target", target, "--calibration", calibration, "--samples", str(samples)]
    command += ["--eval", evaluation, "--effort", effort, "--force", "-o", str(bundle)]
    # Without labels a metric of the user's has nothing to compare with.
    if metric not in (None, "top1"):
        command += ["--metric", str(metric)]
    if "--max-drop" not in flags:
        command += ["--max-drop", "1%"]
    sys.argv = ["greencc", *command, *flags]
    try:
        run()
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    opened = load(bundle)
    plan = report.get("plan") or {}
    notes = {
        "precision": report["precision"],
        "verdict": report["verdict"],
        "latency_ms": report["artifact"]["latency_ms"]["median"],
        "phases": report["compile"]["phases"],
        "rounds": plan.get("rounds"),
        "ended": plan.get("ended"),
        "recipe": opened.recipe.read_text(encoding="utf-8"),
    }
    return clock.result(opened.artifact, notes=notes, target=opened.manifest.target)


def split_plan(model: str, calibration: str, samples: int, evaluation: str, folder: str) -> Result:
    """The planning and the certification split of `greencc compile`, as `.npz`: everything is judged on the second."""
    import numpy as np

    from greencc.compiler import CompileOptions
    from greencc.compiler.data import open_splits
    from greencc.compiler.session import Session
    from greencc.core.data import Array
    from greencc.core.describe import input_specs
    from greencc.core.model import load_model
    from greencc.targets.cpu import CpuTarget

    found: Result = {}
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    options = CompileOptions(calibration=calibration, evaluation=evaluation, samples=samples, cache=False)
    session = Session(options, CpuTarget(), where)
    splits = open_splits(session, input_specs(load_model(Path(model))))
    for name, source in (("planning", splits.planning), ("certification", splits.certification)):
        parts: dict[str, list[Array]] = {}
        for batch in source.batches(64):
            arrays = batch.feeds if batch.labels is None else {**batch.feeds, "labels": batch.labels}
            for key, values in arrays.items():
                parts.setdefault(key, []).append(values)
        np.savez(
            where / f"{name}.npz",
            allow_pickle=False,
            **{key: np.concatenate(pieces) for key, pieces in parts.items()},
        )
        found[name] = str(where / f"{name}.npz")
        found[f"{name}_samples"] = source.count
    return found


def measure_plans(
    model: str,
    evaluation: str,
    metric: str | None,
    items: list[dict[str, Any]],
    max_drop: float,
    quick: bool,
) -> Result:
    """Judge all variants of a model on the same samples and time them in turns, the original first.

    Args:
        items: Each with `key`, `path`, `runtime`, `target` (of a bundle) and `counted` (an ONNX file whose operations
            are its own), the original first.

    Returns:
        `rows` by key, and `against`: the plan and the fastest rival that keeps the limit, timed once more as a pair.
    """
    from benchmarks.planner_tools import ORIGINAL, PLAN, best_rival, within
    from benchmarks.quality import Remembering, quality_of, size_of
    from greencc.calibration import open_data, take
    from greencc.core.errors import GreenccError
    from greencc.measure.latency import measure_latency
    from greencc.measure.profiles import QUICK, Profile
    from greencc.targets.cpu import CpuTarget
    from greencc.verify.compare import compare

    clock = Clock()
    original = Remembering(CpuTarget().open(Path(model)))
    data = open_data(evaluation, original.inputs, role="evaluation")
    rows: dict[str, dict[str, Any]] = {}
    usable = []
    for item in items:
        try:
            engine = _open(item, original, threads=0)
            try:
                seen = quality_of(compare(original, engine, data, metric=metric))
            finally:
                engine.close()
        except GreenccError as error:
            rows[item["key"]] = {"error": f"its artifact does not run: {error.message[:200]}"}
            continue
        rows[item["key"]] = {"error": None, "size_bytes": size_of(Path(item["path"])), **seen}
        usable.append(item)
    feeds = [batch.feeds for batch in take(data, LATENCY_FEEDS).batches(1)]
    whole = Profile("planner", seconds=40.0, rounds=24, min_rounds=6, min_runs=50, warm_up_seconds=0.5)
    pair = Profile("pair", seconds=20.0, rounds=40, min_rounds=8, min_runs=50, warm_up_seconds=0.5)
    engines = [_open(item, original, THREADS) for item in usable]
    try:
        timed = measure_latency(engines, feeds, QUICK if quick else whole)
        for index, item in enumerate(usable):
            row = rows[item["key"]]
            row["latency_ms"] = timed.latencies[index].median
            row["latency_ratio"] = asdict(timed.ratios[index - 1]) if index else None
        against = None
        by_key = {item["key"]: (item, engine) for item, engine in zip(usable, engines, strict=True)}
        rival = best_rival(rows, max_drop)
        if rival is not None and PLAN in by_key:
            same = _same(by_key[rival][0], by_key[PLAN][0])
            # The fastest of many was lucky, too: the pair is timed anew, so that its ratio does not lean its way.
            found = measure_latency(
                (by_key[rival][1], by_key[PLAN][1]), feeds, QUICK if quick else pair
            ).ratios[0]
            against = {
                "rival": rival,
                "ratio": {"value": 1.0, "low": 1.0, "high": 1.0} if same else asdict(found),
                "same": same,
                "within": within(rows[PLAN], max_drop),
            }
        _energies(usable, engines, timed.latencies, timed.ratios, feeds, rows)
    finally:
        for engine in engines:
            engine.close()
        original.close()
    return clock.result(
        Path(model),
        rows=rows,
        against=against,
        samples=data.count,
        rounds=timed.rounds,
        clean=timed.clean,
        warnings=list(timed.warnings),
        original=ORIGINAL,
    )


def _open(item: Mapping[str, Any], original: Any, threads: int) -> Engine:
    """A bundle's artifact on its own target, with as many threads as all; the peers' in their runtime."""
    from dataclasses import replace

    from benchmarks.quality import open_artifact
    from greencc.targets import make_target

    if not item.get("target"):
        return open_artifact(dict(item), original, threads)
    target: Any = make_target(item["target"])
    if hasattr(target, "threads"):
        target = replace(target, threads=threads)
    engine: Engine = target.open(Path(item["path"]))
    return engine


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two variants are the same bytes in the same runtime: what differs between them is noise."""
    from greencc.core.files import sha256_file

    if one["runtime"] != other["runtime"]:
        return False
    return sha256_file(Path(one["path"])) == sha256_file(Path(other["path"]))


def _energies(
    items: Sequence[Mapping[str, Any]],
    engines: Sequence[Engine],
    latencies: Sequence[Any],
    ratios: Sequence[Interval],
    feeds: Sequence[Feeds],
    rows: Mapping[str, dict[str, Any]],
) -> None:
    """Energy of each variant beside the original's: measured where a meter works, else estimated (grade D)."""
    from greencc.compiler.campaign import MeasurePlan, run_campaign
    from greencc.measure.protocols import QUICK
    from greencc.meters import available_meters

    meter = next(iter(available_meters()), None)
    for index, item in enumerate(items):
        if not index:
            continue
        found = None
        if meter is not None:
            plan = MeasurePlan(QUICK, drive=False)
            found = run_campaign((engines[0], engines[index]), feeds, meter, plan).result.comparison
        if found is None:
            found = _estimated(items[0], item, latencies, index, ratios[index - 1], feeds[0])
        if found is None:
            continue
        rows[item["key"]]["energy"] = {
            "mj": found.artifact.value,
            "grade": found.artifact.grade,
            "ratio": asdict(found.ratio),
        }
        rows[items[0]["key"]].setdefault(
            "energy", {"mj": found.baseline.value, "grade": found.baseline.grade, "ratio": None}
        )


def _estimated(
    original: Mapping[str, Any],
    item: Mapping[str, Any],
    latencies: Sequence[Any],
    index: int,
    ratio: Interval,
    feeds: Feeds,
) -> Any:
    """From the operations and the measured times; None where the operations cannot be counted."""
    from greencc.compiler.counts import sum_operations
    from greencc.core.describe import nodes_cost
    from greencc.core.errors import GreenccError
    from greencc.core.model import load_model
    from greencc.core.shapes import bind_dims
    from greencc.meters.model import Workload, device_power, estimate_pair, load_of
    from greencc.targets.cpu import CpuTarget

    facts = CpuTarget(threads=THREADS).device().facts
    shapes = {name: value.shape for name, value in feeds.items()}
    workloads = []
    for each, latency in ((original, latencies[0]), (item, latencies[index])):
        path = each["counted"]
        if path is None:
            return None
        try:
            counts = sum_operations(nodes_cost(bind_dims(load_model(Path(path)), shapes)))
        except GreenccError:
            # Operators of a peer's that greencc cannot count; the row has no energy.
            return None
        workloads.append(Workload(counts, latency.median / 1e3))
    return estimate_pair(workloads[0], workloads[1], device_power(facts), load_of(facts), latency_ratio=ratio)


PLANNER_JOBS: dict[str, Callable[..., Result]] = {
    "compile-plan": compile_plan,
    "split-plan": split_plan,
    "search-plan": search_plan,
    "measure-plans": measure_plans,
    "exhaust-plan": exhaust,
}
