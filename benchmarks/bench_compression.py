"""Pruning and decomposition beside the peers: accuracy against MACs and against measured latency, for every model.

Every method is asked for the same shares of the MACs and gets the same calibration samples. Every build runs in a
process of its own, limited in memory and time; the artifacts of a model and a share are then judged in one process, on
the same held-out samples and in turns with the original. At last, pruning with repair on a graph of ResNet-50's size.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_build import calibration_archive, slug
from benchmarks.bench_quantization import peers_model, split_evaluation
from benchmarks.cases import Case, find_cases
from benchmarks.child import Run, run_job
from benchmarks.compression_tools import (
    BASES,
    CASES,
    POINTWISE,
    PRODUCT,
    PYTHON,
    QUANTIZED,
    SPATIAL,
    Method,
    chosen,
    has_torch,
    recipe_text,
)
from benchmarks.results import Row, Settings, load, save
from greencc.calibration import open_data
from greencc.core.describe import describe, input_specs, nodes_cost
from greencc.core.errors import GreenccError
from greencc.core.graph import attribute_int, constant_tensor
from greencc.core.model import load_model
from greencc.core.shapes import bind_dims

SAMPLES = 512
"""Calibration samples, where there are as many."""
SCORED = 3000
QUICK_SCORED = 300
LIMIT_MB = 8000
TIMEOUT = 400.0
TUNING_TIMEOUT = 1500.0
QUALITY_TIMEOUT = 900.0
QUICK_RATIOS = (0.25, 0.5)
TUNING_WORK = 4e11
"""MACs of the forward passes of a fine-tuning: how many samples it sees depends on the size of the model."""
TUNING_EPOCHS = (3, 20)
QUICK_EPOCHS = 1
TRAINING = "training.npz"
"""More data to fine-tune with, beside the model; without it the calibration samples are used."""

WORTH_NAMING = 0.1

LARGE = "resnet50"
LARGE_SAMPLES = 64
LARGE_RATIO = 0.3
LARGE_STEPS = ({"name": "prune", "ratio": LARGE_RATIO, "score": "second-order", "measured": False},)


def run(settings: Settings) -> None:
    """Measure every case of the table and write `compression.json`."""
    cases = [case for case in find_cases(settings.models) if case.name in CASES and case.evaluation]
    rows, against, notes = _earlier(settings, [*(case.name for case in cases), LARGE])
    wanted = [case for case in cases if not settings.cases or case.name in settings.cases]
    if settings.quick and not settings.cases:
        wanted = wanted[:2]
    for case in wanted:
        found, compared, note = _case(case, settings)
        rows += found
        against[case.name], notes[case.name] = compared, note
        # After every model, so that an interrupted run leaves what it has.
        _save(settings, rows, against, notes)
    if not settings.cases or LARGE in settings.cases:
        rows.append(_large(settings))
        _save(settings, rows, against, notes)


def _save(settings: Settings, rows: Sequence[Row], against: dict[str, Any], notes: dict[str, Any]) -> None:
    save(
        "compression",
        settings,
        rows,
        against=against,
        cases=notes,
        samples=SAMPLES,
        limit_mb=LIMIT_MB,
        timeout=TIMEOUT,
        peer_versions=_versions() if has_torch() else {},
    )


def _earlier(
    settings: Settings, names: Sequence[str]
) -> tuple[list[Row], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What an earlier run found on the cases that this one leaves out."""
    found = load("compression")
    if not settings.cases or found is None:
        return [], {}, {}
    kept = set(names) - set(settings.cases)
    return (
        [row for row in found["rows"] if row["case"] in kept],
        {name: value for name, value in found["against"].items() if name in kept},
        {name: value for name, value in found["cases"].items() if name in kept},
    )


