"""Build cost: greencc's INT8 pipeline, ONNX Runtime's quantizer and NNCF on the same model and 64 samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.cases import Case, find_cases
from benchmarks.child import Run, run_job
from benchmarks.results import Row, Settings, interval_of, save, spread
from greencc.calibration import open_data, take
from greencc.core.data import Array
from greencc.core.describe import input_specs
from greencc.core.model import load_model

SAMPLES = 64
TOOLS = {"greencc": "build-greencc", "onnxruntime": "build-ort", "nncf": "build-nncf"}
LARGE = "efficientnet-lite0"


def subjects(settings: Settings) -> list[Case]:
    """The shipped example, and EfficientNet-Lite0 where the models folder has it."""
    cases = find_cases(settings.models)
    return [cases[0], *(case for case in cases[1:] if case.name == LARGE)]


def run(settings: Settings) -> None:
    """Measure and write `build.json`."""
    rows: list[Row] = []
    for case in subjects(settings):
        data = calibration_archive(case, SAMPLES, settings.work)
        runs: dict[str, list[Run]] = {tool: [] for tool in TOOLS}
        for repetition in range(settings.repetitions):
            # Turned around each time, so that a drift of the machine falls on all tools alike.
            order = list(TOOLS) if repetition % 2 == 0 else list(reversed(TOOLS))
            for tool in order:
                arguments = {
                    "model": str(case.model),
                    "calibration": str(data),
                    "samples": SAMPLES,
                    "folder": str(artifact_folder(settings.work, case, tool)),
                }
                found = run_job(TOOLS[tool], arguments)
                runs[tool].append(found)
                print(f"  build {case.name}: {tool} {found.error or f'{found.seconds:.2f} s'}", flush=True)
        rows += _rows(case, runs)
    save("build", settings, rows, samples=SAMPLES, repetitions=settings.repetitions)


def calibration_archive(case: Case, samples: int, work: Path) -> Path:
    """The first `samples` calibration samples as an `.npz` that all tools read, so that none decodes images.

    Where there are fewer, they repeat: memory and time depend on their number alone.
    """
    path = work / f"{slug(case)}-{samples}.npz"
    if path.is_file():
        return path
    assert case.calibration is not None
    source = take(open_data(case.calibration, input_specs(load_model(case.model))), samples)
    parts: dict[str, list[Array]] = {}
    for batch in source.batches(64):
        for name, values in batch.feeds.items():
            parts.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    arrays = {name: np.resize(values, (samples, *values.shape[1:])) for name, values in arrays.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def artifact_folder(work: Path, case: Case, tool: str) -> Path:
    """Where a tool's artifact of a case is; the latency benchmark looks here as well."""
    return work / "artifacts" / slug(case) / tool


def slug(case: Case) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in case.name)


def _rows(case: Case, runs: dict[str, list[Run]]) -> list[Row]:
    rows: list[Row] = []
    good = {tool: found for tool, found in runs.items() if all(run.error is None for run in found)}
    peers = {
        tool: spread([run.seconds for run in good[tool]])["median"] for tool in good if tool != "greencc"
    }
    fastest = min(peers, key=lambda tool: peers[tool], default=None)
    for tool, found in runs.items():
        row: Row = {"case": case.name, "tool": tool, "error": next((r.error for r in found if r.error), None)}
        if row["error"] is None:
            row |= {
                "seconds": spread([run.seconds for run in found]),
                "job_seconds": spread([run.result["job_seconds"] for run in found]),
                "cpu_seconds": spread([run.result["cpu_seconds"] for run in found]),
                "peak_mb": spread([run.peak_mb for run in found if run.peak_mb is not None]),
                "passes": found[-1].result.get("passes"),
                "greencc_ratio": interval_of(
                    [run.seconds for run in good.get("greencc", [])], [run.seconds for run in found]
                ),
                "fastest_peer": tool == fastest,
            }
        rows.append(row)
    return rows
