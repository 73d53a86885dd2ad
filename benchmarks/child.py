"""Run one job in a fresh process and tell how long it took and how much memory it needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT

TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: Wall time from its start to its end, imports included.
        peak_mb: Peak resident memory (10^6 bytes), None where the job failed.
        result: What the job returned, with `import_seconds` and `job_seconds`.
        error: Why it failed, or None.
    """

    seconds: float
    peak_mb: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def run_job(
    job: str,
    arguments: dict[str, Any],
    *,
    memory_limit_mb: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
    python: str = sys.executable,
) -> Run:
    """Run `benchmarks.jobs.JOBS[job](**arguments)` in a process of its own, in an empty folder.

    Args:
        job: Its name.
        arguments: JSON.
        memory_limit_mb: Of data memory; a job that wants more fails with MemoryError rather than filling the machine.
        timeout: Seconds after which it is stopped.
        python: The interpreter, for peers with an environment of their own.
    """
    with tempfile.TemporaryDirectory(prefix="greencc-bench-") as folder:
        answer = Path(folder) / "answer.json"
        request = json.dumps({"job": job, "arguments": arguments, "memory_limit_mb": memory_limit_mb})
        command = [python, "-m", "benchmarks.jobs", request, str(answer)]
        # Some peers leave files where they are started.
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        seconds, finished = execute(command, timeout, scratch)
        if finished is None:
            return Run(seconds, error=f"took more than {seconds:g} s")
        if finished.returncode != 0 or not answer.is_file():
            return Run(seconds, error=first_error(finished.stderr) or f"exit status {finished.returncode}")
        told = json.loads(answer.read_text(encoding="utf-8"))
    return Run(seconds, told.pop("peak_mb"), told)


def execute(
    command: Sequence[str], timeout: float, folder: Path = ROOT
) -> tuple[float, subprocess.CompletedProcess[str] | None]:
    """Run a command in a folder; return its wall time in seconds and what became of it, None when it took too long."""
    start = time.perf_counter()
    try:
        finished = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            cwd=folder,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        return timeout, None
    return time.perf_counter() - start, finished


def environment() -> dict[str, str]:
    """The surroundings of every measured process: no telemetry, no colours, this checkout first."""
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT),
        "NO_COLOR": "1",
        "OPENVINO_TELEMETRY": "0",
        "OLIVE_DISABLE_TELEMETRY": "1",
        "NNCF_CI": "1",
    }


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def first_error(text: str) -> str:
    """The error and its hint, without the warnings that follow and what was printed before."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("greencc: "):
            found = [line.removeprefix("greencc: ").strip()]
        elif found and line.startswith("  ") and not line.lstrip().startswith("Warning:"):
            found.append(line.strip())
        elif found:
            break
    return "; ".join(found)[:400] or last_line(text)
