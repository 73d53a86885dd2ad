"""Energy of both variants: measured where a meter works, here or on the device, else estimated."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.compiler.campaign import (
    Campaign,
    MeasurePlan,
    run_campaign,
    run_campaign_elsewhere,
    run_load,
)
from greencc.compiler.counts import operation_counts
from greencc.compiler.session import Session
from greencc.compiler.variant import Variant
from greencc.core.data import Feeds
from greencc.core.elsewhere import Site
from greencc.core.engine import Device, Engine
from greencc.core.errors import UsageError
from greencc.core.kernels import kernels_of
from greencc.core.meter import EnergyComparison, Grade
from greencc.core.report import Interval, Latency
from greencc.core.shapes import bind_dims
from greencc.measure.elsewhere import site_of
from greencc.meters import available_meters, blind_to
from greencc.meters.calibrated import TimedKernels, calibrated_pair
from greencc.meters.device_store import calibrated_profile
from greencc.meters.model import Workload, device_power, estimate_pair, load_of


def energy_of(
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


def other_meter(meter: str, device: str) -> UsageError:
    """What is said of a meter of this computer where a device is measured."""
    return UsageError(
        f"{meter} is read on this computer, and {device} is measured with its own meter",
        hint="leave --meter out",
    )


def _campaign_elsewhere(
    session: Session, site: Site, engines: tuple[Engine, Engine], feeds: Sequence[Feeds], plan: MeasurePlan
) -> Campaign | None:
    """Measure with the meter of the other machine; where it has none, nothing is estimated in its stead."""
    if plan.meter is not None:
        raise other_meter(plan.meter.name, site.name)
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
