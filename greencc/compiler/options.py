"""What a compile is asked to do, as validated data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from greencc.core.errors import UsageError
from greencc.execution import check_engine
from greencc.measure.carbon import CarbonOptions
from greencc.planner.budget import BudgetLimit, Objective, parse_budget

MAX_SEARCH_SECONDS = 86_400
DEFAULT_TARGET = "cpu"


class Precision(Enum):
    """Which numeric form to build. AUTO keeps whatever measured best within the accuracy limit.

    FP16 and BF16 compute in half precision where the target does, and store weights in it elsewhere. INT8 has
    activations quantized with ranges from calibration data, INT8_DYNAMIC at run time. The `_WEIGHTS` forms store
    weights in few bits and compute in float. MIXED is INT8 with those layers in float that accuracy or speed ask for.
    """

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"
    MIXED = "mixed"

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have fixed ranges, which only data can tell."""
        return self in (Precision.INT8, Precision.MIXED)


class QuantizedFormat(Enum):
    """How an INT8 artifact is written: float operators between Q/DQ pairs, or integer operators."""

    QDQ = "qdq"
    QOPERATOR = "qoperator"


class Effort(Enum):
    """How long to measure. QUICK is marked as such in the report and never clears an energy gate."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"


@dataclass(frozen=True)
class CompileOptions:
    """Options of `greencc.compile`; the command line has one flag for each.

    Attributes:
        target: Target and its options, e.g. ``cpu`` or ``cpu:threads=1``; empty: ``cpu``, or what fits the device.
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
        passes: Passes in one line (`core.pass_list`), run after the clean-up.
        samples: How many calibration samples set the ranges, at most.
        effort: See `Effort`.
        seed: Seed of the data splits.
        format: How static INT8 is written.
        search_seconds: Longest time spent on finding which layers must stay in float.
        cache: Keep statistics, rounding decisions and error tables for later compiles and after an interruption.
        carbon: The grid and the device that the report's carbon figures are for.
        budget: What the artifact may take, such as ``5W,33ms`` (`greencc.planner.budget`): greencc then plans.
        minimize: What the plan minimises within the budget; default: energy. It makes greencc plan, too.
        rate: Requests per second that a budget of watts is for; None: flat out.
        time_budget: Longest time that planning takes, in seconds.
        engine: Where candidates are evaluated: ``local``, ``ray`` or ``ray://host:port`` (`greencc.execution`).
        workers: Processes that evaluate candidates; 1: this process alone; 0: as many as pay (`greencc.execution`).
        tune: Seconds to spend on finding faster kernels, on targets that generate code; None: what was found earlier.
        device: Where to build, run and measure: ``ssh://user@host``, a name of `greencc devices add`, or ``local``;
            empty: this computer.
        set_power_mode: None: the device's power mode stays. A name: it is changed to that one, and put back in the end.
            Empty: it may be changed, as a plan wants.
    """

    target: str = ""
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
    passes: str | None = None
    samples: int = 256
    effort: Effort = Effort.STANDARD
    seed: int = 0
    format: QuantizedFormat = QuantizedFormat.QDQ
    search_seconds: float = 300.0
    cache: bool = True
    carbon: CarbonOptions = field(default_factory=CarbonOptions)
    budget: str | tuple[BudgetLimit, ...] = ()
    minimize: Objective | None = None
    rate: float | None = None
    time_budget: float = 600.0
    engine: str = "local"
    workers: int = 0
    tune: float | None = None
    device: str = ""
    set_power_mode: str | None = None

    def __post_init__(self) -> None:
        self._check_device()
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
        if self.recipe is not None and self.passes is not None:
            raise UsageError(
                "a recipe and a list of passes exclude each other",
                hint="a recipe says all passes, a list those after the clean-up",
            )
        for what, given in (("recipe", self.recipe), ("list of passes", self.passes)):
            if given is not None and self.format is not QuantizedFormat.QDQ:
                raise UsageError(
                    f"a {what} and a format contradict each other",
                    hint=f"end the {what} with the pass convert-qoperator",
                )
            if given is not None and self.precision is not Precision.AUTO:
                raise UsageError(
                    f"a {what} and a precision contradict each other",
                    hint=f"the {what} decides the precision",
                )
        if not 0 <= self.search_seconds <= MAX_SEARCH_SECONDS:
            raise UsageError(
                f"search_seconds is {self.search_seconds:g}", hint=f"give 0 to {MAX_SEARCH_SECONDS:,} seconds"
            )
        self._check_tuning()
        self._check_plan()
        if self.format is QuantizedFormat.QOPERATOR and self.precision in (
            Precision.FP32,
            Precision.FP16,
            Precision.BF16,
            Precision.INT8_DYNAMIC,
            Precision.INT8_WEIGHTS,
            Precision.INT4_WEIGHTS,
        ):
            raise UsageError(
                f"the format qoperator is for static INT8, and the precision is {self.precision.value}",
                hint="leave --format out, or use --precision int8, mixed or auto",
            )
        if self.precision.needs_calibration and self.calibration is None and self.evaluation is None:
            raise UsageError(
                f"precision {self.precision.value} needs calibration data and none was given",
                hint="pass --calibration DATA (64 or more real inputs); --calibration synthetic works "
                "without data, but the result cannot be certified",
            )
        if self.labels is not None and self.evaluation is None and self.calibration is None:
            raise UsageError("labels were given without data to go with them", hint="pass --eval DATA")

    def _check_device(self) -> None:
        if not self.device:
            if self.set_power_mode is not None:
                raise UsageError(
                    "a power mode is changed on a device, and none is given",
                    hint="add --device ssh://user@host",
                )
            object.__setattr__(self, "target", self.target or DEFAULT_TARGET)
            return
        if self.engine != "local" or self.workers > 1:
            raise UsageError(
                "candidates are evaluated on the device, and other places for them are given",
                hint="leave --engine and --workers out",
            )
        if self.tune is not None:
            raise UsageError(
                "kernels cannot be tuned on a device yet",
                hint="leave --tune out, or run 'greencc tune' on the device itself",
            )

    def _check_tuning(self) -> None:
        if self.tune is None:
            return
        if not 0 < self.tune <= MAX_SEARCH_SECONDS:
            raise UsageError(
                f"the time to tune is {self.tune:g} s",
                hint=f"give more than 0 and up to {MAX_SEARCH_SECONDS:,} s, such as 10m",
            )
        if not self.cache:
            raise UsageError(
                "tuning and doing without a cache exclude each other",
                hint="what tuning finds is kept in the cache, where later compiles find it",
            )

    def _check_plan(self) -> None:
        if not 0 < self.time_budget <= MAX_SEARCH_SECONDS:
            raise UsageError(
                f"time_budget is {self.time_budget:g}", hint=f"give up to {MAX_SEARCH_SECONDS:,} seconds"
            )
        check_engine(self.engine, self.workers)
        if self.rate is not None and not 0.0 < self.rate < float("inf"):
            raise UsageError(f"rate is {self.rate:g}", hint="give requests per second above 0")
        if isinstance(self.budget, str):
            object.__setattr__(self, "budget", parse_budget(self.budget))
        if not self.plans:
            if self.rate is not None:
                raise UsageError(
                    f"a rate of {self.rate:g}/s is given and nothing that it is for",
                    hint="it is what a budget of watts is for: add --budget 5W",
                )
            return
        asked = "a budget" if self.budget else "an objective"
        if self.by_name:
            raise UsageError(
                f"{asked} and passes that are given exclude each other",
                hint="leave --recipe and --passes out, or the budget and --minimize",
            )
        if self.precision is not Precision.AUTO:
            raise UsageError(
                f"{asked} and the precision {self.precision.value} exclude each other",
                hint="with a budget the plan decides the precision, layer by layer",
            )

    @property
    def limits(self) -> tuple[BudgetLimit, ...]:
        """The limits of the budget."""
        assert not isinstance(self.budget, str)
        return self.budget

    @property
    def plans(self) -> bool:
        """Whether a plan is wanted: there is a budget or an objective."""
        return bool(self.budget) or self.minimize is not None

    @property
    def by_name(self) -> bool:
        """Whether the user says which passes run: then there is one form, and it is kept for better or worse."""
        return self.recipe is not None or self.passes is not None

    def asked(self) -> dict[str, Any]:
        """What the user asked of the artifact, for the report."""
        own = {"passes": self.passes, "recipe": None if self.recipe is None else self.recipe.name}
        if self.plans:
            own["budget"] = ",".join(limit.shown for limit in self.limits) or None
            own["minimize"] = (self.minimize or Objective.ENERGY).value
            own["rate"] = None if self.rate is None else f"{self.rate:g}/s"
        return {
            **{key: value for key, value in own.items() if value is not None},
            "precision": self.precision.value,
            "format": self.format.value,
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


_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Parse ``90``, ``90s``, ``5m``, ``1h`` or ``30d`` into seconds.

    Raises:
        UsageError: It is not a duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or (match[2] or "s") not in _UNITS:
        raise UsageError(f"{text!r} is not a duration", hint="write 90s, 5m, 1h or 30d")
    return float(match[1]) * _UNITS[match[2] or "s"]


_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*([a-z]+))?")


def parse_rate(text: str) -> float:
    """Parse ``30/s``, ``1800/min`` or ``30`` into requests per second.

    Raises:
        UsageError: It is not a rate above 0.
    """
    match = _RATE.fullmatch(text.strip().lower())
    unit = (match[2] or "s") if match else ""
    if match is None or unit not in _UNITS or unit == "d" or float(match[1]) == 0.0:
        raise UsageError(f"{text!r} is not a rate of requests", hint="write 30/s or 1800/min")
    return float(match[1]) / _UNITS[unit]
