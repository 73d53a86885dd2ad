"""What a compile is asked to do, as validated data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from greencc.core.errors import UsageError


class Precision(Enum):
    """Which numeric form to build. AUTO keeps whatever measured best within the accuracy limit."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Effort(Enum):
    """How long to measure. QUICK is marked as such in the report and never clears an energy gate."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"


@dataclass(frozen=True)
class CompileOptions:
    """Options of `greencc.compile`; the command line has one flag for each.

    Attributes:
        target: Target and its options, e.g. ``cpu`` or ``cpu:threads=1``.
        calibration: Unlabelled inputs that set the quantization ranges (see docs/data.md), or None.
        evaluation: Held-out inputs, with labels where there are any. A quarter steers choices, the rest
            certifies. Without it, part of `calibration` is held out.
        labels: Labels in a file of their own (CSV, .npy, .npz or text).
        preprocess: TOML preprocessing spec for image folders.
        metric: ``module:function`` that scores samples; default top-1 accuracy or agreement.
        precision: See `Precision`.
        max_drop: Largest accuracy drop accepted, as a fraction (0.01 is one point).
        confidence: Confidence of the certificate and of the intervals.
        require_certified: Refuse an artifact whose accuracy could not be certified.
        recipe: A recipe file that replaces greencc's own choice of passes.
        samples: How many calibration samples set the ranges, at most.
        effort: See `Effort`.
        seed: Seed of the data splits.
    """

    target: str = "cpu"
    calibration: str | Path | None = None
    evaluation: str | Path | None = None
    labels: Path | None = None
    preprocess: Path | None = None
    metric: str | None = None
    precision: Precision = Precision.AUTO
    max_drop: float = 0.01
    confidence: float = 0.95
    require_certified: bool = False
    recipe: Path | None = None
    samples: int = 256
    effort: Effort = Effort.STANDARD
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.max_drop < 1.0:
            raise UsageError(
                f"max_drop is {self.max_drop:g}", hint="give a share between 0 and 1, such as 1%"
            )
        if not 0.5 <= self.confidence < 1.0:
            raise UsageError(
                f"confidence is {self.confidence:g}", hint="give a share between 50% and 100%, such as 95%"
            )
        if self.samples < 1:
            raise UsageError(f"samples is {self.samples}", hint="at least one calibration sample is needed")
        if self.recipe is not None and self.precision is not Precision.AUTO:
            raise UsageError(
                "a recipe and a precision contradict each other", hint="the recipe decides the precision"
            )
        if self.precision is Precision.INT8 and self.calibration is None and self.evaluation is None:
            raise UsageError(
                "static INT8 needs calibration data and none was given",
                hint="pass --calibration DATA (64 or more real inputs); --calibration synthetic works "
                "without data, but the result cannot be certified",
            )
        if self.labels is not None and self.evaluation is None and self.calibration is None:
            raise UsageError("labels were given without data to go with them", hint="pass --eval DATA")

    def asked(self) -> dict[str, Any]:
        """What the user asked of the artifact, for the report."""
        return {
            "precision": self.precision.value,
            "max_drop": self.max_drop,
            "confidence": self.confidence,
            "require_certified": self.require_certified,
        }


def parse_share(text: str) -> float:
    """Parse ``1%``, ``0.5 %`` or ``0.01`` into a fraction.

    Raises:
        UsageError: It is not a number, or ``1`` and above without a percent sign (ambiguous).
    """
    cleaned = text.strip()
    percent = cleaned.endswith("%")
    try:
        value = float(cleaned.removesuffix("%"))
    except ValueError:
        raise UsageError(f"{text!r} is not a share", hint="write 1% or 0.01") from None
    if percent:
        return value / 100.0
    if value >= 1.0:
        raise UsageError(f"{text!r} is ambiguous", hint=f"write {cleaned}% or a fraction below 1")
    return value