def _case(case: Case, settings: Settings) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    calibration = calibration_archive(case, samples_of(case), settings.work)
    evaluation, scored = evaluation_archive(case, settings.work, QUICK_SCORED if settings.quick else SCORED)
    shapes = sample_shapes(calibration)
    work = kinds_of_work(case.model, shapes)
    original = contents(case.model, shapes)
    judging = {"model": str(case.model), "evaluation": str(evaluation), "metric": case.metric}
    builder = _Builder(case, calibration, original["macs"], settings)

    bases = {method.key: builder.build(method, 0.0) for method in BASES}
    rows, against = [], {}
    judged = _judge(case, BASES, bases, judging, 0.0, settings)
    rows.append({**_row(case, "original", None, 0.0), **original, **judged["rows"].get("original", {})})
    rows[-1].setdefault("error", judged.get("error"))
    rows += [_method_row(case, method, 0.0, bases[method.key], judged, shapes) for method in BASES]
    integers = [(QUANTIZED, 0.0, bases[QUANTIZED.key])]
    for ratio in QUICK_RATIOS if settings.quick else CASES[case.name]:
        methods = chosen(case.name, work, ratio, torch=has_torch(), quick=settings.quick)
        runs: dict[str, Run] = {}
        for method in methods:
            runs[method.key] = builder.build(method, ratio, runs.get(method.start))
        judged = _judge(case, methods, runs, judging, ratio, settings)
        rows += [_method_row(case, method, ratio, runs[method.key], judged, shapes) for method in methods]
        against[f"{ratio:g}"] = judged["against"]
        integers += [(method, ratio, runs[method.key]) for method in methods if method.form == QUANTIZED.form]
    _judge_on_int8(case, integers, rows, judging, settings)
    note = {
        "scored": scored,
        "samples": samples_of(case),
        "macs": original["macs"],
        "params": original["params"],
    }
    return rows, against, note


class _Builder:
    """Builds the artifacts of one case."""

    def __init__(self, case: Case, calibration: Path, macs: int | None, settings: Settings) -> None:
        self.case, self.calibration, self.macs, self.settings = case, calibration, macs, settings
        self.training = training_archive(case, settings.work)

    def build(self, method: Method, ratio: float, start: Run | None = None) -> Run:
        """One artifact; one that starts from another is not tried where that failed."""
        if method.start and (start is None or start.error is not None):
            return Run(0.0, error=f"there is nothing to fine-tune: {start.error if start else 'not built'}")
        tuning = bool(method.start)
        found = run_job(
            method.job,
            self._arguments(method, ratio, start),
            memory_limit_mb=None if method.torch else LIMIT_MB,
            timeout=TUNING_TIMEOUT if tuning else TIMEOUT,
            python=method.python,
        )
        shown = found.error or f"{found.seconds:.1f} s"
        print(f"  compression {self.case.name} {ratio:g}: {method.key} {shown}", flush=True)
        return found

    def _arguments(self, method: Method, ratio: float, start: Run | None) -> dict[str, Any]:
        folder = self.settings.work / "compression" / slug(self.case) / f"{method.key}-{ratio:g}"
        model = self.case.model if method.ours or method.start else peers_model(self.case, self.settings.work)
        if method.job == "clean-greencc":
            return {"model": str(model), "folder": str(folder)}
        if start is not None:
            with np.load(self.training) as archive:
                count, rank = len(archive[archive.files[0]]), archive[archive.files[0]].ndim
            epochs = QUICK_EPOCHS if self.settings.quick else tuning_epochs(count, self.macs)
            return {
                "model": str(model),
                "start": start.result["artifact"],
                "training": str(self.training),
                "folder": str(folder),
                "epochs": epochs,
                "images": rank == 4,
            }
        common = {"model": str(model), "calibration": str(self.calibration), "folder": str(folder)}
        common["samples"] = samples_of(self.case)
        if method.job == "build-greencc":
            return {**common, "recipe": method.recipe(ratio)}
        return {**common, "ratio": ratio, **method.arguments}


def tuning_epochs(samples: int, macs: int | None) -> int:
    """How often the training data are seen, for about the same work on every model."""
    fewest, most = TUNING_EPOCHS
    return fewest if not macs else int(np.clip(round(TUNING_WORK / (macs * samples)), fewest, most))


