"""Repair a compressed model without training: refit its layers, one after the other, to the original's activations.

Channels were cut, layers factorised or blocks removed. A layer that lost inputs can make up for most of it with the
inputs it has left: its weights and bias are found anew by ridge regression (`_ridge`) so that it gives what the
original model gives there. It reads the activations of the compressed model with everything before it repaired already,
so it also makes up for what is left of earlier errors (He et al. 2017, arXiv 1707.06168, sections 3.2 and 3.3, which
names both; GRAIL 2026). Where the output is added to another branch, the target is the sum of the original less what
the other branch gives now (section 3.3 there, "multi-branch enhancement"): a residual network has no other place
where errors of the shortcut could be mended.

Layers that do not follow each other share a pass over the data. Longer chains than there are passes are divided into as
many stretches; in a stretch layers do not see each other's repair.

A layer of a great many columns would need a huge matrix. There a map between input channels is sought, B = cov(x', x)
cov(x, x)^-1 for the channels x' of the original and x of what is left, and its weights become W B for the original
W, tap by tap (GRAIL).

A refit stays only if it lowers the layer's error on samples kept aside (`_repair_split`); what so many passes may look
at is in `_repair_budget`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.blas import single_threaded
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.core.graph import Names
from greencc.core.memory import give_back
from greencc.core.passes import Context, Finding, FindingKind
from greencc.core.progress import silent
from greencc.core.shapes import bind_dims
from greencc.passes._capture import graph_values, require_data
from greencc.passes._linear_view import linear_view
from greencc.passes._prune_costs import bound_together
from greencc.passes._quantized_pair import Side, run_both
from greencc.passes._repair_budget import affordable_samples, alike, run_together, stages_that_fit
from greencc.passes._repair_order import Join, Refit, Source, Step, plan_rounds
from greencc.passes._repair_rows import Channelwise, Collector, Task
from greencc.passes._repair_select import kept_outputs, layers_after_cut
from greencc.passes._repair_split import spread, where_judged
from greencc.passes._repair_weights import Weighted, weight_matrix, weighted
from greencc.passes._resume import Resume, value_bytes
from greencc.passes._ridge import solve

Float64 = NDArray[np.float64]
__all__ = ["Join", "Refit", "RefitOptions", "Source", "kept_outputs", "layers_after_cut", "refit"]

RULE = "refit"
_LABEL = "Repairing"
_MIN_ROWS = 4096
# Of the values kept of both models, so that a pass need not start at the inputs.
_KEPT_BYTES = 96 << 20


@dataclass(frozen=True)
class RefitOptions:
    """Options of the repair.

    Attributes:
        ridge: Damping, as a share of the mean diagonal of the inputs' covariance.
        rounds: Passes over the data at most, as far as memory allows.
        samples: Samples looked at at most.
        work: Multiply-accumulates spent on running both models at most, in 1e12: where the models are large, fewer
            samples are looked at (but no fewer than 16).
        rows: Rows per column to learn from.
        max_columns: Layers with more columns get a map between input channels.
        memory_mb: Of the matrices of one pass, in MiB.
        batch: Samples run at once at most.
    """

    ridge: float = 1e-3
    rounds: int = 12
    samples: int = 512
    work: float = 2.5
    rows: int = 16
    max_columns: int = 4608
    memory_mb: int = 192
    batch: int = 32

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise UsageError(f"repair: ridge is {self.ridge}", hint="give 0 or more, such as 0.001")
        if not self.work > 0:
            raise UsageError(f"repair: work is {self.work}", hint="give a positive number, such as 2.5")
        for name in ("rounds", "samples", "rows", "max_columns", "memory_mb", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"repair: {name} is {getattr(self, name)}", hint="give at least 1")


def refit(
    original: ir.Model,
    compressed: ir.Model,
    layers: Sequence[Refit],
    ctx: Context,
    options: RefitOptions | None = None,
) -> list[Finding]:
    """Change weights and biases of `compressed` in place.

    Args:
        original: It is left unchanged.
        compressed: Its values keep the names they have in the original where they stand for the same.
        layers: What to repair, in any order.
        ctx: Gives the calibration data and the engines.
        options: Of the repair.

    Returns:
        What it brought, and which layers were left as they were and why.

    Raises:
        InputError: There is no calibration data, or it or an activation holds NaN or infinity.
    """
    repair = _Repair(original, compressed, ctx, options or RefitOptions())
    with single_threaded():
        return repair.run(layers)


class _Repair:
    def __init__(self, original: ir.Model, compressed: ir.Model, ctx: Context, options: RefitOptions) -> None:
        self.original, self.compressed, self.options = original, compressed, options
        self.source = spread(require_data(ctx), options.samples)
        self.ctx = ctx
        self.batch = options.batch
        self.names = Names(compressed)
        self.original_values = {str(value.name) for value in graph_values(original.graph)}
        self.values = {str(value.name) for value in graph_values(compressed.graph)}
        self.findings: list[Finding] = []
        # By the identity of the model.
        self.resume: dict[int, Resume] = {}
        # Errors on the rows that judge of the layers that were refit, as shares of the outputs' power.
        self.gains: list[tuple[float, float]] = []

    def run(self, layers: Sequence[Refit]) -> list[Finding]:
        nodes = {str(node.name): node for node in self.compressed.graph}
        wanted = {item.node: item for item in layers}
        problems = []
        for name, item in wanted.items():
            reason = self._unusable(item, nodes.get(name))
            if reason is None:
                problems.append(item)
            else:
                self._note("refused", name, f"it is not refit: {reason}")
        planned = plan_rounds(self.compressed, problems, self.options.rounds)
        memory, columns = self.options.memory_mb << 20, self.options.max_columns
        stages = [
            stage
            for group in planned
            for stage in stages_that_fit(group, nodes, limit=memory, max_columns=columns)
        ]
        limit, self.batch = self._budget(stages)
        self.source = spread(self.source.source, limit)
        for index, stage in enumerate(self.ctx.progress(stages, label=_LABEL, total=len(stages))):
            tasks = [task for item in stage if (task := self._task(item, nodes[item.item.node])) is not None]
            waiting = [step.item for later in stages[index:] for step in later]
            # What came before, scores or the last pass, leaves freed matrices that new ones do not fit into.
            give_back()
            collectors = self._collect(tasks, waiting)
            for task in tasks:
                # Nobody else holds it: the matrices go with it, and not when the next pass has made its own.
                if not self._repair(task, collectors.pop(0)):
                    return self.findings
        if self.gains:
            before, after = (float(np.mean(part)) for part in zip(*self.gains, strict=True))
            message = (
                f"{len(self.gains)} of {len(wanted)} layers were refit: their error is {after:.1%} of their outputs' "
                f"variance on average, {before:.1%} before, {where_judged(self.source.judging)}"
            )
            self.findings.append(Finding("note", message, rule=RULE))
        return self.findings

    def _budget(self, stages: Sequence[Sequence[Step]]) -> tuple[int, int]:
        """Samples that so many passes may look at, and how many to run at once."""
        options, feeds = self.options, self.ctx.samples
        models = self.original, self.compressed
        # Where the batch is fixed the work is that of all its samples.
        together = bound_together(feeds)
        bound = models
        if feeds:
            sizes = {name: values.shape for name, values in feeds[0].items()}
            bound = bind_dims(self.original, sizes), bind_dims(self.compressed, sizes)
        samples = min(options.samples, affordable_samples(bound, feeds, len(stages), 1e12 * options.work))
        inferences = min(samples, self.source.count) / together
        for model, sized in zip(models, bound, strict=True):
            sizes_of = {name: inferences * size for name, size in value_bytes(sized).items()}
            build = self.ctx.observe or self.ctx.build
            self.resume[id(model)] = Resume(model, build, sizes_of, _KEPT_BYTES // 2)
        batch = run_together(bound[0], together, options.batch)
        return samples, alike(stages, *models, batch=batch, max_columns=options.max_columns)

    def _note(self, kind: FindingKind, name: str, message: str) -> None:
        self.findings.append(Finding(kind, f"{name!r}: {message}", name, RULE))

    def _unusable(self, item: Refit, node: ir.Node | None) -> str | None:
        if node is None:
            return "there is no such node"
        found = weighted(node)
        if isinstance(found, str):
            return found
        targets = [item.target] if item.join is None else [item.target, item.join.total]
        missing = [name for name in targets if name not in self.original_values]
        if missing:
            return f"the original model does not compute {missing[0]!r}"
        if item.join is not None and item.join.other not in self.values:
            return f"there is no value {item.join.other!r}"
        if item.keep is not None and len(item.keep) != found.channels:
            return f"{len(item.keep)} channels are to be kept, it has {found.channels}"
        return None

    def _task(self, step: Step, node: ir.Node) -> Task | None:
        item = step.item
        layer = weighted(node)
        source = node.inputs[0]
        assert isinstance(layer, Weighted)
        assert source is not None
        keep = None if item.keep is None else np.array(item.keep, np.int64)
        offset = None
        join, ideal = (None, item.source) if step.follows else (item.join, None)
        if join is not None and node.op_type == "MatMul" and layer.bias is not None:
            # The sum holds the bias, the node's own output does not.
            offset = layer.bias.read(layer.channels)
        target, minus = (item.target, None) if join is None else (join.total, join.other)
        task = Task(layer, str(source.name), target, keep, minus, offset, ideal=ideal)
        if layer.view.inputs <= self.options.max_columns:
            return task
        wide = self._channelwise(task)
        if isinstance(wide, str):
            self._note(
                "refused", item.node, f"it is not refit: {layer.view.inputs} columns are too many, and {wide}"
            )
            return None
        return replace(task, channelwise=wide)

    def _channelwise(self, task: Task) -> Channelwise | str:
        node = next((node for node in self.original.graph if str(node.name) == task.name), None)
        view = None if node is None else linear_view(node)
        here = task.layer.view
        if view is None or view.node.op_type != here.node.op_type or view.kernel != here.kernel:
            return "the original has no such node"
        groups, inputs, _ = replace(task, channelwise=Channelwise(view, "", np.zeros(0))).shape
        if not here.kernel or view.groups != groups or inputs > self.options.max_columns:
            return "so are its input channels"
        matrix = weight_matrix(view)
        if task.keep is not None:
            matrix = matrix.reshape(1, -1, view.inputs)[:, task.keep].reshape(groups, -1, view.inputs)
        if matrix.shape[:2] != (groups, here.outputs):
            return "its outputs are others than the original's"
        source = view.node.inputs[0]
        assert source is not None
        return Channelwise(view, str(source.name), matrix)

    def _collect(self, tasks: Sequence[Task], waiting: Sequence[Refit]) -> list[Collector]:
        """One pass over the data; of what comes before the layers that wait for repair it runs what is not known."""
        collectors = []
        for task in tasks:
            columns = task.shape[1]
            quota = max(_MIN_ROWS, self.options.rows * columns)
            collectors.append(Collector(task, quota, self.source.judging))
        if not tasks:
            return collectors
        exact = [task.target for task in tasks]
        exact += [task.channelwise.source for task in tasks if task.channelwise is not None]
        exact += [task.ideal.value for task in tasks if task.ideal is not None]
        seen = [task.source for task in tasks if task.ideal is None] + [
            task.minus for task in tasks if task.minus is not None
        ]
        sides = Side(self.original, exact), Side(self.compressed, seen)
        targets = [item.target for item in waiting]
        targets += [item.join.total for item in waiting if item.join is not None]
        before, after = self.resume[id(self.original)], self.resume[id(self.compressed)]
        keep_at = {
            id(self.original): before.reachable(before.first_made(targets)),
            id(self.compressed): after.reachable(after.first_node(item.node for item in waiting)),
        }

        def build(model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
            return self.resume[id(model)].engine(model, outputs or [], keep_at[id(model)])

        quiet = replace(self.ctx, calibration=self.source, progress=silent, observe=build)
        for piece in run_both(*sides, quiet, self.batch, _LABEL):
            for collector in collectors:
                collector.add(piece)
        return collectors

    def _repair(self, task: Task, collector: Collector) -> bool:
        """Refit one layer; False once no more rewrites are allowed."""
        judged = collector.judged()
        if collector.mismatch is not None or judged is None:
            self._note("refused", task.name, f"it is not refit: {collector.mismatch or 'there are no rows'}")
            return True
        layer = task.layer
        start = layer.matrix()
        if not np.isfinite(start).all():
            self._note("refused", task.name, "it is not refit: its weight holds NaN or infinity")
            return True
        own = self._own_bias(task)
        found = self._solve(task, collector, start)
        if found is None:
            return True
        matrix, bias = found
        before, after = _error(judged, start, own), _error(judged, matrix, bias)
        if not after < before:
            where = where_judged(self.source.judging)
            self._note("note", task.name, f"a refit does not lower its error {where}")
            return True
        if not self.ctx.rewrites.allow(RULE, task.name):
            return False
        changed = None
        if layer.bias is not None:
            # What the node's own output lacks goes to wherever its bias is.
            changed = layer.bias.read(layer.channels) + (bias - own).reshape(-1)
        layer.replace(matrix, changed, self.names)
        power = float(np.mean(np.var(judged[1], axis=1, dtype=np.float64))) or 1.0
        self.gains.append((before / power, after / power))
        return True

    def _own_bias(self, task: Task) -> Float64:
        """The bias in the node's own output, (groups, outputs)."""
        layer = task.layer
        inside = layer.bias is not None and layer.bias.node is layer.node
        values = (
            layer.bias.read(layer.channels) if inside and layer.bias is not None else np.zeros(layer.channels)
        )
        return values.reshape(layer.view.groups, layer.view.outputs)

    def _solve(self, task: Task, collector: Collector, start: Float64) -> tuple[Float64, Float64] | None:
        wide = task.channelwise
        centred = task.layer.bias is not None
        columns = task.shape[1]
        gram = collector.moments.gram(centred=centred)
        ridge = self.options.ridge
        if gram.count < columns:
            self._note(
                "warning",
                task.name,
                f"{gram.count} rows of calibration data for {columns} columns: give more samples",
            )
            # Rows that are missing leave directions open; the more of them, the less the others are trusted.
            ridge *= columns / max(gram.count, 1)
        if wide is not None:
            start = np.zeros((gram.xx.shape[0], gram.xy.shape[2], columns))
        solution = solve(gram, start, ridge, centred=centred)
        if solution is None:
            self._note("warning", task.name, "it is not refit: its inputs give no solvable system")
            return None
        if wide is None:
            return solution.matrix, solution.bias
        groups, outputs = wide.matrix.shape[:2]
        taps = math.prod(wide.view.kernel)
        whole = wide.matrix.reshape(groups, outputs, -1, taps)
        matrix = np.einsum("gokt,gkj->gojt", whole, solution.matrix, optimize=True).reshape(
            groups, outputs, -1
        )
        bias = np.einsum("gok,gk->go", whole.sum(axis=3), solution.bias)
        return matrix, self._own_bias(task) + bias


def _error(judged: tuple[NDArray[np.generic], NDArray[np.generic]], matrix: Float64, bias: Float64) -> float:
    """Mean square error on the rows to judge by; infinite where it overflows."""
    inputs, targets = judged
    with np.errstate(all="ignore"):
        outputs = np.matmul(inputs, matrix.astype(np.float32).swapaxes(1, 2)) + bias[:, np.newaxis].astype(
            np.float32
        )
        error = float(np.mean(np.square(outputs - targets), dtype=np.float64))
    return error if math.isfinite(error) else math.inf
