"""Which run times a compile waits for: those that generate code take seconds for every form, others none."""

from __future__ import annotations

import math

import onnx_ir as ir

from greencc.compiler.options import Effort
from greencc.core.engine import Target


def not_waited_for(target: Target, model: ir.Model, effort: Effort, left: float = math.inf) -> str | None:
    """Why a form is not built for a run time that was not asked for by name, or None where it is.

    Args:
        target: The run time.
        model: Of the form.
        effort: Of the compile.
        left: Seconds of the time budget that are left.
    """
    needed = target.build_seconds(model)
    if needed == 0.0:
        return None
    if effort is Effort.QUICK:
        return (
            f"a compile with --effort quick waits for no code to be generated (-t {target.name} asks for it)"
        )
    if needed > left:
        return f"to generate its code takes about {needed:.0f} s, and {max(left, 0.0):.0f} s of --time-budget are left"
    return None
