"""Calibration memory: peak of the whole build with 64, 512 and 4,096 samples, greencc beside ONNX Runtime."""

from __future__ import annotations

from benchmarks.bench_build import calibration_archive, slug
from benchmarks.cases import example
from benchmarks.child import run_job
from benchmarks.results import Row, Settings, save

COUNTS = (64, 512, 4096)
LIMIT_MB = 6000
"""A job that wants more memory than this fails instead of filling the machine."""
VARIANTS = (
    ("greencc", "build-greencc", "minmax"),
    ("greencc", "build-greencc", "percentile"),
    ("onnxruntime", "build-ort", "minmax"),
    ("onnxruntime", "build-ort", "percentile"),
)


def run(settings: Settings) -> None:
    """Measure on the shipped example and write `memory.json`."""
    case = example()
    rows: list[Row] = []
    failed: set[tuple[str, str]] = set()
    for count in COUNTS[:2] if settings.quick else COUNTS:
        data = calibration_archive(case, count, settings.work)
        for tool, job, method in VARIANTS:
            row: Row = {"tool": tool, "method": method, "samples": count}
            if (tool, method) in failed:
                row["error"] = "not tried: it failed with fewer samples"
            else:
                folder = settings.work / "memory" / slug(case) / f"{tool}-{method}-{count}"
                arguments = {
                    "model": str(case.model),
                    "calibration": str(data),
                    "samples": count,
                    "folder": str(folder),
                    "method": method,
                }
                found = run_job(job, arguments, memory_limit_mb=LIMIT_MB)
                row |= {"seconds": found.seconds, "peak_mb": found.peak_mb, "error": found.error}
                if found.error:
                    failed.add((tool, method))
            rows.append(row)
            shown = row["error"] or f"{row['peak_mb']:.0f} MB"
            print(f"  memory {tool} {method} {count}: {shown}", flush=True)
    save("memory", settings, rows, case=case.name, limit_mb=LIMIT_MB)
