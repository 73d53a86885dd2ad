"""What a test campaign is done with: builds a cell's variant, and measures it against the model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from greencc.bundle import Bundle, load
from greencc.compiler.campaign import Campaign, LoadFigures, MeasurePlan, make_plan
from greencc.compiler.check import measure, verify_accuracy
from greencc.compiler.compile import compile_model
from greencc.compiler.measurement import Measurement
from greencc.compiler.sources import source_of
from greencc.core.errors import InputError, UnavailableError
from greencc.core.progress import Progress, silent
from greencc.core.report import Accuracy, Interval
from greencc.core.report import Figures as SideFigures
from greencc.lab.campaign_inputs import Inputs, read_inputs
from greencc.lab.campaign_record import Blocks, Figures, LoadTimes, Made, Side, Times
from greencc.lab.campaign_spec import Build, CampaignSpec, Cell, DeviceSpec, ModelSpec, compile_options
from greencc.measure.blocks import Block
from greencc.targets import format_spec, make_target
from greencc.targets.backends import backends

ORIGINAL = "original"


@dataclass(frozen=True)
class Subject:
    """What is measured: a model's file or a bundle's folder."""

    path: Path
    made: Made


@dataclass(frozen=True)
class Measured:
    """What measuring a cell gave.

    Attributes:
        blocks: Rows of `blocks.csv` without the cell's own columns.
        problem: Why energy is missing or rests on a part of the measurement though there is a meter; None: it does not.
    """

    figures: Figures
    blocks: tuple[Mapping[str, Any], ...]
    conditions: dict[str, Any]
    warnings: tuple[str, ...]
    problem: str | None = None


class Bench(Protocol):
    """Builds and measures; tests replace it."""

    def inputs(self) -> Inputs:
        """What results depend on."""

    def problem(self, device: DeviceSpec) -> str | None:
        """Why a device cannot be used now, or None."""

    def subject(self, cell: Cell, bundles: Path) -> Subject:
        """Build what the cell measures, or find it in the folder.

        Raises:
            GreenccError: It cannot be built.
        """

    def measure(self, cell: Cell, subject: Subject) -> Measured:
        """Measure it.

        Raises:
            GreenccError: It cannot be measured.
        """


class LabBench:
    """`Bench` of this machine."""

    def __init__(self, spec: CampaignSpec, progress: Progress = silent) -> None:
        self._spec, self._progress = spec, progress
        self._inputs: Inputs | None = None

    def inputs(self) -> Inputs:
        if self._inputs is None:
            self._inputs = read_inputs(self._spec)
        return self._inputs

    def problem(self, device: DeviceSpec) -> str | None:
        if missing := make_target(device.target).missing():
            return f"target {device.target!r} is not available here: {missing}"
        try:
            self._plan(device)
        except UnavailableError as error:
            return str(error)
        return None

    def bundle_path(self, cell: Cell, bundles: Path) -> Path | None:
        """Where the bundle of a cell is or goes; None: it needs none."""
        variant, model = self._spec.variant(cell.variant), self._spec.model(cell.model)
        if variant.build is None:
            return None if variant.bundles is None else variant.bundles[cell.model]
        key = self.inputs().bundle_key(model, variant.name, variant.build, self._spec.device(cell.device))
        return bundles / f"{model.name}-{variant.name}-{key[:12]}.greencc"

    def subject(self, cell: Cell, bundles: Path) -> Subject:
        model, variant = self._spec.model(cell.model), self._spec.variant(cell.variant)
        device, path = self._spec.device(cell.device), self.bundle_path(cell, bundles)
        if path is None:
            return Subject(model.path, Made(ORIGINAL))
        if variant.build is None:
            return self._given(model, device, path)
        bundle = load(path) if path.is_dir() else self._compile(model, variant.build, device, path)
        place = path.relative_to(bundles.parent).as_posix()
        return _subject(bundle, place, bundle.report.accuracy)

    def measure(self, cell: Cell, subject: Subject) -> Measured:
        model, device = self._spec.model(cell.model), self._spec.device(cell.device)
        found, warnings = measure(
            subject.path,
            baseline=model.path,
            data=model.inputs,
            preprocess=model.preprocess,
            target=device.target,
            plan=self._plan(device),
            confidence=self._spec.protocol.confidence,
            progress=self._progress,
        )
        return measured(found, warnings, metered=device.metered)

    def _plan(self, device: DeviceSpec) -> MeasurePlan:
        protocol = self._spec.protocol
        return make_plan(
            protocol.name,
            rate=protocol.rate,
            poisson=protocol.poisson,
            until=protocol.until,
            limit_seconds=protocol.limit_seconds,
            meter=device.meter,
        )

    def _compile(self, model: ModelSpec, build: Build, device: DeviceSpec, path: Path) -> Bundle:
        options = compile_options(model, build, device, self._spec.protocol)
        return compile_model(model.path, options, output=path, progress=self._progress)

    def _given(self, model: ModelSpec, device: DeviceSpec, path: Path) -> Subject:
        """A bundle that was there before.

        Raises:
            InputError: It is none, of another model, or of another target.
        """
        bundle = load(path)
        source_of(bundle, model.path)
        # A bundle for the class of the device is one for any of its run times.
        if bundle.manifest.target not in map(format_spec, backends(make_target(device.target))):
            raise InputError(
                f"the bundle {path} was made for {bundle.manifest.target}, and the device is {device.target}",
                hint="compile it for this device",
            )
        accuracy = bundle.report.accuracy
        if model.evaluation is not None:
            with bundle:
                accuracy = verify_accuracy(
                    bundle,
                    model.path,
                    model.evaluation,
                    labels=model.labels,
                    preprocess=model.preprocess,
                    metric=model.metric,
                    max_drop=accuracy.epsilon,
                    confidence=self._spec.protocol.confidence,
                    progress=self._progress,
                )
        return _subject(bundle, str(path), accuracy)


def _subject(bundle: Bundle, place: str, accuracy: Accuracy) -> Subject:
    # The error of every output is in the bundle's own report.
    return Subject(bundle.path, Made(bundle.report.precision, place, replace(accuracy, outputs=())))


def measured(found: Measurement, warnings: Sequence[str], *, metered: bool = False) -> Measured:
    """What a measurement is to a campaign; `metered`: a meter was named, so an estimate is no energy of this cell."""
    campaign = found.campaign
    problem = None if campaign is None or campaign.meter is None else campaign.result.problem
    if metered and (campaign is None or campaign.result.comparison is None):
        problem = problem or "the meter gave no energy"
        found = _without_energy(found)
    loads = (None, None) if campaign is None else (campaign.baseline, campaign.artifact)
    return Measured(
        figures=Figures(
            baseline=_side(found.baseline, loads[0]),
            artifact=_side(found.artifact, loads[1]),
            latency=_finite(found.ratio.latency),
            energy=_finite(found.ratio.energy),
            clean=found.conditions.get("clean") is not False,
            blocks=count_blocks(() if campaign is None else campaign.result.blocks),
            stopped=None if campaign is None else campaign.result.stopped,
        ),
        blocks=() if campaign is None else tuple(_rows(campaign)),
        conditions=dict(found.conditions),
        warnings=tuple(warnings),
        problem=problem,
    )


def _without_energy(found: Measurement) -> Measurement:
    return replace(
        found,
        baseline=replace(found.baseline, energy_mj=None),
        artifact=replace(found.artifact, energy_mj=None),
        ratio=replace(found.ratio, energy=None),
    )


def count_blocks(blocks: Sequence[Block]) -> Blocks:
    """Blocks in short."""
    discarded: dict[str, int] = {}
    for block in blocks:
        if block.discarded is not None:
            discarded[block.discarded.value] = discarded.get(block.discarded.value, 0) + 1
    celsius = [block.celsius for block in blocks if block.celsius is not None]
    others = [block.others for block in blocks if block.others is not None]
    return Blocks(
        counted=sum(block.discarded is None for block in blocks),
        discarded=discarded,
        celsius=(min(celsius), max(celsius)) if celsius else (),
        others=sum(others) / len(others) if others else None,
    )


def _side(figures: SideFigures, load: LoadFigures | None) -> Side:
    latency = figures.latency_ms
    return Side(
        times=Times(latency.median, latency.percentiles[95], latency.percentiles[99]),
        size_bytes=figures.size_bytes,
        energy=figures.energy_mj,
        memory_mb=figures.peak_memory_mb,
        load=None
        if load is None
        else LoadTimes(load.latency_ms.p50, load.latency_ms.p99, load.requests, load.late),
    )


def _finite(ratio: Interval | None) -> Interval | None:
    """The ratio, unless too little was measured for an interval."""
    if ratio is None or not (0.0 < ratio.low <= ratio.high < math.inf):
        return None
    return ratio


def _rows(campaign: Campaign) -> Iterator[dict[str, Any]]:
    """Rows of `blocks.csv`; joules, their grade and their boundary are there or not there together."""
    wall = time.time() - time.monotonic()
    for number, block in enumerate(campaign.result.blocks, 1):
        times = block.latencies_ms.percentiles((50.0, 99.0)) if len(block.latencies_ms) else (None, None)
        meter = None if block.joules is None else campaign.meter
        yield {
            "role": block.variant,
            "block": number,
            "pair": block.round + 1,
            "started": datetime.fromtimestamp(block.begin + wall, UTC).isoformat(timespec="milliseconds"),
            "seconds": f"{block.seconds:.6f}",
            "inferences": block.count,
            "joules": None if block.joules is None else f"{block.joules:.9g}",
            "grade": None if meter is None else meter.grade,
            "boundary": None if meter is None else meter.boundary,
            "discarded": None if block.discarded is None else block.discarded.value,
            "note": block.note,
            "temperature_c": block.celsius,
            "others_share": None if block.others is None else f"{block.others:.4f}",
            "late": block.late,
            "latency_p50_ms": None if times[0] is None else f"{times[0]:.6g}",
            "latency_p99_ms": None if times[1] is None else f"{times[1]:.6g}",
        }
