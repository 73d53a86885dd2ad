"""What runs in processes of its own: one build by greencc or a peer, one calibration, one clean-up.

Nothing heavy is imported before a job starts, so that every job pays for its own imports and no others.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.backends_jobs import BACKEND_JOBS
from benchmarks.compression_jobs import COMPRESSION_JOBS
from benchmarks.job_tools import Clock, Result, peak_mb
from benchmarks.peers import PEER_JOBS
from benchmarks.planner_jobs import PLANNER_JOBS
from benchmarks.quality import measure_quality

SEARCH_TIME = "150s"
"""Of `greencc compile` for layers that must stay in float; by default it may take five minutes."""


def build_greencc(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    method: str | None = None,
    recipe: str | None = None,
) -> Result:
    """Load, clean up, apply a recipe (INT8 with `method` where there is none), save: a build of `greencc compile`.

    The pipeline is the product's own, with its gate: after every pass that changed something the shapes are
    inferred, the model is checked, and its outputs on 2 samples are compared. The peers check nothing of the kind.

    Args:
        recipe: The passes after the clean-up, as the text of a recipe or the path of one.
    """
    from greencc.calibration import open_data, take
    from greencc.core.describe import input_specs
    from greencc.core.model import load_model
    from greencc.core.passes import Context
    from greencc.core.pipeline import Pipeline
    from greencc.core.recipe import parse_recipe
    from greencc.passes import PASSES, default_cleanup
    from greencc.targets.cpu import CpuTarget

    clock = Clock()
    if recipe is None:
        recipe = f"[[pass]]\nname = 'quantize-int8'\nmethod = '{method or 'minmax'}'\n"
    elif "\n" not in recipe:
        recipe = Path(recipe).read_text(encoding="utf-8")
    target = CpuTarget()
    source = load_model(Path(model))
    data = take(open_data(calibration, input_specs(source)), samples)
    context = Context(
        capabilities=target.capabilities(),
        build=target.reference,
        samples=[batch.feeds for batch in take(data, 2).batches(1)],
        calibration=data,
        observe=target.calibration_engine,
    )
    recipe_steps = parse_recipe(recipe, PASSES)
    steps = (*default_cleanup(context.capabilities), *recipe_steps)
    built, records = Pipeline(context).run(source, steps)
    idle = [record for record in records[-len(recipe_steps) :] if record.rolled_back or not record.changed]
    if records[-1] in idle:
        reason = "; ".join(finding.message for finding in records[-1].findings) or "nothing to do"
        raise RuntimeError(f"{records[-1].name} changed nothing: {reason}")
    artifact = target.build(target.lower(built), Path(folder))
    return clock.result(
        artifact,
        passes={f"{i:02d} {record.name}": record.seconds for i, record in enumerate(records)},
        notes={"idle": [record.name for record in idle]},
    )


def compile_greencc(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    evaluation: str | None,
    metric: str | None,
    effort: str,
) -> Result:
    """`greencc compile --precision int8`, with everything a user gets: planning, certification, measurement, report."""
    from greencc.cli.main import run

    clock = Clock()
    bundle = Path(folder) / "model.greencc"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "compile",
        model,
        "--precision",
        "int8",
        "--calibration",
        calibration,
        "--samples",
        str(samples),
    ]
    command += ["--effort", effort, "--search-time", SEARCH_TIME, "--no-cache", "--force", "-o", str(bundle)]
    if evaluation is not None:
        command += ["--eval", evaluation]
    else:
        # A few calibration samples hold no limit and prove nothing: all are judged by the benchmark afterwards.
        command += ["--max-drop", "50%"]
    # Without labels a metric of the user's has nothing to compare with.
    if evaluation is not None and metric not in (None, "top1"):
        command += ["--metric", str(metric)]
    sys.argv = ["greencc", *command]
    try:
        run()
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    notes = {"precision": report["precision"], "verdict": report["verdict"]}
    return clock.result(bundle / "artifact" / "model.onnx", notes=notes)


def clean_greencc(model: str, folder: str) -> Result:
    """greencc's clean-up passes for this machine, gated on synthetic inputs."""
    from greencc.calibration import synthetic
    from greencc.core.describe import input_specs
    from greencc.core.model import load_model
    from greencc.core.passes import Context
    from greencc.core.pipeline import Pipeline
    from greencc.passes import default_cleanup
    from greencc.targets.cpu import CpuTarget

    started = time.perf_counter()
    target = CpuTarget()
    source = load_model(Path(model))
    inputs = input_specs(source)
    batch = inputs[0].batch or 1
    samples = [item.feeds for item in synthetic(inputs, 2 * batch).batches(batch)]
    context = Context(capabilities=target.capabilities(), build=target.reference, samples=samples)
    built, records = Pipeline(context).run(source, default_cleanup(context.capabilities))
    artifact = target.build(target.lower(built), Path(folder))
    rolled_back = [record.name for record in records if record.rolled_back]
    return {
        "artifact": str(artifact),
        "job_seconds": time.perf_counter() - started,
        "rolled_back": rolled_back,
    }


def clean_onnxslim(model: str, folder: str) -> Result:
    """`onnxslim.slim` with its defaults."""
    import onnxslim

    started = time.perf_counter()
    Path(folder).mkdir(parents=True, exist_ok=True)
    artifact = Path(folder) / "model.onnx"
    onnxslim.slim(model, str(artifact))
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


def clean_onnxsim(model: str, folder: str) -> Result:
    """`onnxsim.simplify` with its defaults."""
    import onnx
    import onnxsim

    started = time.perf_counter()
    Path(folder).mkdir(parents=True, exist_ok=True)
    artifact = Path(folder) / "model.onnx"
    simplified, valid = onnxsim.simplify(onnx.load(model))
    if not valid:
        raise RuntimeError("onnxsim says that its result is not equivalent")
    onnx.save(simplified, str(artifact))
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


JOBS: dict[str, Callable[..., Result]] = {
    "build-greencc": build_greencc,
    "compile-greencc": compile_greencc,
    "measure-quality": measure_quality,
    "clean-greencc": clean_greencc,
    "clean-onnxslim": clean_onnxslim,
    "clean-onnxsim": clean_onnxsim,
    **PEER_JOBS,
    **COMPRESSION_JOBS,
    **PLANNER_JOBS,
    **BACKEND_JOBS,
}


def main(request: str, answer: str) -> None:
    """Do the job that `request` (JSON) describes and write the result to the file `answer`."""
    asked = json.loads(request)
    limit = asked["memory_limit_mb"]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**6, limit * 10**6))
    result = JOBS[asked["job"]](**asked["arguments"])
    result["peak_mb"] = peak_mb()
    result["cpu_seconds"] = time.process_time()
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
