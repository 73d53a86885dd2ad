"""A budget for a device that is attached: forms of the whole model, measured there in one power mode.

The mode is the one that the budget is for where it may be set (`--set-power-mode`), else the one that the device is in.
Forms that even the best end of their estimates excludes are not measured, unless that would leave none. The last
measurement of the compile decides, as for any plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from greencc.compiler.contender import Contender
from greencc.compiler.data import Splits
from greencc.compiler.forms import CLEANED_RANK, Form, FormBuilder
from greencc.compiler.measurement import PLANS, Measurement, measure_variants
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import Effort
from greencc.compiler.placing import folder_size, model_size
from greencc.compiler.planning.compressed import compressed_forms
from greencc.compiler.planning.mode_points import Ask, ModePoint
from greencc.compiler.planning.modes import OpenModes, open_modes
from greencc.compiler.planning.plan import Plan
from greencc.compiler.planning.points import dominates
from greencc.compiler.select import Forms, automatic_forms, eligible_forms
from greencc.compiler.session import Session
from greencc.compiler.untimed import Estimator
from greencc.compiler.variant import Variant
from greencc.core.data import Feeds
from greencc.core.errors import LimitError
from greencc.core.meter import Grade
from greencc.core.power_modes import OnDevice
from greencc.core.recipe import dump_recipe
from greencc.core.report import Figures, LayerChoice
from greencc.core.report_plan import LimitVerdict, PlanInfo, PlanPoint
from greencc.meters.device import PowerMode
from greencc.planner.assess import assess
from greencc.planner.budget import Objective
from greencc.planner.limits import conflicts
from greencc.report.plan import amount
from greencc.targets import format_spec

# A smaller gain than this is not worth leaving a safer form for.
_WORTH = 0.02
_NEAREST = 5


def device_modes(target: OnDevice, session: Session) -> OpenModes:
    """The modes that an attached device has, as the budget sees them.

    Raises:
        UsageError: The budget names a power mode of another device.
    """
    estimator = Estimator.of(target.base)
    modes = tuple(PowerMode(name, watts) for name, watts in target.power_modes())
    profile = None if estimator is None else estimator.profile
    name, boundary = ("", "the device") if profile is None else (profile.name, profile.boundary)
    return open_modes(name, boundary, modes, session.options.limits)


@contextmanager
def budget_mode(session: Session) -> Iterator[None]:
    """The device in the mode that the budget is for, where there is a device, the budget is for one, and it may be set.

    A mode that the user asked for by name stays.

    Raises:
        UnavailableError: The mode cannot be set.
        UsageError: The budget names a power mode of another device.
    """
    target = session.target
    if not session.options.plans or not isinstance(target, OnDevice):
        yield
        return
    modes, now = device_modes(target, session), target.power_mode()
    if modes.budget is None or modes.limit is None or modes.budget.name == now:
        yield
        return
    named = session.options.set_power_mode
    if named or not target.may_change_mode:
        remedy = f"--set-power-mode {modes.budget.name}" if named else "--set-power-mode"
        session.warn(
            f"everything was measured in the {now or 'present'} mode, and {modes.limit.shown} is for the "
            f"{modes.budget.name} mode: {remedy} measures there and puts the mode back"
        )
        yield
        return
    with target.with_power_mode(modes.budget.name):
        yield


@dataclass(eq=False)
class DevicePoint:
    """A form with its figures on the device; None: it was not measured, and `place` says why."""

    contender: Contender
    figures: Figures | None
    place: str = ""


@dataclass
class DevicePlan(Plan):
    """What was measured.

    Attributes:
        ask: Budget and objective.
        mode: The mode that everything was measured in; empty: not known.
        points: All forms.
        ladder: Points of the ranked contenders, the preferred one last.
        forms: All that were judged.
        backend: The spec of the target.
    """

    ask: Ask
    mode: str
    points: list[DevicePoint]
    forms: Forms
    backend: str
    ladder: list[DevicePoint] = field(default_factory=list)

    @property
    def ranked(self) -> list[Contender]:
        """The preferred one first."""
        return [point.contender for point in reversed(self.ladder)]

    def left(self) -> list[Contender]:
        """Those that are not ranked."""
        return self.forms.left(self.ranked)

    def layers_of(self, item: Contender) -> tuple[LayerChoice, ...]:
        """Of the form that the search was about."""
        return self.forms.layers if item.form.fitted and item.form.precision.needs_calibration else ()

    def others(self, held: Contender | None) -> Iterator[Contender]:
        """Further forms that keep the budget and are better than one that held."""
        known = {id(point.contender): point for point in self.points}
        least = float("inf") if held is None else self.value(known[id(held)]) * (1.0 - _WORTH)
        for point in sorted(self._keeping(), key=self.value):
            if point in self.ladder:
                continue
            if self.value(point) >= least:
                return
            self.ladder.append(point)
            yield point.contender

    def verdicts(self, figures: Figures) -> tuple[LimitVerdict, ...]:
        """Measured figures against the budget."""
        energy, median = figures.energy_mj, figures.latency_ms.median
        idle = None
        if energy is not None and energy.gross is not None:
            idle = (energy.gross - energy.value) / median
        mode = PowerMode(self.mode, None)
        return tuple(
            assess(
                limit,
                latency=figures.latency_ms,
                energy=energy,
                size_bytes=figures.size_bytes,
                macs=None if figures.macs is None else float(figures.macs),
                rate=self.ask.rate,
                idle_watts=idle,
                note=self.ask.modes.meaning(mode, self.ask.rate) if limit.kind.unit == "W" else "",
            )
            for limit in self.ask.budget
        )

    def keeps(self, measured: Measurement) -> bool:
        """Whether what was measured in the end keeps the budget."""
        return all(verdict.met for verdict in self.verdicts(measured.artifact))

    def objection(self, measured: Measurement) -> str | None:
        """Why what was measured in the end is not shipped, or None."""
        missed = _missed(self.verdicts(measured.artifact))
        return f"the last measurement did not keep {missed}" if missed else None

    def value(self, point: DevicePoint) -> float:
        """What is minimised; time where no energy was measured."""
        found = point.figures
        if found is None:
            return float("inf")
        if self.ask.objective is Objective.ENERGY and found.energy_mj is not None:
            return found.energy_mj.value
        if self.ask.objective is Objective.SIZE:
            return float(found.size_bytes)
        if self.ask.objective is Objective.ERROR:
            return point.contender.loss or 0.0
        return found.latency_ms.median

    def rank(self) -> None:
        """Fill the ladder from the safest form to the preferred one.

        Raises:
            LimitError: Nothing keeps the budget.
        """
        keeping = self._keeping()
        for point in sorted(keeping, key=lambda item: item.contender.form.rank):
            last = self.ladder[-1] if self.ladder else None
            factor = 1.0 + _WORTH if point.contender.form.rank == CLEANED_RANK else 1.0 - _WORTH
            if last is None or self.value(point) < self.value(last) * factor:
                self.ladder.append(point)
            else:
                point.place = f"not chosen: no better than {last.contender.form.name}"
        if not self.ladder:
            raise self.out_of_reach()
        for point in self.ladder:
            better = self.ladder[-1].contender.form.name
            best = point is self.ladder[-1]
            point.place = (
                "the best of all that were measured" if best else f"safer than {better}, and not as good"
            )
        for point in self.points:
            point.contender.place = point.place
            if point.figures is not None:
                point.contender.latency_ms = point.figures.latency_ms.median

    def _keeping(self) -> list[DevicePoint]:
        kept = []
        for point in self.points:
            if point.figures is None:
                continue
            if lost := self.ask.loses_too_much(point.contender):
                point.place = lost
            elif missed := _missed(self.verdicts(point.figures)):
                point.place = f"does not keep {missed}"
            else:
                kept.append(point)
        return kept

    def out_of_reach(self, found: str = "") -> LimitError:
        """With the nearest points."""
        limits = ", ".join(limit.shown for limit in self.ask.budget)
        where = f" in the {self.mode} mode" if self.mode else ""
        measured = [(point, point.figures) for point in self.points if point.figures is not None]
        lines = [
            f"  {point.contender.form.name}: {_missed(self.verdicts(figures)) or 'keeps the budget'}"
            for point, figures in sorted(measured, key=lambda pair: self._distance(pair[1]))[:_NEAREST]
        ]
        message = found or f"no form keeps {limits} on the device{where} within the accuracy limit"
        return LimitError(
            message + "; the nearest points, measured:\n" + "\n".join(lines),
            hint="raise the budget or --max-drop, lower --rate, or take another device",
        )

    def _distance(self, figures: Figures) -> float:
        found = self.verdicts(figures)
        return max(
            (float("inf") if each.found is None else each.found / each.allowed for each in found), default=0.0
        )

    def info(self, shipped: Contender, measured: Measurement) -> PlanInfo:
        """With all points."""
        energy = measured.artifact.energy_mj
        for point in self.points:
            point.place = point.contender.place or point.place
        keys = [_key(point) for point in self.points]
        count = sum(point.figures is not None for point in self.points)
        where = f"the {self.mode} mode" if self.mode else "the mode that the device is in"
        return PlanInfo(
            objective=self.ask.objective.value,
            rate=self.ask.rate,
            limits=self.verdicts(measured.artifact),
            points=tuple(
                self._point(
                    point, point.contender is shipped, front=not any(dominates(other, own) for other in keys)
                )
                for point, own in zip(self.points, keys, strict=True)
            ),
            choices=(),
            predictions=(),
            solver=None,
            rounds=0,
            ended=f"{count} forms of the whole model were measured on the device in {where}",
            energy_grade=Grade.D.name if energy is None else energy.grade,
            energy_boundary="" if energy is None else energy.boundary,
            notes=(f"shipped is {shipped.form.name}, whose own figures were measured again at the end",),
            power_mode=self.mode,
        )

    def _point(self, point: DevicePoint, chosen: bool, *, front: bool) -> PlanPoint:
        item, found = point.contender, point.figures
        energy = None if found is None else found.energy_mj
        return PlanPoint(
            name=item.form.name,
            summary=item.reason,
            backend=self.backend,
            latency_ms=None if found is None else found.latency_ms.median,
            latency_p95_ms=None if found is None else found.latency_ms.p95,
            energy_mj=None if energy is None else energy.value,
            size_bytes=None if found is None else found.size_bytes,
            macs=None if found is None or found.macs is None else float(found.macs),
            drop=item.loss,
            error=None,
            verified=found is not None,
            chosen=chosen,
            front=front and found is not None,
            origin="form",
            place=point.place,
            recipe=dump_recipe(item.form.passes),
            mode=self.mode,
        )


def _key(point: DevicePoint) -> tuple[float, ...]:
    """What points are compared by."""
    found, lost = point.figures, point.contender.loss or 0.0
    if found is None:
        return float("inf"), float("inf"), float("inf"), lost
    energy = float("inf") if found.energy_mj is None else found.energy_mj.value
    return found.latency_ms.median, energy, float(found.size_bytes), lost


def plan_on_device(
    session: Session,
    target: OnDevice,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> DevicePlan:
    """Plan, in the power mode that the device is in now (`budget_mode`).

    Raises:
        LimitError: No form keeps the budget within the accuracy; the message has the nearest points.
        UsageError: The budget contradicts itself.
    """
    options = session.options
    objective = options.minimize or Objective.ENERGY
    for warning in conflicts(options.limits, objective, options.rate):
        session.warn(warning)
    modes, count = device_modes(target, session), splits.planning.count
    ask = Ask(options.limits, objective, options.rate, options.max_drop, modes, count)
    mode = target.power_mode() or ""
    forms = automatic_forms(session, builder, baseline, original, splits, feeds)
    eligible_forms(session, forms)
    integer = next((item for item in forms.contenders if item.form.precision.needs_calibration), None)
    forms.contenders += compressed_forms(session, builder, baseline, splits, integer)
    excluded = _excluded(Estimator.of(target.base), ask, mode, forms.contenders, feeds[0])
    plan = DevicePlan(ask, mode, [], forms, format_spec(session.target))
    for item in forms.contenders:
        if not item.form.applied:
            continue
        if id(item) in excluded:
            plan.points.append(DevicePoint(item, None, f"not measured: {excluded[id(item)]}"))
            continue
        plan.points.append(DevicePoint(item, _measured(session, baseline, original, item, feeds)))
    if objective is Objective.ENERGY and not any(
        point.figures is not None and point.figures.energy_mj is not None for point in plan.points
    ):
        session.warn("no energy was measured on the device, so the time of an inference was minimised")
    plan.rank()
    return plan


def _measured(
    session: Session, baseline: MemoEngine, original: Form, item: Contender, feeds: Sequence[Feeds]
) -> Figures:
    """A form beside the baseline, on the device."""
    form = item.form

    def variant(of: Form, engine: Contender | MemoEngine) -> Variant:
        opened = engine.timed if isinstance(engine, Contender) else engine.engine
        return Variant(of.artifact, opened, of.model, _size(of.artifact, original.artifact, of))

    with session.phase("comparing forms"):
        found = measure_variants(
            session,
            session.target.device(),
            variant(original, baseline),
            variant(form, item),
            feeds,
            PLANS[Effort.QUICK],
        )
    return found.artifact


def _size(artifact: Path, original: Path, form: Form) -> int:
    return model_size(original, form.model) if artifact == original else folder_size(artifact.parent)


def _excluded(
    estimator: Estimator | None, ask: Ask, mode: str, items: Sequence[Contender], feeds: Feeds
) -> dict[int, str]:
    """Forms that even the best end of their estimates excludes, and why; none where that would leave no form."""
    if estimator is None or not ask.budget:
        return {}
    known = {each.name: each for each in estimator.profile.modes}
    if mode and mode not in known:
        return {}
    power = known[mode] if mode else estimator.profile.mode(None)
    excluded = {}
    for item in items:
        form = item.form
        (found,) = estimator.in_modes(form.qdq, feeds, [power], ask.rate)
        # Sizes and MACs are no estimates; they are judged with what is measured.
        timed = replace(
            ask, budget=tuple(limit for limit in ask.budget if limit.kind.unit in ("W", "mJ", "ms"))
        )
        if missed := timed.missed(ModePoint(item, power, found, 0, None, 0.0)):
            excluded[id(item)] = f"it does not keep {missed}"
    return {} if len(excluded) == len(items) else excluded


def _missed(verdicts: Sequence[LimitVerdict]) -> str:
    """The limits that are not kept, in words."""
    return "; ".join(
        f"{verdict.limit} (found {'nothing' if verdict.found is None else amount(verdict.found, verdict.unit)})"
        for verdict in verdicts
        if not verdict.met
    )
