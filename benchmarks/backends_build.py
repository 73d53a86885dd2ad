"""Jobs of the backends' benchmark that make artifacts: a precision for a target, and what a compile picks."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_tools import Clock, Result

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.compiler.forms import Form
    from greencc.compiler.session import Session
    from greencc.core.engine import Target

MODEL = "form.onnx"

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
        made = _form(session, source, Path(model), wanted is Precision.INT8)
    finally:
        session.close()
    form = made.model
    ensure_names(form)
    save_model(form, where / MODEL)
    passes = sum(record.seconds for record in made.records)
    artifacts: dict[str, str] = {}
    building: dict[str, float] = {}
    tuning: list[dict[str, Any]] = []
    for count in threads:
        target = make_target(f"{backend}:threads={count}")
        if tune_seconds:
            tuning.append({"threads": count, **_tune(target, form, tune_seconds / len(threads))})
        elif count == max(threads) > 1:
            # Built with the form already, by the same target.
            artifacts[str(count)] = str(made.artifact)
            continue
        begun = time.perf_counter()
        artifact = target.build(target.lower(form), where / f"threads-{count}")
        building[str(count)] = time.perf_counter() - begun
        artifacts[str(count)] = str(artifact)
    return {
        **clock.result(where / MODEL, passes_seconds=passes),
        "form": str(where / MODEL),
        "artifacts": artifacts,
        "build_seconds": building,
        "tuning": tuning,
    }


def _form(session: Session, source: ir.Model, model: Path, integers: bool) -> Form:
    """FP32 or INT8 by greencc's own builder of forms."""
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
        return cleaned
    ways = variants(session.options.effort, session.target.capabilities(), cleaned.model)
    way = next(each for each in ways if each.quantize.method is RangeMethod.MSE)
    form = builder.static(way.name, way.prepare, way.quantize)
    if not form.applied:
        raise InputError("nothing was quantized: the model has no operator that this backend has in INT8")
    return form


def _tune(target: Target, form: ir.Model, seconds: float) -> dict[str, Any]:
    """Tune the kernels of a model; what was found is kept for the builds that follow."""
    from greencc.core.progress import silent
    from greencc.core.tuning import tunable

    return asdict(tunable(target).tune(form, seconds, silent))


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
        effort=Effort.STANDARD,
    )
    bundle = where / "model.greencc"
    compile_model(Path(model), options, output=bundle, force=True)
    opened = load(bundle)
    picked = opened.manifest.target
    told = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    notes = {"target": picked, "backend": make_target(picked).name, "form": told["precision"]}
    return clock.result(opened.artifact, **notes)
