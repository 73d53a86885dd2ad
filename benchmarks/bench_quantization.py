"""Quantization beside the peers: for every model with data and every tool accuracy, error, latency, size, time, memory.

All tools get the same calibration samples. Every build runs in a process of its own, limited in memory and time; what
is repeated is repeated in turns. The artifacts of a model are then judged in one process on the same held-out samples.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

from benchmarks.bench_build import calibration_archive, slug
from benchmarks.cases import Case, find_cases
from benchmarks.child import Run, run_job
from benchmarks.compiling import true_labels
from benchmarks.results import Row, Settings, interval_of, load, save, spread
from benchmarks.tools import COMPILE, RECIPES, Tool, chosen
from greencc.calibration import open_data
from greencc.core.data import Array, DataSource
from greencc.core.describe import input_specs
from greencc.core.model import load_model
from greencc.targets.cpu import CpuTarget

SAMPLES = 64
SCORED = 1500
LIMIT_MB = 6000
TIMEOUT = 180.0
COMPILE_TIMEOUT = 400.0
"""`greencc compile` also tries several forms, certifies and measures."""
QUALITY_TIMEOUT = 900.0
REPETITIONS = 3
REPEATED_CASES = ("fashion-mnist (shipped)", "efficientnet-lite0", "minilm-sentiment")
"""A small net, a large one and a transformer; on the others one repetition shows the ratio."""
REPEATED_BELOW = 8.0
"""Seconds; a build that takes longer is not repeated: what decides there are not tenths of a second."""
QUICK_TOOLS = ("minmax", "percentile", "dynamic", "nncf", "w4", "compile")


@dataclass(frozen=True)
class Split:
    """Evaluation data as files: `scored` judges the artifacts, `tuning` steers `greencc compile` where it is enough."""

    scored: Path
    tuning: Path | None
    count: int


def run(settings: Settings) -> None:
    """Measure every case with data and write `quantization.json`."""
    tools, missing = chosen(settings.peers, slow=settings.slow)
    if settings.quick:
        tools = [tool for tool in tools if any(part in tool.key for part in QUICK_TOOLS)]
    cases = [case for case in find_cases(settings.models) if case.calibration and case.evaluation]
    rows, against = _earlier(settings, cases)
    cases = [case for case in cases if not settings.cases or case.name in settings.cases]
    if settings.quick:
        cases = cases[:2]
    for case in cases:
        found, compared = _case(case, tools, settings)
        rows += found
        against[case.name] = compared
        # After every model, so that an interrupted run leaves what it has.
        save(
            "quantization",
            settings,
            rows,
            against=against,
            samples=SAMPLES,
            scored=SCORED,
            limit_mb=LIMIT_MB,
            timeout=TIMEOUT,
            missing_environments=missing,
            peer_versions=_versions(tools),
        )


def _earlier(settings: Settings, cases: Sequence[Case]) -> tuple[list[Row], dict[str, Any]]:
    """What an earlier run found on the cases that this one leaves out."""
    found = load("quantization")
    if not settings.cases or found is None:
        return [], {}
    kept = {case.name for case in cases} - set(settings.cases)
    return (
        [row for row in found["rows"] if row["case"] in kept],
        {name: value for name, value in found["against"].items() if name in kept},
    )


def _case(case: Case, tools: Sequence[Tool], settings: Settings) -> tuple[list[Row], dict[str, Any]]:
    calibration = calibration_archive(case, SAMPLES, settings.work)
    split = split_evaluation(case, settings.work, 300 if settings.quick else SCORED)
    transformer = is_transformer(case.model)
    operators = {node.op_type for node in onnx.load(case.model, load_external_data=False).graph.node}
    tools = [tool for tool in tools if not tool.needs or tool.needs in operators]
    runs: dict[str, list[Run]] = {tool.key: [] for tool in tools}
    repeated = case.name in REPEATED_CASES and not settings.quick
    for repetition in range(min(REPETITIONS, settings.repetitions) if repeated else 1):
        # Turned around each time, so that a drift of the machine falls on all tools alike.
        for tool in tools if repetition % 2 == 0 else reversed(tools):
            if repetition and not _repeat(tool, tools, runs[tool.key][0]):
                continue
            arguments = _arguments(tool, case, calibration, split, transformer, settings)
            found = run_job(
                tool.job,
                arguments,
                memory_limit_mb=LIMIT_MB,
                timeout=COMPILE_TIMEOUT if tool is COMPILE else TIMEOUT,
                python=str(tool.python),
            )
            runs[tool.key].append(found)
            print(
                f"  quantization {case.name}: {tool.key} {found.error or f'{found.seconds:.1f} s'}",
                flush=True,
            )
    judged = _judge(case, tools, runs, split, settings)
    rows = [_row(case, tool, runs[tool.key], runs, tools, judged) for tool in tools]
    for key in ("original", "original-openvino"):
        if key in judged["rows"]:
            rows.append({"case": case.name, "tool": key, **judged["rows"][key]})
    return rows, {"forms": judged["against"], "scored": split.count, "error": judged.get("error")}


def _repeat(tool: Tool, tools: Sequence[Tool], first: Run) -> bool:
    """Whether it is worth repeating: somebody else does the same, and it is quick."""
    sides = {each.ours for each in tools if each.method == tool.method}
    return len(sides) == 2 and bool(tool.method) and first.error is None and first.seconds < REPEATED_BELOW


def _arguments(
    tool: Tool, case: Case, calibration: Path, split: Split, transformer: bool, settings: Settings
) -> dict[str, Any]:
    folder = settings.work / "quantization" / slug(case) / tool.key
    common = {
        "model": str(case.model if tool.ours else peers_model(case, settings.work)),
        "calibration": str(calibration),
        "samples": SAMPLES,
        "folder": str(folder),
    }
    chosen = tool.settings(transformer)
    if "recipe" in chosen:
        chosen["recipe"] = str(RECIPES / chosen["recipe"])
    if tool is COMPILE:
        chosen |= {
            "evaluation": None if split.tuning is None else str(split.tuning),
            "metric": case.metric,
            "effort": "quick" if settings.quick else "standard",
        }
    return {**common, **chosen}


def _judge(
    case: Case, tools: Sequence[Tool], runs: dict[str, list[Run]], split: Split, settings: Settings
) -> dict[str, Any]:
    artifacts = [
        {
            "key": tool.key,
            "form": tool.form,
            "ours": tool.ours,
            "path": runs[tool.key][0].result["artifact"],
            "runtime": tool.runtime,
        }
        for tool in tools
        if runs[tool.key][0].error is None
    ]
    arguments = {
        "model": str(case.model),
        "evaluation": str(split.scored),
        "metric": case.metric,
        "artifacts": artifacts,
        "quick": settings.quick,
    }
    found = run_job("measure-quality", arguments, timeout=QUALITY_TIMEOUT)
    shown = found.error or f"{found.seconds:.0f} s"
    print(f"  quantization {case.name}: judging {len(artifacts)} artifacts: {shown}", flush=True)
    if found.error is not None:
        return {"rows": {}, "against": {}, "error": found.error}
    return dict(found.result)


def _row(
    case: Case,
    tool: Tool,
    found: Sequence[Run],
    runs: dict[str, list[Run]],
    tools: Sequence[Tool],
    judged: dict[str, Any],
) -> Row:
    row: Row = {
        "case": case.name,
        "tool": tool.key,
        "label": tool.label,
        "form": tool.form,
        "method": tool.method,
    }
    row |= {"ours": tool.ours, "error": next((run.error for run in found if run.error), None)}
    if row["error"] is not None:
        return row
    row |= {
        "seconds": spread([_seconds(run) for run in found]),
        "job_seconds": spread([run.result["job_seconds"] for run in found]),
        "cpu_seconds": spread([run.result["cpu_seconds"] for run in found]),
        "peak_mb": spread([run.peak_mb for run in found if run.peak_mb is not None]),
        "imported_mb": spread([run.result["imported_mb"] for run in found]),
        "notes": found[0].result.get("notes"),
    }
    rivals = {each.key: runs[each.key] for each in tools if each.method == tool.method and not each.ours}
    if tool.ours and tool.method:
        row["against_fastest"] = compare_costs(found, rivals)
    quality: Row = judged["rows"].get(tool.key, {"error": judged.get("error", "not judged")})
    return row | quality


def compare_costs(ours: Sequence[Run], rivals: dict[str, list[Run]]) -> Row | None:
    """greencc's time by the fastest rival's, and its memory by the leanest rival's; None without one that works.

    Total memory includes interpreter and imports; `memory_job` is what the work adds to them.
    """
    good = {key: runs for key, runs in rivals.items() if runs and all(run.error is None for run in runs)}
    if not good:
        return None

    def median(key: str, figure: str) -> float:
        return float(spread([_figure(run, figure) for run in good[key]])["median"])

    found: Row = {}
    for name, figure in (
        ("time", "seconds"),
        ("time_job", "job"),
        ("memory", "peak"),
        ("memory_job", "peak_job"),
    ):
        rival = min(good, key=lambda key, figure=figure: median(key, figure))  # type: ignore[misc]
        pairs = list(zip(ours, good[rival], strict=False))
        ratio = interval_of(
            [_figure(run, figure) for run, _ in pairs], [_figure(other, figure) for _, other in pairs]
        )
        found[name] = {"rival": rival, "ratio": ratio}
    return found


def _figure(run: Run, figure: str) -> float:
    peak = run.peak_mb or 0.0
    return {
        "seconds": _seconds(run),
        "job": float(run.result["job_seconds"]),
        "peak": peak,
        # A job that needs no more than its imports did still counts as a megabyte.
        "peak_job": max(peak - float(run.result["imported_mb"]), 1.0),
    }[figure]


def _seconds(run: Run) -> float:
    return float(run.seconds - run.result["wasted_seconds"])


def split_evaluation(case: Case, work: Path, scored: int) -> Split:
    """Evaluation samples as `.npz`: up to `scored` (half of them at most) to judge with, the others to tune with.

    Where fewer than 200 would be left to tune with, all judge and nothing steers. Classifiers without labels get
    the original's decisions as labels, so that accuracy is agreement with FP32.
    """
    source = evaluation_data(case, work)
    count = source.count
    first = min(scored, count // 2)
    if count - first < 200:
        first = min(scored, count)
    paths = [work / f"{slug(case)}-{part}-{first}.npz" for part in ("scored", "tuning")]
    rest = min(count - first, SCORED)
    has_tuning = rest >= 200
    if not all(path.is_file() for path in paths[: 1 + has_tuning]):
        whole = labelled_arrays(case, source)
        for path, rows in zip(paths, (slice(first), slice(first, first + rest)), strict=True):
            np.savez(path, allow_pickle=False, **{name: values[rows] for name, values in whole.items()})
    return Split(paths[0], paths[1] if has_tuning else None, first)


def evaluation_data(case: Case, work: Path) -> DataSource:
    """All evaluation samples of a case, with their labels where there are any."""
    assert case.evaluation is not None
    return open_data(
        case.evaluation,
        input_specs(load_model(case.model)),
        labels=true_labels(case, work),
        role="evaluation",
    )


def labelled_arrays(case: Case, source: DataSource) -> dict[str, Array]:
    """Samples and labels as arrays; classifiers without labels get the original's decisions as such."""
    parts: dict[str, list[Array]] = {}
    for batch in source.batches(64):
        labels = batch.labels if batch.labels is not None else _decisions(case.model, batch.feeds)
        arrays = batch.feeds if labels is None else {**batch.feeds, "labels": labels}
        for name, values in arrays.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}


