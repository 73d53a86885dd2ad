"""Build a plan, judge it on the planning split, time it beside the baseline: a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from greencc.compiler.contender import Contender, closed_on_error, judge, judged_by_the_user
from greencc.compiler.counts import model_counts, operation_counts
from greencc.compiler.data import Splits
from greencc.compiler.evaluation import Evaluator, Job
from greencc.compiler.forms import Form, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.placing import folder_size, model_size
from greencc.compiler.planning.points import Figures, Point, PointStore
from greencc.compiler.planning.space import PlanSteps
from greencc.compiler.session import Deadline, Session
from greencc.compiler.slices import Slice
from greencc.core.cache import Cache, cache_key
from greencc.core.data import Array, Feeds
from greencc.core.engine import Engine, Target
from greencc.core.errors import GreenccError
from greencc.core.passes import Pass
from greencc.core.report import Interval, Latency
from greencc.measure.latency import measure_latency
from greencc.measure.profiles import QUICK
from greencc.meters.model import Workload, central_millijoules, device_power, load_of
from greencc.planner.problem import Assignment, Quantity
from greencc.targets import format_spec
from greencc.verify.divergence import divergence
from greencc.verify.metrics import parse_metric

_ERROR = "plan-error"


class CannotBuildError(Exception):
    """A plan that the passes refuse, or whose artifact cannot be built or run; the message says why."""


@contextmanager
def _of_one_plan() -> Iterator[None]:
    """What fails inside ends this plan, not the compile."""
    try:
        yield
    except GreenccError as error:
        raise CannotBuildError(error.message) from error


@dataclass
class Verifier:
    """Makes points.

    Attributes:
        session: The compile.
        builder: Builds forms.
        baseline: The original model's engine.
        splits: The planning split judges.
        feeds: Inputs to time with.
        samples: Some of the planning split, for the divergence of the outputs.
        store: Remembers points; only for this compile where a metric of the user's judges: its code may change.
        path: The original model.
        built: How many plans were built by this compile.
    """

    session: Session
    builder: FormBuilder
    baseline: MemoEngine
    splits: Splits
    feeds: Sequence[Feeds]
    samples: Slice
    store: PointStore
    path: Path
    built: int = 0
    _reference: dict[int, float] | None = None
    _names: int = field(default=0)

    def __post_init__(self) -> None:
        if judged_by_the_user(self.session.options):
            self.store = replace(self.store, cache=Cache())

    @property
    def reference_ms(self) -> dict[int, float]:
        """Latency of the baseline by percentile, measured once by this compile: all points' are relative to it."""
        if self._reference is None:
            with self.session.phase("comparing forms"):
                timing = measure_latency([self.baseline.engine], self.feeds, QUICK)
            self._reference = timing.latencies[0].percentiles
        return self._reference

    def verify(
        self,
        steps: PlanSteps,
        summary: str,
        *,
        chosen: Assignment | None = None,
        predicted: Mapping[Quantity, float] | None = None,
    ) -> Point:
        """The point of a plan, from the store where it is known.

        Raises:
            CannotBuildError: A pass refuses, or what was built cannot be run.
        """
        self._names += 1
        name = f"plan {self._names}"
        target = self.session.target
        passes = self.passes_of(steps)
        known = self.store.get(steps, format_spec(target), self.reference_ms[50])
        if known is not None:
            return Point(
                name,
                summary,
                known,
                target,
                steps,
                chosen,
                predicted=predicted or {},
                origin="cache",
                passes=passes,
            )
        form = self.build(name, steps)
        item = self.judged(form, target)
        with _of_one_plan(), closed_on_error(item.engine):
            figures = self.figures(item)
        self.built += 1
        self.store.put(steps, format_spec(target), summary, figures, chosen)
        item.engine.close()
        return Point(name, summary, figures, target, steps, chosen, item, predicted or {}, passes=passes)

    def passes_of(self, steps: PlanSteps) -> tuple[Pass, ...]:
        """All passes of a plan from the original model."""
        return self.builder.passes_of(steps.prepare, steps.quantize, steps.extra)

    def build(self, name: str, steps: PlanSteps) -> Form:
        """The form of a plan.

        Raises:
            CannotBuildError: A pass refuses.
        """
        with _of_one_plan():
            self.builder.restructured(steps.prepare, integers=steps.quantize is not None)
            return self.builder.planned(name, steps.prepare, steps.quantize, steps.extra)

    def on(self, form: Form, target: Target, name: str) -> Form:
        """A form built for another run time.

        Raises:
            CannotBuildError: It cannot be built there.
        """
        with _of_one_plan():
            return self.builder.on(form, target, name)

    def judged(self, form: Form, target: Target) -> Contender:
        """A form, opened on a target and judged on the planning split.

        Raises:
            CannotBuildError: It cannot be opened, or does not run.
        """
        with (
            _of_one_plan(),
            self.session.phase("planning"),
            closed_on_error(target.open(form.artifact)) as engine,
        ):
            self.session.engines.append(engine)
            planning = judge(self.session, self.baseline, engine, self.splits.planning, form.artifact, target)
        return Contender(form, engine, planning)

    def figures(self, item: Contender) -> Figures:
        """Everything that is found of an open contender.

        All are timed alike, however much they lose: the next compile may allow more.
        """
        reference = self.reference_ms
        with self.session.phase("comparing forms"):
            timing = measure_latency(
                [self.baseline.engine, item.timed],
                self.feeds,
                QUICK,
                confidence=self.session.options.confidence,
            )
        ratio = timing.ratios[0]
        latency = _relative(reference[50], ratio, timing.latencies[1])
        return Figures(
            loss=item.loss,
            error=self.error(item.engine),
            ratio=ratio,
            latency_ms=latency,
            energy_mj=self.energy(item.form, latency[50]),
            size_bytes=self.size(item.form),
            macs=macs_of(item.form),
        )

    def error(self, engine: Engine) -> float:
        """Divergence of an engine's outputs from the baseline's."""
        metric = parse_metric(self.session.options.metric)
        found = [engine.run(feeds) for feeds in self.samples.feeds]
        return divergence(self.samples.outputs, found, metric)

    def compare(self, items: Sequence[tuple[Point, Contender]]) -> None:
        """Time points side by side and give them what is found; the store keeps it."""
        reference = self.reference_ms
        with self.session.phase("comparing forms"):
            timing = measure_latency(
                [self.baseline.engine, *(item.timed for _, item in items)],
                self.feeds,
                replace(QUICK, seconds=QUICK.seconds * (1 + len(items)) / 2),
                confidence=self.session.options.confidence,
            )
        for (point, _), ratio, latency in zip(items, timing.ratios, timing.latencies[1:], strict=True):
            taken = _relative(reference[50], ratio, latency)
            energy = point.figures.energy_mj
            form = point.form
            if form is not None:
                energy = self.energy(form, taken[50])
            point.figures = replace(
                point.figures,
                ratio=ratio,
                latency_ms=taken,
                energy_mj=energy,
            )
            if point.steps is not None:
                spec = format_spec(point.backend)
                self.store.put(point.steps, spec, point.summary, point.figures, point.chosen)

    def errors_of(self, plans: Sequence[PlanSteps], deadline: Deadline) -> list[float | None]:
        """Divergence of what plans make of the model, kept between runs and evaluated by the session's workers.

        None of those that cannot be built or run, and of those that the time was over for.

        Raises:
            UnavailableError: None can be evaluated here.
            UsageError: Likewise.
        """
        keys = [cache_key(self.store.context, str(steps)) for steps in plans]
        known = [self.session.cache.get(_ERROR, key) for key in keys]
        found = [_number(entry, "error") for entry in known]
        jobs: dict[int, Job] = {}
        for index, (steps, value) in enumerate(zip(plans, found, strict=True)):
            if value is None and not deadline.over and self._buildable(steps):
                build = partial(self.builder.model_of, steps.prepare, steps.quantize, steps.extra)
                jobs[index] = Job((_ERROR, keys[index]), build, f"a plan ({steps})")
        evaluated = Evaluator.of(self.session).each(list(jobs.values()), self.samples, deadline)
        for index, one in zip(jobs, evaluated, strict=True):
            found[index] = value = one.error
            if one.problem is not None:
                self.session.warn(f"the error of {jobs[index].label} was not measured: {one.problem.message}")
            if value is not None:
                self.session.cache.put(
                    _ERROR, keys[index], {"error": np.asarray(value)}, label=str(plans[index])
                )
        return [None if value is None or not np.isfinite(value) else value for value in found]

    def _buildable(self, steps: PlanSteps) -> bool:
        """Whether the passes before quantization do what they are to do; the model is kept for the build."""
        try:
            self.builder.restructured(steps.prepare, integers=steps.quantize is not None)
        except GreenccError:
            return False
        return True

    def size(self, form: Form) -> int:
        """Bytes of a form's artifact."""
        if form.artifact == self.path:
            return model_size(self.path, form.model)
        return folder_size(form.artifact.parent)

    def opened(self, point: Point) -> Contender:
        """The contender of a point with an open engine, built again where only its figures are known.

        Raises:
            CannotBuildError: As `build`, `on` and `judged`.
        """
        item = point.contender
        if item is None:
            assert point.steps is not None
            form = self.build(point.name, point.steps)
            if format_spec(point.backend) != format_spec(self.session.target):
                form = self.on(form, point.backend, point.name)
            item = self.judged(form, point.backend)
        else:
            with _of_one_plan():
                engine = point.backend.open(item.form.artifact)
            self.session.engines.append(engine)
            item = replace(item, engine=engine)
        item.latency_ms = point.figures.latency_ms[50]
        point.contender = item
        return item

    def energy(self, form: Form, milliseconds: float) -> float | None:
        """Millijoules of one inference that takes so long, estimated; None where its work is not known."""
        counts = operation_counts(self.session, form.model, self.feeds[0])
        if counts is None:
            return None
        facts = self.session.target.device().facts
        return central_millijoules(Workload(counts, milliseconds / 1e3), device_power(facts), load_of(facts))


def _relative(baseline_ms: float, ratio: Interval, latency: Latency) -> dict[int, float]:
    """Latency by percentile, as it is where the baseline takes so long: only the ratio and the tails are its own."""
    own = latency.percentiles
    median = baseline_ms / ratio.value
    return {key: median * value / own[50] for key, value in own.items()}


def _number(entry: Mapping[str, Array] | None, name: str) -> float | None:
    """A number in an entry of the cache; None where it has none of that name."""
    if entry is None or name not in entry or entry[name].shape != () or entry[name].dtype.kind != "f":
        return None
    return float(entry[name])


def macs_of(form: Form) -> float | None:
    """Multiply-accumulates of one inference, where they can be counted."""
    macs = model_counts(form.model)[1]
    return None if macs is None else float(macs)
