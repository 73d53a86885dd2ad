"""Latency and accuracy of artifacts, all run by ONNX Runtime: FP32 as it came, greencc, ONNX Runtime's quantizer, NNCF.

All are timed in turns (A B C D, D C B A, ...) by greencc's own measurement, with one thread and with all.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.bench_build import SAMPLES, TOOLS, artifact_folder, calibration_archive, subjects
from benchmarks.cases import Case
from benchmarks.child import run_job
from benchmarks.compiling import compile_case, true_labels
from benchmarks.results import Row, Settings, save
from greencc.calibration import open_data, take
from greencc.core.data import DataSource
from greencc.core.engine import Engine
from greencc.measure.latency import measure_latency
from greencc.measure.profiles import QUICK, Profile
from greencc.targets.cpu import CpuTarget
from greencc.verify.compare import compare

PROFILE = Profile("bench", seconds=25.0, rounds=30, min_rounds=8, min_runs=100, warm_up_seconds=1.0)
FEEDS = 32
MAX_EVALUATION = 3000


def run(settings: Settings) -> None:
    """Measure and write `latency.json`."""
    rows: list[Row] = []
    threads = [1] + ([os.cpu_count() or 1] if (os.cpu_count() or 1) > 1 else [])
    for case in subjects(settings):
        variants, missing = _variants(case, settings)
        rows += [{"case": case.name, "variant": name, "error": reason} for name, reason in missing.items()]
        found: dict[str, Row] = {
            name: {
                "case": case.name,
                "variant": name,
                "error": None,
                "size_bytes": _size(path),
                "latency": {},
            }
            for name, path in variants.items()
        }
        for count in threads:
            _latency(case, variants, count, QUICK if settings.quick else PROFILE, found)
        _accuracy(case, variants, settings, found)
        rows += found.values()
    save("latency", settings, rows, threads=threads, feeds=FEEDS)


def _variants(case: Case, settings: Settings) -> tuple[dict[str, Path], dict[str, str]]:
    """Artifacts by name, the original first, and what could not be built."""
    variants = {"FP32 original": case.model}
    missing: dict[str, str] = {}
    compiled = compile_case(case, settings.work, "quick")
    if compiled.report is None:
        missing["greencc auto"] = compiled.message or f"exit code {compiled.exit_code}"
    else:
        name = f"greencc compile ({compiled.report['precision']})"
        variants[name] = compiled.bundle / "artifact" / "model.onnx"
    data = calibration_archive(case, SAMPLES, settings.work)
    for tool, job in TOOLS.items():
        name = {
            "greencc": "greencc INT8 (64 samples)",
            "onnxruntime": "ORT quantize_static",
            "nncf": "NNCF",
        }[tool]
        folder = artifact_folder(settings.work, case, tool)
        if not (folder / "model.onnx").is_file():
            arguments = {"model": str(case.model), "calibration": str(data), "samples": SAMPLES}
            built = run_job(job, {**arguments, "folder": str(folder)})
            if built.error:
                missing[name] = built.error
                continue
        variants[name] = folder / "model.onnx"
    return variants, missing


def _latency(
    case: Case, variants: dict[str, Path], threads: int, profile: Profile, found: dict[str, Row]
) -> None:
    engines: list[Engine] = [CpuTarget(threads=threads).open(path) for path in variants.values()]
    try:
        source = _evaluation(case, engines[0], FEEDS)
        feeds = [batch.feeds for batch in source.batches(1)]
        result = measure_latency(engines, feeds, profile)
    finally:
        for engine in engines:
            engine.close()
    for index, name in enumerate(variants):
        latency = result.latencies[index]
        ratio = None if index == 0 else asdict(result.ratios[index - 1])
        found[name]["latency"][str(threads)] = {
            "median": latency.median,
            "p95": latency.p95,
            "runs": latency.runs,
            "ratio": ratio,
            "rounds": result.rounds,
            "discarded": result.discarded,
            "warnings": list(result.warnings),
        }
        shown = "" if ratio is None else f", {ratio['value']:.2f}x"
        print(f"  latency {case.name} {threads} thread(s) {name}: {latency.median:.3f} ms{shown}", flush=True)


def _accuracy(case: Case, variants: dict[str, Path], settings: Settings, found: dict[str, Row]) -> None:
    limit = 300 if settings.quick else MAX_EVALUATION
    target = CpuTarget()
    baseline = target.open(case.model)
    try:
        data = _evaluation(case, baseline, limit, true_labels(case, settings.work))
        for name, path in variants.items():
            engine = target.open(path)
            try:
                seen = compare(baseline, engine, data, metric=case.metric)
            finally:
                engine.close()
            found[name]["accuracy"] = {
                "metric": seen.metric,
                "value": seen.artifact,
                "drop": seen.drop,
                "low": seen.low,
                "high": seen.high,
                "agreement": seen.agreement,
                "n": seen.n,
            }
    finally:
        baseline.close()


def _evaluation(case: Case, engine: Engine, limit: int, labels: Path | None = None) -> DataSource:
    assert case.evaluation is not None
    return take(open_data(case.evaluation, engine.inputs, labels=labels, role="evaluation"), limit)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))
