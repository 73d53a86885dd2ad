"""Jobs of the backends' benchmark: build an artifact, start it, measure all of a case in turns, judge and profile them.

Results that are refused for a reason come back as `error`, without the traceback of a crash.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_tools import Clock, Result

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.core.data import Feeds
    from greencc.core.engine import Engine, Target

MODEL = "form.onnx"
FEEDS = 16
DIFFERENCES = 32
"""Samples that the largest difference is taken over."""
PROFILE_RUNS = 20
LAYERS_KEPT = 200

Job = Callable[..., Result]


def told(job: Job) -> Job:
    """A job whose failures are results: a refusal in its words, anything else with the kind of the exception."""

    @wraps(job)
    def run(**arguments: Any) -> Result:
        from greencc.core.errors import GreenccError

        try:
            return job(**arguments)
        except GreenccError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - run times write after the traceback, which would be lost
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            return {"error": f"{type(error).__name__}: {lines[0]}"[:400]}

    return run


@told
def build_backend(
    model: str,
    calibration: str,
    evaluation: str | None,
    samples: int,
    backend: str,
    precision: str,
    threads: list[int],
    folder: str,
    tune_seconds: float,
) -> Result:
    """Make the form of a precision for a target as `greencc compile` does, then build it for each number of threads.

    FP32 is the model after the target's exact passes. INT8 is the first of the thorough ways to quantize that a
    compile tries (ranges of least squared error, and corrected biases or smoothed activations). What is tuned is
    tuned for each number of threads, in an equal share of the time.

    Returns:
        `artifacts` by number of threads, `form` (the graph), seconds of passes, tuning and building, and what the
        tuner tells.
    """
    from greencc.compiler import CompileOptions, Effort, Precision
    from greencc.compiler.session import Session
    from greencc.core.graph import ensure_names
    from greencc.core.model import load_model, save_model
    from greencc.targets import make_target

    clock = Clock()
    where = Path(folder)
    scratch = where / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    # What other artifacts were tuned to must not make this one fast, nor what they cached make it quick.
    os.environ["GREENCC_CACHE"] = str(where / "cache")
    wanted = Precision.INT8 if precision == "int8" else Precision.FP32
    options = CompileOptions(
        calibration=calibration,
        evaluation=evaluation,
        precision=wanted,
        effort=Effort.STANDARD,
        samples=samples,
        cache=False,
    )
    session = Session(options, make_target(f"{backend}:threads={max(threads)}"), scratch)
    try:
        source = load_model(Path(model))
        ensure_names(source)
        form = _form(session, source, Path(model), wanted is Precision.INT8)
    finally:
        session.close()
    ensure_names(form)
    save_model(form, where / MODEL)
    result = clock.result(where / MODEL, passes_seconds=time.perf_counter() - clock.started)
    artifacts: dict[str, str] = {}
    building: dict[str, float] = {}
    tuning: list[dict[str, Any]] = []
    for count in threads:
        target = make_target(f"{backend}:threads={count}")
        if tune_seconds:
            tuning.append({"threads": count, **_tune(target, form, tune_seconds / len(threads))})
        begun = time.perf_counter()
        artifact = target.build(target.lower(form), where / f"threads-{count}")
        building[str(count)] = time.perf_counter() - begun
        artifacts[str(count)] = str(artifact)
    return {
        **result,
        "form": str(where / MODEL),
        "artifacts": artifacts,
        "build_seconds": building,
        "tuning": tuning,
    }


def _form(session: Any, source: ir.Model, model: Path, integers: bool) -> ir.Model:
    """The graph of a form, by greencc's own builder of forms."""
    from greencc.compiler.data import open_splits
    from greencc.compiler.forms import FormBuilder
    from greencc.compiler.variants import variants
    from greencc.core.describe import input_specs
    from greencc.core.errors import InputError
    from greencc.passes.quantize_int8 import RangeMethod
    from greencc.targets.cpu import CpuTarget

    inputs = input_specs(source)
    splits = open_splits(session, inputs)
    original = CpuTarget().open(model)
    try:
        samples = splits.samples(original, inputs[0].batch if inputs else None)
    finally:
        original.close()
    builder = FormBuilder(session, source, splits, samples)
    cleaned = builder.cleaned()
    if not integers:
        return cleaned.model
    ways = variants(session.options.effort, session.target.capabilities(), cleaned.model)
    way = next(each for each in ways if each.quantize.method is RangeMethod.MSE)
    form = builder.static(way.name, way.prepare, way.quantize)
    if not form.applied:
        raise InputError("nothing was quantized: the model has no operator that this backend has in INT8")
    return form.model


def _tune(target: Target, form: ir.Model, seconds: float) -> dict[str, Any]:
    """Tune the kernels of a model; what was found is kept for the builds that follow."""
    from greencc.core.errors import UnavailableError
    from greencc.core.progress import silent

    tune = getattr(target, "tune", None)
    if tune is None:
        raise UnavailableError(f"target {target.name!r} has no tuning in this version")
    return asdict(tune(target.lower(form), seconds, silent))


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
    items: list[dict[str, Any]], data: str, threads: int, batches: list[int], table_batches: list[int], quick: bool
) -> Result:
    """Time all artifacts of a case in turns, in one process, at every batch.

    Args:
        items: Each with `key`, `target`, `artifact`, `rivals` (names and keys of those it is compared with) and `group`:
            within a group, which need not have a name, the fastest is a rival of all, called "best".
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
    engines: Mapping[str, Engine], asked: Mapping[str, Mapping[str, Any]], feeds: Sequence[Feeds], profile: Any
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
    import math

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
                    row = {"difference": largest_difference(references[form], engine, few)}
                    if not synthetic:
                        row["accuracy"] = _accuracy(compare(original, engine, source, metric=metric), labelled)
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


@told
def choose_backend(
    model: str,
    calibration: str,
    evaluation: str | None,
    samples: int,
    precision: str,
    target: str,
    folder: str,
) -> Result:
    """Which run time `greencc compile` picks for a target that leaves it open, in a precision that is given."""
    from greencc.bundle import load
    from greencc.compiler import CompileOptions, Effort, Precision, compile_model
    from greencc.targets import make_target

    clock = Clock()
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    os.environ["GREENCC_CACHE"] = str(where / "cache")
    options = CompileOptions(
        target=target,
        calibration=calibration,
        evaluation=evaluation,
        precision=Precision(precision),
        samples=samples,
        # Which form is accurate enough is not the question here.
        max_drop=0.5,
        effort=Effort.QUICK,
    )
    bundle = where / "model.greencc"
    compile_model(Path(model), options, output=bundle, force=True)
    opened = load(bundle)
    target = opened.manifest.target
    return clock.result(opened.artifact, target=target, backend=make_target(target).name)


BACKEND_JOBS: Mapping[str, Job] = {
    "build-backend": build_backend,
    "start-backend": start_backend,
    "measure-backends": measure_backends,
    "judge-backends": judge_backends,
    "profile-backends": profile_backends,
    "choose-backend": choose_backend,
}
