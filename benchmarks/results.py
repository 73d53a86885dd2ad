"""Result files: one JSON per benchmark, with the machine, the versions and the command it came from."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT
from greencc.core.files import atomic_file
from greencc.measure.intervals import ratio_interval

FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = (
    "greencc",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "nncf",
    "onnxslim",
    "onnxsim",
    "openvino",
    "apache-tvm",
    "optuna",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a benchmark run was asked to do.

    Attributes:
        models: Folder with more models, or None for the shipped example alone.
        repetitions: Interleaved repetitions of builds.
        quick: Few repetitions and short measurements, to see that everything works.
        command: How the run was started, without the machine's own paths.
        work: Scratch folder of the run; artifacts of one benchmark serve the next.
        load: Load average before the run started: what others did to the machine.
        peers: Peers with an environment of their own that take part; "all" means every one.
        slow: Run what takes minutes a model, too.
        cases: Only these models, where a benchmark keeps what it found on others; empty: all.
    """

    models: Path | None
    repetitions: int
    quick: bool
    command: str
    work: Path
    load: float = 0.0
    peers: tuple[str, ...] = ()
    slow: bool = True
    cases: tuple[str, ...] = ()


def save(name: str, settings: Settings, rows: Sequence[Row], **notes: Any) -> Path:
    """Write `results/NAME.json`."""
    document = {
        "schema": "greencc.benchmark/1",
        "benchmark": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": settings.command,
        "quick": settings.quick,
        "models_folder": settings.models is not None,
        "load_before": round(settings.load, 2),
        "machine": machine(),
        "versions": versions(),
        **notes,
        "rows": list(rows),
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = _without_folders(document, settings)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as work:
        work.write_text(text, encoding="utf-8")
    return path


def _without_folders(value: Any, settings: Settings) -> Any:
    """Replace this machine's folders in every text: messages name files, and results are published."""
    if isinstance(value, dict):
        return {key: _without_folders(item, settings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item, settings) for item in value]
    if not isinstance(value, str):
        return value
    for folder, name in ((settings.models, "MODELS"), (settings.work, "WORK"), (ROOT, "GREENCC")):
        if folder is not None:
            value = value.replace(str(folder), name)
    return value


def load(name: str) -> dict[str, Any] | None:
    """Read `results/NAME.json`; None where that benchmark has not run."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def machine() -> Row:
    """Facts about the machine."""
    from greencc.core.machine import usable_threads
    from greencc.targets.cpu import describe_device

    device = describe_device(usable_threads())
    return {
        "name": device.name,
        **{key: device.facts[key] for key in sorted(device.facts)},
        "platform": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages compared; those not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interval_of(numerators: Sequence[float], denominators: Sequence[float]) -> Row | None:
    """Ratio of paired repetitions with its 95 % t-interval on logarithms; ends that are not finite are None."""
    if not numerators or len(numerators) != len(denominators):
        return None
    found = asdict(ratio_interval(numerators, denominators))
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def spread(values: Sequence[float]) -> Row:
    """Median with the smallest and the largest repetition."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
