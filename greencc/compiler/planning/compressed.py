"""Forms of the whole model with less work: pruned or factorised as a whole, without a search layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from greencc.compiler.contender import Contender, contender
from greencc.compiler.data import Splits
from greencc.compiler.forms import PLAN_RANK, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.session import Deadline, Session
from greencc.core.errors import GreenccError
from greencc.core.passes import Pass
from greencc.passes._decompose_family import RankRule
from greencc.passes._sparsity_patterns import Pattern
from greencc.passes.decompose import Decompose
from greencc.passes.prune import Prune
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.sparsify import Sparsify

# Of the time budget: forms of the whole model are a side line of it.
_SHARE = 0.25


@dataclass(frozen=True)
class _Cut:
    """One way to make a model smaller: its name, what it does in words, and the pass."""

    name: str
    summary: str
    step: Pass


_CUTS = (
    _Cut("pruned-25", "a quarter of the multiply-accumulates pruned", Prune(ratio=0.25, measured=False)),
    _Cut("pruned-50", "half of the multiply-accumulates pruned", Prune(ratio=0.5, measured=False)),
    _Cut(
        "factored-30",
        "layers factorised, 30% of the multiply-accumulates saved",
        Decompose(rank=RankRule.RATIO, ratio=0.3, measured=False),
    ),
)
# Only where the target has kernels for it. Estimates know no rates of such kernels: only a measurement shows a gain.
_SPARSE = _Cut("sparse-2-4", "two of every four weights zero", Sparsify(pattern=Pattern.TWO_OF_FOUR))


def compressed_forms(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    splits: Splits,
    integer: Contender | None,
) -> Iterator[Contender]:
    """Forms with less work, in INT8 where `integer` is, judged on the planning split; none without real data.

    What cannot be cut is left out, and so is what would take more than its share of the time budget, by how long the
    cuts before took.
    """
    if splits.calibration is None or splits.planning.synthetic:
        return
    count = splits.planning.count
    if count * session.options.max_drop < 1.0:
        session.warn(
            f"pruned and factorised forms were not considered: {count} samples to plan on cannot show a loss of "
            f"{session.options.max_drop:.3g} (give more with --eval)"
        )
        return
    deadline, longest = Deadline(_SHARE * session.options.time_budget), 0.0
    prepare: tuple[Pass, ...] = ()
    quantize: QuantizeInt8 | None = None
    if integer is not None and integer.form.applied:
        prepare, quantize = _quantization(builder, integer.form.passes)
    sparse = Pattern.TWO_OF_FOUR.value in session.target.capabilities().sparse_kernels
    for number, cut in enumerate((*_CUTS, _SPARSE) if sparse else _CUTS):
        if deadline.left < longest:
            session.warn(f"{cut.name} was not considered: it would take too long (raise --time-budget)")
            continue
        began = deadline.elapsed
        name = f"{cut.name}-int8" if quantize is not None else cut.name
        steps = (cut.step, *prepare)
        try:
            builder.restructured(steps, integers=quantize is not None)
            form = builder.planned(name, steps, quantize, ())
            item = contender(session, form, baseline, splits)
        except GreenccError as error:
            session.warn(f"{name} was not considered: {error.message}")
            continue
        finally:
            longest = max(longest, deadline.elapsed - began)
        form.rank = PLAN_RANK + number
        item.reason = cut.summary + (", INT8" if quantize is not None else "")
        yield item


def _quantization(builder: FormBuilder, passes: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], QuantizeInt8]:
    """What a static INT8 form did between the clean-up and the quantization, and the quantization itself."""
    place, quantize = next(
        (place, step) for place, step in enumerate(passes) if isinstance(step, QuantizeInt8)
    )
    start = builder.passes_of((), quantize, ()).index(quantize)
    return passes[start:place], quantize
