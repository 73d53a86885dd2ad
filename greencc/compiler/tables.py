"""The error table of a way to quantize: built and measured on the planning split (`greencc.compiler.sensitivity`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from greencc.compiler.data import Splits
from greencc.compiler.evaluation import Evaluator
from greencc.compiler.forms import FormBuilder
from greencc.compiler.groups import Group
from greencc.compiler.memo import MemoEngine
from greencc.compiler.sensitivity import ErrorTable, GroupError, Quantizer, facts_key
from greencc.compiler.session import Deadline, Session
from greencc.compiler.slices import make_slice
from greencc.compiler.variants import Variant
from greencc.core.cache import cache_key
from greencc.core.model import digest, infer_shapes
from greencc.core.passes import RewriteLog
from greencc.core.progress import silent
from greencc.core.recipe import options_of

SMALL_SLICE, LARGE_SLICE = 16, 128


def error_table(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    splits: Splits,
    variant: Variant,
    groups: Sequence[Group],
    deadline: Deadline,
) -> list[GroupError] | None:
    """The error table of a variant, on the planning split; None when time ran out."""
    prepared, _ = builder.prepared(variant.prepare)
    # Rounding and bias are repaired in the form that ships; the table is about what quantizing a group does.
    step = variant.plain
    ctx = replace(builder.context, progress=silent)

    def build(excluded: frozenset[str]) -> ir.Model:
        model = prepared.clone()
        replace(step, exclude=tuple(sorted(excluded))).apply(model, replace(ctx, rewrites=RewriteLog()))
        infer_shapes(model)
        return model

    assert ctx.calibration is not None
    facts = facts_key(ctx.capabilities)
    key = cache_key(digest(prepared), ctx.calibration.digest(), _plain(options_of(step)), facts)
    return measure_table(session, baseline, splits, Quantizer(build, key), groups, deadline)


def measure_table(
    session: Session,
    baseline: MemoEngine,
    splits: Splits,
    quantizer: Quantizer,
    groups: Sequence[Group],
    deadline: Deadline,
) -> list[GroupError] | None:
    """The error table of any quantizer, on the planning split; None when time ran out."""
    table = ErrorTable(Evaluator.of(session), quantizer, session.progress)
    with session.phase("sensitivity"):
        small = make_slice(baseline.engine, splits.planning, SMALL_SLICE)
        large = make_slice(baseline.engine, splits.planning, LARGE_SLICE)
        return table.measure(groups, small, large, deadline)


def _plain(options: Mapping[str, object]) -> dict[str, str]:
    return {name: repr(value) for name, value in options.items()}
