"""Run an artifact in a fresh process and print how much memory it took.

``python -m greencc.targets._child SPEC ARTIFACT FEEDS.npz RUNS`` prints one line of JSON:
``{"baseline_bytes": ..., "peak_bytes": ...}``. The baseline is the resident memory once the interpreter and the runtime
are imported; the peak is the highest since. Both come from `/proc/self/status`, because `getrusage` still shows
the peak of the process that forked this one.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from greencc.core.errors import GreenccError, UnavailableError
from greencc.targets import make_target

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def main(arguments: list[str]) -> int:
    """Print the JSON line; problems go to standard error with the error's exit code."""
    spec, artifact, feeds_file, runs = arguments
    try:
        target = make_target(spec)
        target.versions()
        with np.load(feeds_file, allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
        baseline, exact = _resident("VmRSS"), _reset_peak()
        before = _resident("VmHWM")
        engine = target.open(Path(artifact))
        for _ in range(int(runs)):
            engine.run(feeds)
        peak = _resident("VmHWM")
        engine.close()
        if not exact and peak <= before:
            raise UnavailableError("the peak of this process cannot be told from that of its start")
    except GreenccError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(json.dumps({"baseline_bytes": baseline, "peak_bytes": max(peak, baseline)}) + "\n")
    return 0


def _resident(key: str) -> int:
    try:
        match = re.search(rf"^{key}:\s*(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError as error:
        raise UnavailableError(f"cannot read {_STATUS}: {error}") from error
    if match is None:
        raise UnavailableError(f"{_STATUS} has no {key}")
    return int(match[1]) * 1024


def _reset_peak() -> bool:
    """Set VmHWM back to VmRSS; False where the kernel does not allow it."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
