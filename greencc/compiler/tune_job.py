"""The job of `greencc tune`: a model's kernels are tuned, and nothing is compiled."""

from __future__ import annotations

from pathlib import Path

from greencc.compiler.options import MAX_SEARCH_SECONDS
from greencc.compiler.session import available_target
from greencc.core.errors import UsageError
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.progress import Progress, silent
from greencc.core.tuning import TuningReport, tunable


def tune_model(
    model: Path, target: str = "tvm-cpu", seconds: float = 600.0, *, progress: Progress = silent
) -> TuningReport:
    """Tune the kernels of a model as it is; every later compile of a model with the same kernels gains.

    Args:
        model: An ONNX file.
        target: The target and its options: schedules hold for a number of threads.
        seconds: To spend at most. An interruption keeps what was found.
        progress: Shows how far it is.

    Raises:
        UsageError: The target is unknown, or the time is none.
        UnavailableError: The target cannot be tuned here.
        InputError: The model cannot be read or lowered.
    """
    if not 0 < seconds <= MAX_SEARCH_SECONDS:
        raise UsageError(
            f"the time to tune is {seconds:g} s",
            hint=f"give more than 0 and up to {MAX_SEARCH_SECONDS:,} s, such as 10m",
        )
    chosen = tunable(available_target(target))
    source = load_model(model)
    ensure_names(source)
    return chosen.tune(source, seconds, progress)
