"""Job: accuracy, error and latency of the artifacts of one model, all in one process and on the same samples."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_tools import Result

if TYPE_CHECKING:
    from greencc.core.data import Array, DataSource, Feeds, TensorSpec
    from greencc.core.engine import Engine
    from greencc.core.report import Accuracy

ORIGINAL = "original"
COMPILED = "greencc-compile"
ORIGINAL_OPENVINO = "original-openvino"
LATENCY_FEEDS = 16
# Above this SQNR only the rounding of floats differs.
UNCHANGED_DB = 100.0


def measure_quality(
    model: str,
    evaluation: str,
    metric: str | None,
    artifacts: list[dict[str, Any]],
    quick: bool,
) -> Result:
    """Compare every artifact with the original.

    Args:
        evaluation: `.npz` with samples and, for accuracy, labels.
        artifacts: Each with `key`, `form`, `ours`, `path` and `runtime`, in the order of the table.

    Returns:
        `rows` by key: accuracy with the paired interval of its drop, SQNR, size, latency or an `error`; `against`: by
        form, what `greencc compile` made and the best of greencc's recipes against the best peer, sample by sample.
    """
    from greencc.calibration import open_data
    from greencc.core.errors import GreenccError
    from greencc.targets.cpu import CpuTarget
    from greencc.verify.compare import compare

    started = time.perf_counter()
    target = CpuTarget()
    original = Remembering(target.open(Path(model)))
    data = open_data(evaluation, original.inputs, role="evaluation")
    rows: dict[str, dict[str, Any]] = {}
    usable = []
    for item in artifacts:
        try:
            engine = open_artifact(item, original, threads=0)
            try:
                seen = compare(original, engine, data, metric=metric)
            finally:
                engine.close()
        except GreenccError as error:
            rows[item["key"]] = {"error": f"its artifact does not run: {error.message[:200]}"}
            continue
        rows[item["key"]] = {"error": None, "size_bytes": size_of(Path(item["path"])), **quality_of(seen)}
        usable.append(item)
    against = {}
    for form in sorted({item["form"] for item in usable}):
        found = _against([item for item in usable if item["form"] == form], rows, original, data, metric)
        if found is not None:
            against[form] = found
    itself = quality_of(compare(original, original, data, metric=metric))
    rows[ORIGINAL] = {**itself, "error": None, "size_bytes": size_of(Path(model)), "drop": None}
    _latency(model, usable, original, data, rows, quick)
    original.close()
    return {
        "rows": rows,
        "against": against,
        "samples": data.count,
        "job_seconds": time.perf_counter() - started,
    }


class Remembering:
    """An engine that runs every batch once, for models that many others are compared with."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[bytes, dict[str, Array]] = {}

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._engine.outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        key = hashlib.sha256(b"".join(value.tobytes() for value in feeds.values())).digest()
        if key not in self._seen:
            self._seen[key] = self._engine.run(feeds)
        found = self._seen[key]
        return {name: found[name] for name in outputs} if outputs is not None else dict(found)

    def close(self) -> None:
        self._seen.clear()
        self._engine.close()


def sqnr(errors: Sequence[float | None]) -> float | None:
    """SQNR of a model in dB: over its outputs, the mean of noise relative to signal; None when there is no noise."""
    noise = [10.0 ** (-value / 10.0) for value in errors if value is not None]
    return -10.0 * math.log10(sum(noise) / len(errors)) if noise else None


def quality_of(seen: Accuracy) -> dict[str, Any]:
    """What a row keeps of a comparison."""
    floats = [output for output in seen.outputs if output.differing is None]
    return {
        "metric": seen.metric,
        "value": seen.agreement if seen.artifact is None else seen.artifact,
        "drop": seen.drop,
        "low": seen.low,
        "high": seen.high,
        "agreement": seen.agreement,
        "n": seen.n,
        "broken": seen.broken,
        "sqnr_db": sqnr([output.sqnr_db for output in floats]),
    }