def _decisions(model: Path, feeds: dict[str, Array]) -> Array | None:
    """Class ids that the original decides for; None where it is no classifier."""
    engine = CpuTarget().open(model)
    try:
        scores = next(iter(engine.run(feeds).values()))
    finally:
        engine.close()
    return scores.argmax(axis=1) if scores.ndim == 2 and scores.shape[1] > 1 else None


def peers_model(case: Case, work: Path) -> Path:
    """The model that peers get: below opset 13 there is no per-channel DequantizeLinear, and none of them says so.

    ONNX's own converter brings such a model to opset 17; greencc gets the model as it is.
    """
    source = onnx.load(case.model)
    opset = next(item.version for item in source.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= 13:
        return case.model
    path = work / f"{slug(case)}-opset-17.onnx"
    if not path.is_file():
        onnx.save(onnx.version_converter.convert_version(source, 17), path)
    return path


def is_transformer(model: Path) -> bool:
    """Whether it has attention: a Softmax between two products of activations."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {item.name for item in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    products = [
        node for node in graph.node if node.op_type == "MatMul" and not constants.intersection(node.input)
    ]
    return len(products) >= 2 and any(node.op_type == "Softmax" for node in graph.node)


def _versions(tools: Sequence[Tool]) -> dict[str, dict[str, str]]:
    """Versions in the environments of their own."""
    packages = ("aimet-onnx", "amd-quark", "olive-ai", "onnx", "onnxruntime", "torch")
    script = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({p: m.version(p) for p in sys.argv[1:] "
        "if any(d.metadata['Name'].lower() == p for d in m.distributions())}))"
    )
    found = {}
    for tool in tools:
        if tool.environment and tool.environment not in found:
            told = subprocess.run(
                [str(tool.python), "-c", script, *packages], capture_output=True, text=True, check=True
            )
            found[tool.environment] = json.loads(told.stdout)
    return found
