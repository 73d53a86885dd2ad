"""Tuning within a compile: every model that is built has its kernels tuned first, within the time of all together.

The original comes first, so that it is measured with kernels as good as those of what is made of it: a gain that
tuning brings to both is no gain of compression. Where integers are to come, floats leave half of the time to them. What
models have in common is tuned once.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from greencc.compiler.named import named_passes, recipe_precision
from greencc.compiler.options import Precision
from greencc.core.report import ModelTuning
from greencc.core.tuning import Tunable, tunable

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.compiler.options import CompileOptions
    from greencc.compiler.session import Session
    from greencc.core.engine import Target

# Starting takes seconds: less time than this is not worth it.
_SHORTEST_SECONDS = 5.0
_FLOAT_SHARE = 0.5


def check_tuning(options: CompileOptions, target: Target) -> None:
    """Make sure that the target can be tuned, where that is asked for.

    Raises:
        UnavailableError: It cannot.
    """
    if options.tune is not None:
        tunable(target)


def kept_schedules(target: Target) -> tuple[str, ...]:
    """What is wrong with the schedules that earlier runs have kept for a target."""
    return target.check_schedules() if isinstance(target, Tunable) else ()


def tune(session: Session, model: ir.Model, name: str) -> None:
    """Tune the kernels of a model that is about to be built, with what is left of the time.

    Args:
        session: Its options say how long; what was done is added to its `tuning`.
        model: As for `Target.lower`.
        name: Of the form.
    """
    seconds = session.options.tune
    if seconds is None:
        return
    spent = sum(each.seconds for each in session.tuning)
    floats = _expects_integers(session.options) and not _has_integers(model)
    left = seconds * (_FLOAT_SHARE if floats else 1.0) - spent
    if left < (_SHORTEST_SECONDS if session.tuning else 0.0):
        return
    with session.phase("tuning"):
        found = tunable(session.target).tune(model, left, session.progress)
    facts = asdict(found)
    failed, warnings = facts.pop("failed"), facts.pop("warnings")
    if found.trials or not session.tuning:
        session.tuning.append(ModelTuning(name, **facts))
    for warning in warnings:
        session.warn(warning)
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        session.warn(f"a schedule is not used: {failed[0]}{more}")


def _expects_integers(options: CompileOptions) -> bool:
    """Whether integer forms may be built: by the passes that are named, else by the precision and the data."""
    steps = named_passes(options)
    wanted = options.precision if steps is None else recipe_precision(steps)
    if wanted is Precision.AUTO:
        return options.calibration is not None
    return wanted.needs_calibration or wanted is Precision.INT8_DYNAMIC


def _has_integers(model: ir.Model) -> bool:
    """Whether integers are computed with."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or node.op_type.startswith("QLinear")
        for node in model.graph.all_nodes()
    )