def _against(
    items: list[dict[str, Any]],
    rows: dict[str, dict[str, Any]],
    original: Engine,
    data: DataSource,
    metric: str | None,
) -> dict[str, Any] | None:
    """The best of greencc's artifacts, and the one named `greencc-compile`, against the best of the peers."""
    peer = _best([item for item in items if not item["ours"] and converted(rows[item["key"]])], rows)
    best = _best([item for item in items if item["ours"] and item["key"] != COMPILED], rows)
    if peer is None:
        return None
    engine = Remembering(open_artifact(peer, original, threads=0))
    ours = {}
    try:
        for item in items:
            if item["key"] == COMPILED or item is best:
                other = open_artifact(item, original, threads=0)
                try:
                    ours[item["key"]] = _paired(engine, other, data, metric)
                finally:
                    other.close()
    finally:
        engine.close()
    return {"best_peer": peer["key"], "best_recipe": None if best is None else best["key"], "ours": ours}


def converted(row: dict[str, Any]) -> bool:
    """Whether anything was quantized: above 100 dB the outputs differ by the rounding of floats only."""
    return row["sqnr_db"] is not None and float(row["sqnr_db"]) < UNCHANGED_DB


def _best(items: Sequence[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The most accurate; among equals, the one with the smallest error."""

    def merit(item: dict[str, Any]) -> tuple[float, float]:
        row = rows[item["key"]]
        return row["value"], math.inf if row["sqnr_db"] is None else row["sqnr_db"]

    return max(items, key=merit, default=None)


def _paired(peer: Engine, ours: Engine, data: DataSource, metric: str | None) -> dict[str, Any]:
    """greencc's accuracy minus the peer's, with the interval of the paired difference."""
    from greencc.verify.compare import compare

    seen = compare(peer, ours, data, metric=metric)
    if seen.drop is None or seen.low is None or seen.high is None:
        return {"gain": None, "low": None, "high": None}
    return {"gain": -seen.drop, "low": -seen.high, "high": -seen.low}


def open_artifact(item: dict[str, Any], original: Engine, threads: int) -> Engine:
    """Open an item by its `runtime`: OpenVINO's plugin, or ONNX Runtime as greencc's CPU target sets it up."""
    from benchmarks.openvino_engine import OpenVinoEngine
    from greencc.targets.cpu import CpuTarget

    if item["runtime"] == "openvino":
        return OpenVinoEngine(Path(item["path"]), (original.inputs, original.outputs), threads)
    return CpuTarget(threads=threads).open(Path(item["path"]))


def _latency(
    model: str,
    artifacts: list[dict[str, Any]],
    original: Engine,
    data: DataSource,
    rows: dict[str, dict[str, Any]],
    quick: bool,
) -> None:
    """One thread, batch 1, in turns; the ratio is the original's latency in ONNX Runtime by the artifact's."""
    from greencc.calibration import take
    from greencc.measure.latency import measure_latency
    from greencc.measure.profiles import QUICK, Profile

    whole = Profile("quantization", seconds=8.0, rounds=12, min_rounds=4, min_runs=20, warm_up_seconds=0.2)
    feeds = [batch.feeds for batch in take(data, LATENCY_FEEDS).batches(1)]
    plain = {"key": ORIGINAL, "path": model, "runtime": "onnxruntime"}
    runs = [plain, *artifacts]
    if any(item["runtime"] == "openvino" for item in artifacts):
        runs.append({"key": ORIGINAL_OPENVINO, "path": model, "runtime": "openvino"})
        rows[ORIGINAL_OPENVINO] = {"error": None, "size_bytes": rows[ORIGINAL]["size_bytes"], "value": None}
    engines = [open_artifact(item, original, threads=1) for item in runs]
    try:
        result = measure_latency(engines, feeds, QUICK if quick else whole)
    finally:
        for engine in engines:
            engine.close()
    for index, item in enumerate(runs):
        rows[item["key"]]["latency_ms"] = result.latencies[index].median
        rows[item["key"]]["latency_ratio"] = asdict(result.ratios[index - 1]) if index else None


def size_of(path: Path) -> int:
    """The artifact with its weights: OpenVINO keeps them in a `.bin`, ONNX may in a `.data`."""
    files = [path, path.with_suffix(".bin"), path.with_name(path.name + ".data")]
    return sum(file.stat().st_size for file in files if file.is_file())
