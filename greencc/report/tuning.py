"""How tuned kernels are told of."""

from __future__ import annotations

from greencc.core.report import ModelTuning


def tuning_text(found: ModelTuning) -> str:
    """One model's, such as ``Tuning of int8: 1.35x faster kernels, ...``."""
    gain = found.default_us / found.tuned_us if found.tuned_us > 0.0 else 1.0
    return (
        f"Tuning of {found.name}: {found.trials} schedules tried in {found.seconds:.0f} s; "
        f"{found.faster} of {found.kernels} kernels have a faster one, {found.complete} have none left to try; "
        f"all kernels together, each measured alone: {gain:.2f}x faster than without tuning"
    )
