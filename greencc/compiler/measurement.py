"""Measure the artifact beside the baseline: latency, energy, memory, size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from greencc.compiler.campaign import (
    Campaign,
    MeasurePlan,
    run_campaign,
    run_campaign_elsewhere,
    run_load,
)
from greencc.compiler.options import Effort
from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.describe import NodeCost, describe, nodes_cost
from greencc.core.elsewhere import Site
from greencc.core.engine import Device, Engine, Target
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import attribute_int, constant_tensor
from greencc.core.kernels import kernels_of
from greencc.core.meter import EnergyComparison, Grade
from greencc.core.report import Carbon, Figures, Interval, Latency, Ratio
from greencc.core.shapes import bind_dims
from greencc.measure.carbon import CarbonOptions, carbon_of
from greencc.measure.conditions import Conditions, record_conditions
from greencc.measure.elsewhere import site_of
from greencc.measure.latency import measure_latency
from greencc.measure.memory import peak_memory
from greencc.measure.profiles import FULL, QUICK, STANDARD, Profile
from greencc.measure.protocols import DEFAULT as DEFAULT_PROTOCOL
from greencc.measure.protocols import QUICK as QUICK_PROTOCOL
from greencc.meters import available_meters, blind_to
from greencc.meters.calibrated import TimedKernels, calibrated_pair
from greencc.meters.device import PowerMode
from greencc.meters.device_store import calibrated_profile
from greencc.meters.model import OperationCounts, Workload, device_power, estimate_pair, load_of
from greencc.meters.side_by_side import latency_of
from greencc.report.figures import partial

if TYPE_CHECKING:
    from greencc.compiler.untimed import Estimator

PROFILES: dict[Effort, Profile] = {Effort.QUICK: QUICK, Effort.STANDARD: STANDARD, Effort.FULL: FULL}
# A compile's own energy window is short; `greencc measure` runs the whole protocol.
PLANS: dict[Effort, MeasurePlan] = {
    Effort.QUICK: MeasurePlan(QUICK_PROTOCOL, drive=False),
    Effort.STANDARD: MeasurePlan(QUICK_PROTOCOL, drive=False),
    Effort.FULL: MeasurePlan(DEFAULT_PROTOCOL, drive=False),
}


@dataclass(frozen=True)
class Variant:
    """Something measurable: an artifact on disk, its open engine, and the graph it was built from.

    `model` is None where the graph is not an ONNX graph we can count operations in; `target` is what runs it, None:
    that of the session.
    """

    artifact: Path
    engine: Engine
    model: ir.Model | None
    size_bytes: int
    accuracy: float | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Measurement:
    """Both variants' figures, how they compare and under which conditions.

    `campaign` is what the energy comes from: blocks, trace, latencies under load; None: there is no meter, and no load
    was asked for.
    """

    baseline: Figures
    artifact: Figures
    ratio: Ratio
    conditions: dict[str, Any]
    campaign: Campaign | None = None

    @property
    def partial(self) -> bool:
        """The meter failed on the way: the energy rests on the rounds before, and nothing is claimed of it."""
        return partial(self.conditions, self.baseline.energy_mj, self.artifact.energy_mj)

    def carbon(self, options: CarbonOptions) -> Carbon | None:
        """SCI per inference of both variants, or None where their energy is not known."""
        latencies = (self.baseline.latency_ms.median, self.artifact.latency_ms.median)
        return carbon_of(self.baseline.energy_mj, self.artifact.energy_mj, latencies, options)


def measure_variants(
    session: Session,
    device: Device,
    baseline: Variant,
    artifact: Variant,
    feeds: Sequence[Feeds],
    plan: MeasurePlan | None = None,
    mode: PowerMode | None = None,
) -> Measurement:
    """Measure both variants in turns on the same inputs; what cannot be measured is None, with a warning.

    Where the target is not timed here (`Target.estimated_on`) nothing is run: latency and energy are estimates of its
    device profile, and memory is not known.

    `plan` says how energy is measured, and under which load; default: as the session's effort has it. `mode` is the
    power mode that estimates are for; default: the device's.
    """
    if (estimator := session.estimator) is not None:
        return _estimated_variants(session, estimator, device, (baseline, artifact), feeds[0], mode)
    plan = plan or PLANS[session.options.effort]
    effort = session.options.effort
    confidence = session.options.confidence
    conditions = _conditions(session, device, baseline.engine)
    for warning in conditions.warnings:
        session.warn(warning)
    if effort is Effort.QUICK:
        session.warn("measured with the quick profile: the figures are rough and clear no energy gate")
    timing = measure_latency(
        (baseline.engine, artifact.engine), feeds, PROFILES[effort], confidence=confidence
    )
    for warning in timing.warnings:
        session.warn(warning)
    speedup = timing.ratios[0]
    energy, campaign = _energy(session, device, (baseline, artifact), timing.latencies, speedup, feeds, plan)
    sizes = (baseline.size_bytes, artifact.size_bytes)
    counts = [model_counts(variant.model) for variant in (baseline, artifact)]
    figures = [
        Figures(
            latency_ms=latency,
            energy_mj=None if energy is None else (energy.baseline, energy.artifact)[index],
            size_bytes=variant.size_bytes,
            peak_memory_mb=_memory(session, variant, feeds[0]),
            accuracy=variant.accuracy,
            params=counts[index][0],
            macs=counts[index][1],
        )
        for index, (variant, latency) in enumerate(zip((baseline, artifact), timing.latencies, strict=True))
    ]
    smaller = sizes[0] / sizes[1]
    facts: dict[str, Any] = dict(conditions.facts)
    facts["profile"] = effort.value
    facts["rounds"] = timing.rounds
    facts["rounds_discarded"] = timing.discarded
    facts["clean"] = timing.clean
    if artifact.artifact.resolve() == baseline.artifact.resolve():
        # What differs between the two is noise.
        facts["same_artifact"] = True
    if campaign is not None:
        facts.update(campaign.facts())
    return Measurement(
        baseline=figures[0],
        artifact=figures[1],
        ratio=Ratio(
            latency=speedup,
            energy=None if energy is None else energy.ratio,
            size=Interval(smaller, smaller, smaller),
        ),
        conditions=facts,
        campaign=campaign,
    )


def _conditions(session: Session, device: Device, engine: Engine) -> Conditions:
    """The state of the machine that is measured, wherever it is."""
    if (site := site_of((engine,))) is not None:
        facts, warnings = site.conditions()
        return Conditions(dict(facts), warnings)
    return record_conditions(int(device.facts.get("threads", "1")), processor=session.target.processor)


def _estimated_variants(
    session: Session,
    estimator: Estimator,
    device: Device,
    pair: tuple[Variant, Variant],
    feeds: Feeds,
    mode: PowerMode | None,
) -> Measurement:
    """Both variants on a device that is not here."""
    models = [variant.model for variant in pair if variant.model is not None]
    if len(models) < len(pair):
        raise InputError("a variant has no graph, so its latency cannot be estimated")
    found = estimator.compare(models, feeds, mode)
    session.warn(
        f"latency and energy are estimated, not measured: nothing ran on the device ({estimator.title}); "
        "measure there before you rely on them"
    )
    for note in dict.fromkeys(note for each in found.each for note in each.notes):
        session.warn(f"the estimate: {note}")
    figures = [
        Figures(
            latency_of(each),
            each.energy,
            variant.size_bytes,
            None,
            variant.accuracy,
            *model_counts(variant.model),
        )
        for each, variant in zip(found.each, pair, strict=True)
    ]
    smaller = pair[0].size_bytes / pair[1].size_bytes
    conditions: dict[str, Any] = {
        "estimated_on": estimator.title,
        "threads": device.facts.get("threads", "1"),
        "timed": "nothing",
    }
    if estimator.profile.modes:
        conditions["power_mode"] = (mode or estimator.profile.mode(None)).name
    if pair[0].artifact.resolve() == pair[1].artifact.resolve():
        conditions["same_artifact"] = True
    ratio = Ratio(found.latency[0], found.energy[0], Interval(smaller, smaller, smaller))
    return Measurement(figures[0], figures[1], ratio, conditions)


def unchanged(measured: Measurement) -> Measurement:
    """The measurement of an artifact that *is* the baseline: what differs between the two is noise."""
    same = Interval(1.0, 1.0, 1.0)
    ratio = measured.ratio
    return replace(
        measured,
        artifact=measured.baseline,
        ratio=Ratio(latency=same, energy=None if ratio.energy is None else same, size=ratio.size),
    )


def _memory(session: Session, variant: Variant, feeds: Feeds) -> float | None:
    found = peak_memory(variant.target or session.target, variant.artifact, feeds)
    if found.reason:
        session.warn(f"peak memory was not measured: {found.reason}")
    return found.megabytes


def _energy(
    session: Session,
    device: Device,
    pair: tuple[Variant, Variant],
    latencies: Sequence[Latency],
    speedup: Interval,
    feeds: Sequence[Feeds],
    plan: MeasurePlan,
) -> tuple[EnergyComparison | None, Campaign | None]:
    """Measured where a meter works, otherwise estimated; None where neither is possible."""
    engines = (pair[0].engine, pair[1].engine)
    site = site_of(engines)
    if site is None:
        campaign = _campaign(session, engines, feeds, plan)
    else:
        campaign = _campaign_elsewhere(session, site, engines, feeds, plan)
    found = None if campaign is None else campaign.result.comparison
    if found is None and site is None:
        found = _estimated_energy(session, device, pair, latencies, speedup, feeds)
        for warning in found.warnings if found is not None else ():
            session.warn(warning)
    for warning in campaign.warnings() if campaign is not None else ():
        session.warn(warning)
    return found, campaign


def _campaign(
    session: Session, engines: tuple[Engine, Engine], feeds: Sequence[Feeds], plan: MeasurePlan
) -> Campaign | None:
    """Measure with the first meter that gives figures; where none does, what the last one left, or the load alone."""
    campaign: Campaign | None = None
    processor = session.target.processor
    if plan.meter is not None and (warning := blind_to(plan.meter, processor)):
        session.warn(warning)
    for meter in plan.meters(lambda: available_meters(processor)):
        needed = plan.protocol.shortest(meter.period_s)
        if needed > plan.protocol.limit_seconds:
            session.warn(
                f"{meter.name} updates every {meter.period_s:g} s, too seldom for the {plan.protocol.name} protocol: "
                f"two rounds would take {needed:.0f} s"
            )
            continue
        campaign = run_campaign(engines, feeds, meter, plan, confidence=session.options.confidence)
        if campaign.result.comparison is not None:
            return campaign
        session.warn(f"energy was not measured with {meter.name}: {campaign.result.problem}")
        if not campaign.result.meter_failed:
            # A busy machine is as busy for the next meter.
            return campaign
    if campaign is None and plan.drive:
        return run_load(engines, feeds, plan)
    return campaign


def _campaign_elsewhere(
    session: Session, site: Site, engines: tuple[Engine, Engine], feeds: Sequence[Feeds], plan: MeasurePlan
) -> Campaign | None:
    """Measure with the meter of the other machine; where it has none, nothing is estimated in its stead."""
    if plan.meter is not None:
        raise UsageError(
            f"{plan.meter.name} is read on this computer, and {site.name} is measured with its own meter",
            hint="leave --meter out",
        )
    meter = site.meter if plan.metered else None
    if meter is not None:
        needed = plan.protocol.shortest(meter.period_s)
        if needed <= plan.protocol.limit_seconds:
            campaign = run_campaign_elsewhere(
                engines, feeds, meter, plan, confidence=session.options.confidence
            )
            if campaign.result.comparison is None:
                session.warn(
                    f"energy was not measured with {meter.name} of {site.name}: {campaign.result.problem}"
                )
            return campaign
        session.warn(
            f"{meter.name} of {site.name} updates every {meter.period_s:g} s, too seldom for the "
            f"{plan.protocol.name} protocol: two rounds would take {needed:.0f} s"
        )
    elif plan.metered:
        session.warn(f"energy was not measured: {site.name} has no meter that works and sees the processor")
    return run_load(engines, feeds, plan) if plan.drive else None


def _estimated_energy(
    session: Session,
    device: Device,
    pair: tuple[Variant, Variant],
    latencies: Sequence[Latency],
    speedup: Interval,
    feeds: Sequence[Feeds],
) -> EnergyComparison | None:
    counts = [operation_counts(session, variant.model, feeds[0]) for variant in pair]
    if counts[0] is None or counts[1] is None:
        session.warn("energy was not estimated: the operations of the graph could not be counted")
        return None
    calibrated = _calibrated_energy(device, pair, latencies, speedup, feeds[0])
    if calibrated is not None:
        return calibrated
    workloads = [
        Workload(count, latency.median / 1e3)
        for count, latency in zip((counts[0], counts[1]), latencies, strict=True)
    ]
    return estimate_pair(
        workloads[0], workloads[1], device_power(device.facts), load_of(device.facts), latency_ratio=speedup
    )


def _calibrated_energy(
    device: Device,
    pair: tuple[Variant, Variant],
    latencies: Sequence[Latency],
    speedup: Interval,
    feeds: Feeds,
) -> EnergyComparison | None:
    """Grade C, where this machine was calibrated against a meter that is not there now; else None."""
    profile = calibrated_profile(device.fingerprint)
    if profile is None or profile.grade is not Grade.C:
        return None
    shapes = {name: array.shape for name, array in feeds.items()}
    baseline, artifact = (
        TimedKernels(kernels_of(bind_dims(variant.model, shapes)), latency.median / 1e3)
        for variant, latency in zip(pair, latencies, strict=True)
        if variant.model is not None
    )
    return calibrated_pair(baseline, artifact, profile, speedup)


def model_counts(model: ir.Model | None) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates; packed weights count as what they hold, quantized or not."""
    if model is None:
        return None, None
    try:
        facts = describe(model)
    except InputError:
        return None, None
    packed = (node for node in model.graph if node.op_type == "MatMulNBits")
    return facts.params + sum(map(_unpacked, packed)), facts.macs


