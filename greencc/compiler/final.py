"""The measurement that counts: the form that is shipped beside the original, or the next safer one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.certify import ANOTHER, Held, another
from greencc.compiler.contender import Contender
from greencc.compiler.data import Splits
from greencc.compiler.forms import Form
from greencc.compiler.measurement import Measurement, measure_variants, unchanged
from greencc.compiler.memo import MemoEngine
from greencc.compiler.placing import folder_size, model_size
from greencc.compiler.planning.plan import Plan
from greencc.compiler.session import Session
from greencc.compiler.variant import Variant
from greencc.core.data import Feeds
from greencc.core.engine import Device
from greencc.core.report import Accuracy
from greencc.report.figures import change_text

# Other points that are measured in the end.
_OTHERS = 3


@dataclass(frozen=True)
class Final:
    """The form that is shipped, and everything that is known of it."""

    contender: Contender
    accuracy: Accuracy
    device: Device
    measured: Measurement

    @property
    def form(self) -> Form:
        return self.contender.form


def measure_final(
    session: Session,
    path: Path,
    source: ir.Model,
    baseline: MemoEngine,
    splits: Splits,
    held: list[Held],
    feeds: list[Feeds],
    plan: Plan | None,
) -> Final:
    """Measure the preferred form beside the baseline; one that turns out slower gives way to the next safer one.

    One that does not keep the budget gives way to the best of the plan's other points that kept it so far, where that
    is better than the next safer one or nothing else is left; after `_OTHERS` of these only to safer ones.

    Raises:
        LimitError: What was planned does not keep the budget in the end.
    """
    device = session.target.device()
    size = model_size(path, source)
    # The safest of what was worse than the original, but keeps what was asked for.
    kept: Final | None = None
    others = 0
    while True:
        contender, accuracy = held[-1].contender, held[-1].accuracy
        form = contender.form
        with session.phase("measuring"):
            measured = measure_variants(
                session,
                device,
                Variant(path, baseline.engine, source, size, accuracy.baseline),
                Variant(
                    form.artifact,
                    contender.timed,
                    form.model,
                    size if form.artifact == path else folder_size(form.artifact.parent),
                    accuracy.artifact,
                    form.target,
                ),
                feeds,
                mode=None if plan is None else plan.mode_of(contender),
            )
        if form.artifact == path:
            measured = unchanged(measured)
        if session.options.by_name:
            _warn_without_gain(session, measured)
        if plan is not None:
            problem = plan.objection(measured)
        else:
            slower = measured.ratio.latency.high < 1.0
            problem = "it measured slower than the original in the end" if slower else None
        final = Final(contender, accuracy, device, measured)
        if problem is None:
            return final
        if plan is None or plan.keeps(measured):
            kept = final
        held.pop()
        if plan is not None and not plan.keeps(measured) and others < _OTHERS:
            others += 1
            held += another(session, plan.others(held[-1].contender if held else None), baseline, splits)
        if not held:
            if kept is not None and (plan is None or plan.keeps(kept.measured)):
                return kept
            assert plan is not None
            raise plan.out_of_reach(f"{form.name}: {problem}")
        contender.place = f"not kept: {problem}"
        if held[-1].contender.place != ANOTHER:
            held[-1].contender.place = "the best form that was not worse in the end"
        session.warn(f"{form.name} was not kept: {problem}")


def _warn_without_gain(session: Session, measured: Measurement) -> None:
    """What was asked for by name is kept for better or worse: say so where it does not pay."""
    ratio = measured.ratio.latency
    if measured.conditions.get("clean") is False or ratio.low > 1.0:
        return
    if session.estimator is not None and ratio.value > 1.0:
        return
    found = change_text(ratio, "faster", "slower", "no speed-up shown")
    session.warn(f"the passes that were asked for did not make the model faster here: {found}")
