"""Peak memory of loading and running an artifact, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greencc.core.data import Feeds
from greencc.core.engine import Target

_RUNS = 3


@dataclass(frozen=True)
class PeakMemory:
    """`megabytes` (10^6 bytes) above the interpreter and the runtime, or None with the `reason`."""

    megabytes: float | None
    reason: str | None = None


def peak_memory(
    target: Target, artifact: Path, feeds: Feeds, *, runs: int = _RUNS, timeout_seconds: float = 120.0
) -> PeakMemory:
    """Peak resident memory that an artifact adds to a process that has the runtime loaded.

    A fresh process is the only honest way: in this one, memory of the compile would be counted or reused.
    """
    with tempfile.TemporaryDirectory(prefix="greencc-memory-") as folder:
        archive = Path(folder) / "feeds.npz"
        # A mapping, because an input may be called "file", which is np.savez's own parameter.
        _save(archive, feeds)
        command = target.memory_command(artifact.absolute(), archive, runs)
        if command is None:
            return PeakMemory(None, f"target {target.name!r} cannot measure memory")
        try:
            finished = subprocess.run(
                list(command),
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
                cwd=folder,
                env=_environment(),
            )
        except subprocess.TimeoutExpired:
            return PeakMemory(None, f"the process did not finish within {timeout_seconds:g} s")
        except OSError as error:
            return PeakMemory(None, f"the process could not be started: {error}")
    return _parse(finished)


def _save(archive: Path, feeds: Feeds) -> None:
    import zipfile

    with zipfile.ZipFile(archive, "w") as stream:
        for name, array in feeds.items():
            with stream.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def _environment() -> dict[str, str]:
    """The child must find the same greencc, also where it is imported from a checkout."""
    home = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{path}" if path else home}


def _parse(finished: subprocess.CompletedProcess[str]) -> PeakMemory:
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines()
        return PeakMemory(
            None, lines[-1] if lines else f"the process ended with status {finished.returncode}"
        )
    try:
        numbers = json.loads(finished.stdout)
        used = int(numbers["peak_bytes"]) - int(numbers["baseline_bytes"])
    except (ValueError, KeyError, TypeError):
        return PeakMemory(None, f"the process printed {finished.stdout[:200]!r}")
    return PeakMemory(max(0, used) / 1e6)