def _unpacked(node: ir.Node) -> int:
    """Weights of a node less the elements of the bytes, scales and zero points that they are packed in."""
    stored = (constant_tensor(value) for value in node.inputs[1:])
    elements = sum(tensor.size for tensor in stored if tensor is not None)
    return attribute_int(node, "K", 0) * attribute_int(node, "N", 0) - elements


def operation_counts(session: Session, model: ir.Model | None, feeds: Feeds) -> OperationCounts | None:
    """Operations by type and bytes moved of one run of `model` on inputs shaped like `feeds`.

    Nodes whose work cannot be counted (custom operators, unknown sizes) are left out, with a warning.
    """
    if model is None:
        return None
    try:
        costs = nodes_cost(bind_dims(model, {name: array.shape for name, array in feeds.items()}))
    except InputError:
        return None
    unknown = [cost for cost in costs if cost.macs is None or cost.activation_bytes is None]
    if unknown:
        session.warn(
            f"the energy estimate leaves out the operations of {len(unknown)} nodes "
            f"(such as {unknown[0].op_type} {unknown[0].name!r}), which could not be counted"
        )
    return sum_operations(costs)


def sum_operations(costs: Iterable[NodeCost]) -> OperationCounts:
    """Operations by type and bytes moved of some nodes; those that could not be counted are left out."""
    macs: dict[str, float] = defaultdict(float)
    moved = 0.0
    for cost in costs:
        if cost.macs is None or cost.activation_bytes is None:
            continue
        moved += cost.weight_bytes + cost.activation_bytes
        if cost.macs:
            macs[cost.dtype] += cost.macs
    return OperationCounts(dict(macs), moved)
