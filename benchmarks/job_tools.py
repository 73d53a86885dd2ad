"""What jobs share: feeds, the clock, peak memory. It imports nothing heavy."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Feeds = dict[str, Any]


def feeds(archive: Any, samples: int) -> Iterator[Feeds]:
    """Feeds of one sample each, in order, as the peers' examples give them."""
    arrays = {name: archive[name] for name in archive.files if name != "labels"}
    count = len(next(iter(arrays.values())))
    for index in range(min(samples, count)):
        yield {name: values[index : index + 1] for name, values in arrays.items()}


def has_vnni() -> bool:
    """Whether the CPU adds up products of 8-bit integers in 32 bits."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return bool(re.search(r"avx512_vnni|avx_vnni|asimd", text))


@dataclass
class Clock:
    """Starts once a job has imported what it needs.

    Attributes:
        wasted: Seconds of attempts that a peer's documentation would have saved: not counted against it.
        imported_mb: Peak memory when the clock was started, i.e. what the imports alone need.
    """

    started: float = field(default_factory=time.perf_counter)
    imported_mb: float = field(default_factory=lambda: peak_mb())
    wasted: float = 0.0

    def discard(self) -> None:
        """What was done since the start does not count."""
        now = time.perf_counter()
        self.wasted += now - self.started
        self.started = now

    def result(self, artifact: Path, **more: Any) -> Result:
        """What a build job returns."""
        return {
            "artifact": str(artifact),
            "job_seconds": time.perf_counter() - self.started,
            "wasted_seconds": self.wasted,
            "imported_mb": self.imported_mb,
            **more,
        }


def peak_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes).

    Linux: `VmHWM`, because `ru_maxrss` still shows the peak of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
