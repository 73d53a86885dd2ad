"""Clean-up: what greencc, onnxslim and onnxsim make of every model: nodes, latency in ONNX Runtime, same outputs?"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import onnx

from benchmarks.bench_build import slug
from benchmarks.cases import Case, find_cases
from benchmarks.child import run_job
from benchmarks.results import Row, Settings, save
from greencc.calibration import open_data, synthetic
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError
from greencc.core.pipeline import output_error
from greencc.measure.latency import measure_latency
from greencc.measure.profiles import QUICK
from greencc.targets.cpu import CpuTarget

TOOLS = {"greencc": "clean-greencc", "onnxslim": "clean-onnxslim", "onnxsim": "clean-onnxsim"}
PROFILE = replace(QUICK, name="clean-up", seconds=5.0, rounds=14)
FEEDS = 8


def run(settings: Settings) -> None:
    """Measure on every model and write `cleanup.json`."""
    rows: list[Row] = []
    for case in find_cases(settings.models):
        rows += _case(case, settings)
    save("cleanup", settings, rows)


def _case(case: Case, settings: Settings) -> list[Row]:
    target = CpuTarget()
    try:
        engines: list[tuple[str, Engine]] = [("original", target.open(case.model))]
    except GreenccError as error:
        return [{"case": case.name, "tool": "original", "error": error.message}]
    rows: dict[str, Row] = {"original": {"case": case.name, "tool": "original", "error": None}}
    rows["original"] |= {"nodes": count_nodes(case.model)}
    for tool, job in TOOLS.items():
        rows[tool] = {"case": case.name, "tool": tool, "error": None}
        folder = settings.work / "clean" / slug(case) / tool
        built = run_job(job, {"model": str(case.model), "folder": str(folder)})
        if built.error is not None:
            rows[tool]["error"] = built.error
            continue
        artifact = folder / "model.onnx"
        rows[tool] |= {"seconds": built.seconds, "rolled_back": built.result.get("rolled_back", [])}
        rows[tool]["nodes"] = count_nodes(artifact)
        try:
            engines.append((tool, target.open(artifact)))
        except GreenccError as error:
            rows[tool]["error"] = error.message
    try:
        _measure(case, engines, rows)
    except GreenccError as error:
        rows["original"]["error"] = f"no inputs to run it with: {error.message}"
    finally:
        for _, engine in engines:
            engine.close()
    for row in rows.values():
        shown = row["error"] or f"{row['nodes']} nodes, {row.get('median_ms', 0):.3f} ms"
        print(f"  cleanup {case.name} {row['tool']}: {shown}", flush=True)
    return list(rows.values())


def _measure(case: Case, engines: list[tuple[str, Engine]], rows: dict[str, Row]) -> None:
    feeds = _feeds(case, engines[0][1])
    reference = [engines[0][1].run(each) for each in feeds[:2]]
    usable = [engines[0]]
    for tool, engine in engines[1:]:
        try:
            outputs = [engine.run(each) for each in feeds[:2]]
        except GreenccError as error:
            rows[tool]["error"] = error.message
            continue
        moved = output_error(reference, outputs, absolute=1e-6)
        rows[tool]["output_error"] = moved if moved != float("inf") else None
        usable.append((tool, engine))
    result = measure_latency([engine for _, engine in usable], feeds, PROFILE)
    for index, (tool, _) in enumerate(usable):
        rows[tool]["median_ms"] = result.latencies[index].median
        rows[tool]["ratio"] = None if index == 0 else asdict(result.ratios[index - 1])


def _feeds(case: Case, engine: Engine) -> list[Feeds]:
    """Real inputs where there are any, else made-up ones."""
    batch = next((spec.batch for spec in engine.inputs if spec.batch is not None), 1)
    if case.evaluation is not None:
        source = open_data(case.evaluation, engine.inputs, role="calibration")
    else:
        source = synthetic(engine.inputs, FEEDS * batch)
    found = [piece.feeds for _, piece in zip(range(FEEDS), source.batches(batch), strict=False)]
    return [each for each in found if len(next(iter(each.values()))) == batch]


def count_nodes(path: Path) -> int:
    """Nodes of a model, those of subgraphs included; Constant nodes are not work and do not count."""

    def count(graph: onnx.GraphProto) -> int:
        total = 0
        for node in graph.node:
            total += node.op_type != "Constant"
            for attribute in node.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
                total += sum(count(body) for body in bodies)
        return total

    return count(onnx.load(path, load_external_data=False).graph)
