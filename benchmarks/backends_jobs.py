"""Jobs of the backends' benchmark that measure: start an artifact, time all of a case in turns, judge, profile."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.backends_build import Job, build_backend, choose_backend, told
from benchmarks.job_tools import Result

if TYPE_CHECKING:
    from greencc.core.data import Feeds
    from greencc.core.engine import Engine

FEEDS = 16
DIFFERENCES = 32
"""Samples that the largest difference is taken over."""
PROFILE_RUNS = 20
LAYERS_KEPT = 200


@told
def start_backend(target: str, artifact: str, feeds: str, begun: float) -> Result:
    """From the start of a process to its first result, as a deployment in Python has it.

    Args:
        begun: `time.monotonic()` of the process that starts this one: the same clock.
    """
    entered = time.monotonic()
    import numpy as np

    from greencc.targets import make_target

    made = make_target(target)
    with np.load(feeds, allow_pickle=False) as archive:
        given = {name: archive[name] for name in archive.files}
    imported = time.monotonic()
    engine = made.open(Path(artifact))
    opened = time.monotonic()
    engine.run(given)
    done = time.monotonic()
    engine.close()
    return {
        "interpreter": entered - begun,
        "imports": imported - entered,
        "load": opened - imported,
        "first_run": done - opened,
        "total": done - begun,
    }


@told
def measure_backends(
    items: list[dict[str, Any]],
    data: str,
    threads: int,
    batches: list[int],
    table_batches: list[int],
    quick: bool,
) -> Result:
    """Time all artifacts of a case in turns, in one process, at every batch.

    Args:
        items: Each with `key`, `target`, `artifact`, `rivals` (names and keys of those it is compared with) and
            `group`: within a group that has a name, the fastest is a rival of all, called "best".
        data: `.npz` of samples.
        batches: Sizes; those of the tables are measured for longer.

    Returns:
        `latency` by key and batch, `errors` by key of what does not open, and the `conditions` it ran under.
    """
    from greencc.core.errors import GreenccError
    from greencc.measure.conditions import record_conditions
    from greencc.measure.profiles import QUICK, Profile
    from greencc.targets import make_target

    table = Profile("backends", seconds=16.0, rounds=20, min_rounds=6, min_runs=60, warm_up_seconds=0.5)
    conditions = record_conditions(threads)
    engines: dict[str, Engine] = {}
    errors: dict[str, str] = {}
    latency: dict[str, dict[str, Any]] = {}
    asked = {item["key"]: item for item in items}
    try:
        for item in items:
            try:
                engines[item["key"]] = make_target(item["target"]).open(Path(item["artifact"]))
            except GreenccError as error:
                errors[item["key"]] = f"its artifact does not open: {error.message}"
        for batch in batches:
            profile = table if batch in table_batches and not quick else QUICK
            found = _timed(engines, asked, _feeds(data, next(iter(engines.values())), batch), profile)
            for key, point in found.items():
                latency.setdefault(key, {})[str(batch)] = point
    finally:
        for engine in engines.values():
            engine.close()
    return {
        "latency": latency,
        "errors": errors,
        "conditions": {"facts": conditions.facts, "warnings": list(conditions.warnings)},
    }


def _feeds(data: str, engine: Engine, batch: int) -> list[Feeds]:
    """Whole batches of the samples there are."""
    from greencc.calibration import open_data
    from greencc.compiler.data import whole_batches

    return whole_batches(open_data(data, engine.inputs), batch, FEEDS)


def _timed(
    engines: Mapping[str, Engine],
    asked: Mapping[str, Mapping[str, Any]],
    feeds: Sequence[Feeds],
    profile: Any,
) -> dict[str, Any]:
    """One point of every engine, with its speed-ups over its rivals from the same rounds."""
    from greencc.core.errors import GreenccError
    from greencc.measure.intervals import ratio_interval
    from greencc.measure.latency import measure_latency

    if not feeds:
        return {key: {"error": "there are fewer samples than a batch"} for key in engines}
    found: dict[str, Any] = {}
    usable: dict[str, Engine] = {}
    for key, engine in engines.items():
        try:
            engine.run(feeds[0])
            usable[key] = engine
        except GreenccError as error:
            found[key] = {"error": error.message}
    if not usable:
        return found
    result = measure_latency(list(usable.values()), feeds, profile)
    blocks = dict(zip(usable, result.blocks, strict=True))
    medians = {key: latency.median for key, latency in zip(usable, result.latencies, strict=True)}
    for key, latency in zip(usable, result.latencies, strict=True):
        group = asked[key]["group"]
        same = [other for other in usable if group and asked[other]["group"] == group]
        best = min(same, key=lambda other: medians[other], default=None)
        rivals = {**asked[key]["rivals"], **({} if best is None else {"best": best})}
        found[key] = {
            "error": None,
            "best": best,
            "median": latency.median,
            "p95": latency.p95,
            "runs": latency.runs,
            "rounds": result.rounds,
            "discarded": result.discarded,
            "clean": result.clean,
            "warnings": list(result.warnings),
            "speedups": {
                name: _interval(ratio_interval(blocks[other], blocks[key]))
                for name, other in rivals.items()
                if other in blocks
            },
        }
    return found


def _interval(ratio: Any) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in asdict(ratio).items()}


@told
def judge_backends(
    model: str, items: list[dict[str, Any]], data: str, metric: str | None, labelled: bool, synthetic: bool
) -> Result:
    """Accuracy of every artifact beside the original's, and its largest difference to its own graph run node by node.

    Args:
        items: Each with `key`, `target`, `artifact` and `form` (the graph it was built from).
        data: `.npz` of samples, with labels where there are any.
        labelled: Whether there are.
        synthetic: The samples were made up: nothing is said of accuracy on them.
    """
    from greencc.calibration import open_data
    from greencc.compiler.data import whole_batches
    from greencc.compiler.memo import MemoEngine
    from greencc.core.errors import GreenccError
    from greencc.core.model import load_model
    from greencc.targets import make_target
    from greencc.targets.cpu import CpuTarget
    from greencc.verify.compare import compare

    original = MemoEngine(CpuTarget().open(Path(model)))
    source = open_data(data, original.inputs, role="evaluation")
    few = whole_batches(source, 1, DIFFERENCES)
    references: dict[str, Engine] = {}
    rows: dict[str, dict[str, Any]] = {}
    try:
        for item in items:
            form = item["form"]
            try:
                if form not in references:
                    references[form] = MemoEngine(CpuTarget().reference(load_model(Path(form))))
                engine = make_target(item["target"]).open(Path(item["artifact"]))
                try:
                    row: dict[str, Any] = {"difference": largest_difference(references[form], engine, few)}
                    if not synthetic:
                        row["accuracy"] = _accuracy(
                            compare(original, engine, source, metric=metric), labelled
                        )
                finally:
                    engine.close()
            except GreenccError as error:
                row = {"error": error.message}
            rows[item["key"]] = row
    finally:
        for engine in (original, *references.values()):
            engine.close()
    return {"rows": rows}


def _accuracy(seen: Any, labelled: bool) -> dict[str, Any]:
    names = ("metric", "agreement", "n")
    more = ("baseline", "artifact", "drop", "low", "high")
    return {name: getattr(seen, name) for name in (*names, *(more if labelled else ()))}


def largest_difference(reference: Engine, engine: Engine, feeds: Sequence[Feeds]) -> dict[str, Any]:
    """Over all outputs of the feeds, the largest difference of two values and the largest value of the reference.

    Values that are not finite in one of the two count as `broken`.
    """
    import numpy as np

    largest = scale = 0.0
    broken = 0
    for each in feeds:
        wanted, found = reference.run(each), engine.run(each)
        for name, value in wanted.items():
            old, new = np.asarray(value, np.float64), np.asarray(found[name], np.float64)
            if old.shape != new.shape:
                broken += old.size
                continue
            usable = np.isfinite(old) & np.isfinite(new)
            broken += int((np.isfinite(old) != np.isfinite(new)).sum())
            if usable.any():
                largest = max(largest, float(np.abs(old - new)[usable].max()))
                scale = max(scale, float(np.abs(old[usable]).max()))
    return {"largest": largest, "scale": scale, "broken": broken, "samples": len(feeds)}


@told
def profile_backends(items: list[dict[str, Any]], data: str) -> Result:
    """Times of the layers of every artifact, one thread and batch 1, beside the machine's measured peaks."""
    from benchmarks.peaks import measure_peaks
    from benchmarks.rooflines import layers_of
    from greencc.core.errors import GreenccError
    from greencc.core.model import load_model
    from greencc.targets import make_target

    peaks = measure_peaks()
    rows: dict[str, dict[str, Any]] = {}
    for item in items:
        try:
            target = make_target(item["target"])
            model = load_model(Path(item["form"]))
            engine = target.open(Path(item["artifact"]))
            feeds = _feeds(data, engine, engine.inputs[0].batch or 1)[0]
            engine.close()
            times = target.profile(Path(item["artifact"]), feeds, PROFILE_RUNS)
            layers = layers_of(model, feeds, times, peaks)
        except GreenccError as error:
            rows[item["key"]] = {"error": error.message}
            continue
        rows[item["key"]] = {
            "error": None,
            "total_us": sum(layer.microseconds for layer in layers),
            "layers": [{**asdict(layer), "distance": layer.distance} for layer in layers[:LAYERS_KEPT]],
        }
    return {"peaks": asdict(peaks), "rows": rows}


BACKEND_JOBS: Mapping[str, Job] = {
    "build-backend": build_backend,
    "start-backend": start_backend,
    "measure-backends": measure_backends,
    "judge-backends": judge_backends,
    "profile-backends": profile_backends,
    "choose-backend": choose_backend,
}