def training_archive(case: Case, work: Path) -> Path:
    """What is fine-tuned with, without labels: `training.npz` beside the model, or all calibration samples."""
    beside = case.model.with_name(TRAINING)
    if beside.is_file():
        return beside
    assert case.calibration is not None
    count = open_data(case.calibration, input_specs(load_model(case.model))).count
    return calibration_archive(case, count, work)


def samples_of(case: Case) -> int:
    """How many calibration samples its tools get."""
    assert case.calibration is not None
    return min(SAMPLES, open_data(case.calibration, input_specs(load_model(case.model))).count)


def evaluation_archive(case: Case, work: Path, most: int) -> tuple[Path, int]:
    """Up to `most` evaluation samples with labels, and how many: nothing is tuned on any, so all of them judge."""
    split = split_evaluation(case, work, most)
    if split.tuning is None or split.count >= most:
        return split.scored, split.count
    path = work / f"{slug(case)}-all-{most}.npz"
    if not path.is_file():
        with np.load(split.scored) as first, np.load(split.tuning) as second:
            arrays = {name: np.concatenate([first[name], second[name]])[:most] for name in first.files}
        np.savez(path, allow_pickle=False, **arrays)
    with np.load(path) as archive:
        return path, len(archive[archive.files[0]])


def sample_shapes(calibration: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of one sample."""
    with np.load(calibration) as archive:
        return {name: (1, *archive[name].shape[1:]) for name in archive.files if name != "labels"}


def contents(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> Row:
    """Parameters and MACs of one sample; None where they are unknown."""
    try:
        found = describe(bind_dims(load_model(model), dict(shapes)))
    except GreenccError as error:
        return {"params": None, "macs": None, "unreadable": error.message[:200]}
    return {"params": found.params, "macs": found.macs}


def kinds_of_work(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The kinds of layers that have a part worth naming in the MACs: POINTWISE, SPATIAL and PRODUCT."""
    bound = bind_dims(load_model(model), dict(shapes))
    found: dict[str, int] = {}
    for node, cost in zip(bound.graph, nodes_cost(bound), strict=True):
        kind = PRODUCT if node.op_type in ("MatMul", "Gemm") else ""
        if node.op_type == "Conv":
            weight = constant_tensor(node.inputs[1])
            kernel = () if weight is None else tuple(weight.shape.numpy()[2:])
            grouped = attribute_int(node, "group", 1) > 1
            kind = "" if grouped or weight is None else POINTWISE if math.prod(kernel) == 1 else SPATIAL
        found[kind] = found.get(kind, 0) + (cost.macs or 0)
    total = sum(found.values()) or 1
    return {kind for kind, macs in found.items() if kind and macs >= WORTH_NAMING * total}


def _judge(
    case: Case,
    methods: Sequence[Method],
    runs: Mapping[str, Run],
    judging: Mapping[str, Any],
    ratio: float,
    settings: Settings,
) -> dict[str, Any]:
    """Accuracy, error and latency of the artifacts of one share, against the original."""
    artifacts = [
        _artifact(method.key, method, runs[method.key])
        for method in methods
        if runs[method.key].error is None
    ]
    return _measure(f"{case.name} {ratio:g}", artifacts, judging, settings)


def _judge_on_int8(
    case: Case,
    integers: Sequence[tuple[Method, float, Run]],
    rows: Sequence[Row],
    judging: Mapping[str, Any],
    settings: Settings,
) -> None:
    """What pruning and decomposition bring on top of INT8: the same artifacts in turns with the quantized original."""
    base = integers[0][2]
    good = {(method.key, ratio): (method, run) for method, ratio, run in integers[1:] if run.error is None}
    if base.error is not None or not good:
        return
    artifacts = [_artifact(f"{key} {ratio:g}", method, run) for (key, ratio), (method, run) in good.items()]
    told = {**judging, "model": base.result["artifact"]}
    judged = _measure(f"{case.name} on INT8", artifacts, told, settings)
    for row in rows:
        found = judged["rows"].get(f"{row['method']} {row['ratio']:g}")
        if found is not None and found["error"] is None:
            row["over_int8"] = found["latency_ratio"]
            row["drop_from_int8"] = {key: found[key] for key in ("drop", "low", "high")}


def _artifact(key: str, method: Method, run: Run) -> dict[str, Any]:
    return {
        "key": key,
        "form": method.form,
        "ours": method.ours,
        "path": run.result["artifact"],
        "runtime": "onnxruntime",
    }


def _measure(
    what: str, artifacts: Sequence[Mapping[str, Any]], judging: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    arguments = {**judging, "artifacts": list(artifacts), "quick": settings.quick}
    found = run_job("measure-quality", arguments, timeout=QUALITY_TIMEOUT)
    shown = found.error or f"{found.seconds:.0f} s"
    print(f"  compression {what}: judging {len(artifacts)} artifacts: {shown}", flush=True)
    if found.error is not None:
        return {"rows": {}, "against": {}, "error": found.error}
    return dict(found.result)


def _row(case: Case, key: str, method: Method | None, ratio: float) -> Row:
    row: Row = {"case": case.name, "method": key, "ratio": ratio}
    if method is not None:
        row |= {"label": method.label, "form": method.form, "ours": method.ours}
    return row


def _method_row(
    case: Case,
    method: Method,
    ratio: float,
    run: Run,
    judged: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> Row:
    row = _row(case, method.key, method, ratio) | {"error": run.error}
    if run.error is not None:
        return row
    row |= {
        "seconds": run.seconds,
        "job_seconds": run.result["job_seconds"],
        "peak_mb": run.peak_mb,
        "imported_mb": run.result.get("imported_mb"),
        "notes": run.result.get("notes"),
        **contents(Path(run.result["artifact"]), shapes),
    }
    quality: Row = judged["rows"].get(method.key, {"error": judged.get("error", "not judged")})
    return row | quality


def _large(settings: Settings) -> Row:
    """Time and peak memory of pruning with repair on a model of ResNet-50's size."""
    folder = settings.work / "compression" / LARGE
    row: Row = {"case": LARGE, "method": "greencc-prune-repair", "ratio": LARGE_RATIO}
    made = run_job("make-resnet50", {"folder": str(folder)})
    if made.error is not None:
        return row | {"error": made.error}
    model = Path(made.result["artifact"])
    calibration = folder / "calibration.npz"
    samples = LARGE_SAMPLES // 8 if settings.quick else LARGE_SAMPLES
    images = np.random.default_rng(0).normal(size=(samples, 3, 224, 224)).astype(np.float32)
    np.savez(calibration, allow_pickle=False, image=images)
    arguments = {
        "model": str(model),
        "calibration": str(calibration),
        "samples": samples,
        "folder": str(folder / "pruned"),
        "recipe": recipe_text(LARGE_STEPS),
    }
    found = run_job("build-greencc", arguments, memory_limit_mb=LIMIT_MB, timeout=TIMEOUT)
    print(
        f"  compression {LARGE}: {found.error or f'{found.seconds:.1f} s, {found.peak_mb:.0f} MB'}",
        flush=True,
    )
    row |= {"error": found.error, "samples": samples, "model_bytes": model.stat().st_size}
    if found.error is None:
        shapes = sample_shapes(calibration)
        row |= {"seconds": found.seconds, "peak_mb": found.peak_mb, "passes": found.result["passes"]}
        row |= {"before": contents(model, shapes), **contents(Path(found.result["artifact"]), shapes)}
    return row


def _versions() -> dict[str, str]:
    """What is compared with, in the environment with PyTorch."""
    packages = ("torch", "torch-pruning", "onnx2torch", "tensorly", "onnxruntime")
    script = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({p: m.version(p) for p in sys.argv[1:] "
        "if any(d.metadata['Name'].lower().replace('_', '-') == p for d in m.distributions())}))"
    )
    command = [str(PYTHON), "-c", script, *packages]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(told.stdout)
    return found
