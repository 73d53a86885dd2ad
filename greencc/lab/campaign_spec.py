"""A test campaign as data: which models, in which variants, on which devices, how often and by which protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from greencc.compiler.campaign import NO_METER
from greencc.compiler.options import CompileOptions, Effort, Precision

SCHEMA = "greencc.campaign/1"
MAX_CELLS = 10_000


@dataclass(frozen=True)
class ModelSpec:
    """A model and its data, as for `CompileOptions`.

    Attributes:
        path: An ONNX file.
        calibration: Data that set quantization ranges.
        evaluation: Held-out data; also what is measured with, failing that `calibration`.
        labels: A file.
        metric: How samples are scored.
        preprocess: A file, for folders of images.
    """

    name: str
    path: Path
    calibration: str | None = None
    evaluation: str | None = None
    labels: Path | None = None
    metric: str | None = None
    preprocess: Path | None = None

    @property
    def inputs(self) -> str | None:
        """What is measured with; None: synthetic inputs."""
        return self.evaluation or self.calibration


@dataclass(frozen=True)
class Build:
    """What a variant is compiled with; the rest is as in `CompileOptions`."""

    precision: Precision = Precision.AUTO
    passes: str | None = None
    recipe: Path | None = None
    max_drop: float = 0.01
    effort: Effort = Effort.STANDARD
    seed: int = 0


@dataclass(frozen=True)
class VariantSpec:
    """What is made of a model: the model itself (both None), a compile, or bundles that exist, by model."""

    name: str
    build: Build | None = None
    bundles: Mapping[str, Path] | None = None

    @property
    def original(self) -> bool:
        return self.build is None and self.bundles is None


@dataclass(frozen=True)
class DeviceSpec:
    """Where it runs.

    Attributes:
        target: With its options, as ``cpu:threads=1``.
        meter: Spec of a meter; ``none``: measured without one; None: the best that works.
    """

    name: str
    target: str = "cpu"
    meter: str | None = None

    @property
    def metered(self) -> bool:
        """A meter was named: no other energy takes the place of its joules."""
        return self.meter is not None and self.meter != NO_METER


@dataclass(frozen=True)
class ProtocolSpec:
    """How every cell is measured, and how often.

    Attributes:
        name: Of the energy protocol.
        rate: Requests per second; None: flat out.
        poisson: They come at random.
        until: Stop at this half-width of the energy ratio; None: as the protocol has it.
        limit_seconds: Likewise.
        repetitions: Cells of each combination.
        seed: Of the order of the cells.
        confidence: Of all intervals and certificates.
    """

    name: str = "default"
    rate: float | None = None
    poisson: bool = False
    until: float | None = None
    limit_seconds: float | None = None
    repetitions: int = 3
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Cell:
    """One measurement: `repetition` counts from 1."""

    model: str
    variant: str
    device: str
    repetition: int

    def __str__(self) -> str:
        return f"{self.model}, {self.variant}, {self.device}, repetition {self.repetition}"


@dataclass(frozen=True)
class CampaignSpec:
    """A campaign file.

    Attributes:
        name: For titles and the default folder.
        path: The file.
        text: What is in it.
    """

    name: str
    path: Path
    text: str
    models: tuple[ModelSpec, ...]
    variants: tuple[VariantSpec, ...]
    devices: tuple[DeviceSpec, ...]
    protocol: ProtocolSpec = field(default_factory=ProtocolSpec)

    def model(self, name: str) -> ModelSpec:
        return next(item for item in self.models if item.name == name)

    def variant(self, name: str) -> VariantSpec:
        return next(item for item in self.variants if item.name == name)

    def device(self, name: str) -> DeviceSpec:
        return next(item for item in self.devices if item.name == name)

    def cells(self) -> tuple[Cell, ...]:
        """All cells in the order in which they are measured.

        A randomised complete block design: every repetition holds each combination once, in an order of its own. What
        drifts over hours (temperature, a neighbour on the host) then meets all combinations alike, and a campaign that
        ends early has whole repetitions.
        """
        names = [
            (model.name, variant.name, device.name)
            for model in self.models
            for variant in self.variants
            for device in self.devices
        ]
        draw = np.random.default_rng(self.protocol.seed)
        return tuple(
            Cell(model, variant, device, repetition)
            for repetition in range(1, self.protocol.repetitions + 1)
            for model, variant, device in (names[index] for index in draw.permutation(len(names)))
        )


def compile_options(
    model: ModelSpec, build: Build, device: DeviceSpec, protocol: ProtocolSpec
) -> CompileOptions:
    """How a variant is compiled.

    Raises:
        UsageError: The options contradict each other, or need data that the model has not.
    """
    return CompileOptions(
        target=device.target,
        calibration=model.calibration,
        evaluation=model.evaluation,
        labels=model.labels,
        preprocess=model.preprocess,
        metric=model.metric,
        precision=build.precision,
        passes=build.passes,
        recipe=build.recipe,
        max_drop=build.max_drop,
        effort=build.effort,
        seed=build.seed,
        confidence=protocol.confidence,
    )
