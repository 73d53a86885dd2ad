"""`greencc inspect --sensitivity`: how much each layer suffers in each precision, and what it saves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.contender import Contender, contender
from greencc.compiler.costs import EnergyKind, GroupCost, cost_kind, group_costs
from greencc.compiler.data import Splits, open_splits, whole_batches
from greencc.compiler.forms import FormBuilder, weight_only
from greencc.compiler.groups import Group, quantized_groups
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.sensitivity import GroupError, Quantizer, facts_key
from greencc.compiler.session import Deadline, Session, available_target
from greencc.compiler.tables import error_table, measure_table
from greencc.compiler.variants import variants
from greencc.core.cache import cache_key
from greencc.core.describe import input_specs
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.core.graph import ensure_names
from greencc.core.model import digest, infer_shapes, load_model
from greencc.core.passes import RewriteLog
from greencc.core.progress import Progress, silent
from greencc.passes._linear_view import linear_view
from greencc.passes.quantize_weights import QuantizeWeights

TABLE_PRECISIONS = (Precision.INT8, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)


@dataclass(frozen=True)
class SensitivityRow:
    """One layer. `errors` and `among` are by precision; see `GroupError`. Costs are of INT8; None: not measured.

    Millijoules are estimates: `SensitivityTable.energy` says which.
    """

    name: str
    op_type: str
    errors: dict[str, float]
    among: dict[str, float]
    saved_us: float | None
    saved_mj: float | None
    saved_mj_low: float | None = None
    saved_mj_high: float | None = None

    @property
    def worst(self) -> float:
        return max((*self.errors.values(), *self.among.values()), default=0.0)


@dataclass(frozen=True)
class SensitivityTable:
    """The error table of a model, layers in graph order.

    Attributes:
        rows: One per layer.
        precisions: The columns.
        samples: Held-out samples behind the closer look.
        warnings: What was left out, and why.
        energy: What the millijoules are; None: there are none.
    """

    rows: tuple[SensitivityRow, ...]
    precisions: tuple[str, ...]
    samples: int
    warnings: tuple[str, ...]
    energy: EnergyKind | None = None


def sensitivity(
    path: Path,
    options: CompileOptions,
    precisions: Sequence[Precision] = (Precision.INT8, Precision.INT4_WEIGHTS),
    progress: Progress = silent,
) -> SensitivityTable:
    """Measure the error table of a model.

    Args:
        path: The model.
        options: Target, data, metric, time limit and cache; `precision` is ignored.
        precisions: Of `TABLE_PRECISIONS`.
        progress: Shows how far it is.

    Raises:
        UsageError: There are no calibration data, or a precision has no table.
        InputError: The model or the data are bad, or no layer can be quantized.
        UnavailableError: The time limit was too short.
    """
    for precision in precisions:
        if precision not in TABLE_PRECISIONS:
            known = ", ".join(item.value for item in TABLE_PRECISIONS)
            raise UsageError(
                f"there is no sensitivity table for {precision.value}", hint=f"choose from {known}"
            )
    if options.calibration is None and options.evaluation is None:
        raise UsageError("a sensitivity table needs data", hint="pass --calibration DATA")
    target = available_target(options.target)
    with tempfile.TemporaryDirectory(prefix="greencc-sensitivity-") as folder:
        session = Session(replace(options, precision=Precision.INT8), target, Path(folder), progress)
        source = load_model(path)
        ensure_names(source)
        splits = open_splits(session, input_specs(source))
        baseline = MemoEngine(target.open(path))
        try:
            return _Table(session, source, splits, baseline).measure(precisions)
        finally:
            baseline.close()
            session.close()


class _Table:
    def __init__(self, session: Session, source: ir.Model, splits: Splits, baseline: MemoEngine) -> None:
        self.session, self.splits, self.baseline = session, splits, baseline
        self.batch = input_specs(source)[0].batch if source.graph.inputs else None
        self.builder = FormBuilder(session, source, splits, splits.samples(baseline, self.batch))
        self.deadline = Deadline(session.options.search_seconds)

    def measure(self, precisions: Sequence[Precision]) -> SensitivityTable:
        groups: dict[str, Group] = {}
        found: dict[str, dict[str, GroupError]] = {}
        costs: dict[str, GroupCost] = {}
        for precision in precisions:
            if precision is Precision.INT8:
                rows, costs = self._static()
            else:
                rows = self._weights(precision)
            if rows is None:
                raise UnavailableError(
                    f"the table did not end within {self.session.options.search_seconds:g} s",
                    hint="raise --search-time; what was measured is kept and not measured again",
                )
            found[precision.value] = {row.group.name: row for row in rows}
            for row in rows:
                groups.setdefault(row.group.name, row.group)
        if not groups:
            raise InputError("no layer of the model can be quantized for this target")
        order = {str(node.name): index for index, node in enumerate(self.builder.cleaned().model.graph)}
        samples = max(row.samples for table in found.values() for row in table.values())
        return SensitivityTable(
            rows=tuple(
                _row(group, found, costs.get(group.name))
                for group in sorted(groups.values(), key=lambda group: order.get(group.name, len(order)))
            ),
            precisions=tuple(precision.value for precision in precisions),
            samples=samples,
            warnings=tuple(self.session.warnings),
            energy=cost_kind(self.session.target.device()) if costs else None,
        )

    def _static(self) -> tuple[list[GroupError] | None, dict[str, GroupCost]]:
        model = self.builder.cleaned().model
        variant = next(variants(self.session.options.effort, self.builder.context.capabilities, model))
        form = self.builder.static(variant.name, variant.prepare, variant.plain)
        item: Contender | None = None
        if not form.applied:
            self.session.warn("nothing could be quantized to INT8")
            return [], {}
        item = contender(self.session, form, self.baseline, self.splits)
        item.engine.close()
        groups = quantized_groups(form.qdq)
        rows = error_table(
            self.session, self.builder, self.baseline, self.splits, variant, groups, self.deadline
        )
        cleaned = self.builder.cleaned()
        # The table needed a whole batch, so there is one.
        feeds = whole_batches(self.splits.planning, self.batch or 1, 1)
        costs = group_costs(
            self.session, groups, (cleaned.model, cleaned.artifact), (form.qdq, form.artifact), feeds[0]
        )
        return rows, costs

    def _weights(self, precision: Precision) -> list[GroupError] | None:
        """Weight-only forms: every layer with a constant weight is a group of its own."""
        cleaned = self.builder.cleaned().model
        groups = [
            Group(str(node.name), node.op_type, (str(node.name),))
            for node in cleaned.graph
            if linear_view(node) is not None
        ]
        steps = weight_only(precision, calibrated=False)[0]
        ctx = replace(self.builder.context, progress=silent)

        def build(excluded: frozenset[str]) -> ir.Model:
            model = cleaned.clone()
            for step in steps:
                if isinstance(step, QuantizeWeights):
                    step = replace(step, exclude=tuple(sorted(excluded)))
                step.apply(model, replace(ctx, rewrites=RewriteLog()))
            infer_shapes(model)
            return model

        key = cache_key(digest(cleaned), repr(steps), facts_key(ctx.capabilities))
        return measure_table(
            self.session, self.baseline, self.splits, Quantizer(build, key), groups, self.deadline
        )


def _row(group: Group, found: dict[str, dict[str, GroupError]], cost: GroupCost | None) -> SensitivityRow:
    rows = {precision: table[group.name] for precision, table in found.items() if group.name in table}
    return SensitivityRow(
        group.name,
        group.op_type,
        {precision: row.alone for precision, row in rows.items()},
        {precision: row.among for precision, row in rows.items() if row.among is not None},
        None if cost is None else cost.saved_us,
        None if cost is None else cost.saved_mj,
        None if cost is None or cost.saved is None else cost.saved.low,
        None if cost is None or cost.saved is None else cost.saved.high,
    )
