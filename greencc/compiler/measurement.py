"""Measure the artifact beside the baseline: latency, energy, memory, size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from greencc.compiler.campaign import (
    Campaign,
    MeasurePlan,
)
from greencc.compiler.counts import model_counts
from greencc.compiler.energies import energy_of
from greencc.compiler.options import Effort
from greencc.compiler.session import Session
from greencc.compiler.variant import Variant
from greencc.core.data import Feeds
from greencc.core.elsewhere import DistantEngine
from greencc.core.engine import Device, Engine
from greencc.core.errors import InputError
from greencc.core.report import Carbon, Figures, Interval, Ratio
from greencc.measure.carbon import CarbonOptions, carbon_of
from greencc.measure.conditions import Conditions, record_conditions
from greencc.measure.elsewhere import site_of
from greencc.measure.latency import measure_latency
from greencc.measure.memory import peak_memory
from greencc.measure.profiles import FULL, QUICK, STANDARD, Profile
from greencc.measure.protocols import DEFAULT as DEFAULT_PROTOCOL
from greencc.measure.protocols import QUICK as QUICK_PROTOCOL
from greencc.meters.device import PowerMode
from greencc.meters.side_by_side import APART, latency_of
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
    energy, campaign = energy_of(
        session, device, (baseline, artifact), timing.latencies, speedup, feeds, plan
    )
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
        notes = engine.notes if isinstance(engine, DistantEngine) else ()
        return Conditions(dict(facts), (*warnings, *notes))
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
    if not found.told_apart:
        session.warn(
            f"the two differ by less than {APART - 1.0:.0%} by estimate, which is less than an estimate can tell: "
            "no gain is claimed"
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
