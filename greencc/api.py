"""The Python API: everything the command line does, as short typed functions."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TypeVar

from greencc.bundle import Bundle, load
from greencc.compiler import CompileOptions, Effort, Precision, check, compile_model
from greencc.compiler.campaign import make_plan
from greencc.compiler.measurement import Measurement
from greencc.compiler.options import QuantizedFormat
from greencc.core.errors import UsageError, did_you_mean
from greencc.core.progress import Progress, silent
from greencc.core.report import Accuracy
from greencc.measure.carbon import CarbonOptions
from greencc.planner.budget import Objective

E = TypeVar("E", bound=Enum)

__all__ = ["compile", "load", "measure_artifact", "verify_accuracy"]


def compile(  # noqa: A001 - the name users expect: greencc.compile
    model: str | Path,
    *,
    target: str = "",
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    labels: str | Path | None = None,
    preprocess: str | Path | None = None,
    metric: str | None = None,
    precision: Precision | str = Precision.AUTO,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    require_certified: bool = False,
    recipe: str | Path | None = None,
    passes: str | None = None,
    samples: int = 256,
    effort: Effort | str = Effort.STANDARD,
    seed: int = 0,
    format: QuantizedFormat | str = QuantizedFormat.QDQ,  # noqa: A002 - as the option is called
    search_seconds: float = 300.0,
    cache: bool = True,
    carbon: CarbonOptions | None = None,
    budget: str = "",
    minimize: Objective | str | None = None,
    rate: float | None = None,
    time_budget: float = 600.0,
    engine: str = "local",
    workers: int = 0,
    tune: float | None = None,
    device: str = "",
    set_power_mode: str | None = None,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Compile an ONNX model into a verified, measured bundle; see `CompileOptions` for what the options mean.

    Raises:
        GreenccError: A problem you can act on; its subclass and `exit_code` say which kind.
    """
    options = CompileOptions(
        target=target,
        calibration=calibration,
        evaluation=evaluation,
        labels=_path(labels),
        preprocess=_path(preprocess),
        metric=metric,
        precision=_choice(Precision, precision),
        max_drop=max_drop,
        confidence=confidence,
        require_certified=require_certified,
        recipe=_path(recipe),
        passes=passes,
        samples=samples,
        effort=_choice(Effort, effort),
        seed=seed,
        format=_choice(QuantizedFormat, format),
        search_seconds=search_seconds,
        cache=cache,
        carbon=carbon or CarbonOptions(),
        budget=budget or (),
        minimize=None if minimize is None else _choice(Objective, minimize),
        rate=rate,
        time_budget=time_budget,
        engine=engine,
        workers=workers,
        tune=tune,
        device=device,
        set_power_mode=set_power_mode,
    )
    return compile_model(Path(model), options, output=_path(output), force=force, progress=progress)


def verify_accuracy(
    bundle: str | Path | Bundle,
    model: str | Path,
    evaluation: str | Path,
    *,
    labels: str | Path | None = None,
    preprocess: str | Path | None = None,
    metric: str | None = None,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    trust: bool | str = False,
    device: str = "",
    progress: Progress = silent,
) -> Accuracy:
    """Check a bundle's hashes and compare it with the model it was compiled from; `trust` is that of `load`.

    With a `device` (``ssh://user@host`` or a name) the artifact runs there.
    """
    loaded = bundle if isinstance(bundle, Bundle) else load(bundle, trust=trust)
    return check.verify_accuracy(
        loaded,
        Path(model),
        evaluation,
        labels=_path(labels),
        preprocess=_path(preprocess),
        metric=metric,
        max_drop=max_drop,
        confidence=confidence,
        device=device,
        progress=progress,
    )


def measure_artifact(
    subject: str | Path,
    *,
    baseline: str | Path | None = None,
    data: str | Path | None = None,
    preprocess: str | Path | None = None,
    target: str = "",
    protocol: str = "default",
    rate: float | None = None,
    poisson: bool = False,
    until: float | None = None,
    limit_seconds: float | None = None,
    meter: str | None = None,
    confidence: float = 0.95,
    trust: bool | str = False,
    device: str = "",
    set_power_mode: str | None = None,
    progress: Progress = silent,
) -> tuple[Measurement, tuple[str, ...]]:
    """Measure a bundle or a model in turns with a baseline; returns the figures and the warnings.

    `protocol`, `rate` (requests per second; None: flat out), `poisson`, `until` (a relative half-width),
    `limit_seconds` and `meter` are the options of `greencc measure`; `trust` is that of `load`. The result's `campaign`
    has the blocks, the trace and what was discarded; its `result.problem` is not None where energy could not be
    measured, or only in part. With a `device` all of that is done there, by its own meter.

    Raises:
        GreenccError: A problem you can act on; its subclass and `exit_code` say which kind.
    """
    return check.measure(
        Path(subject),
        baseline=_path(baseline),
        data=data,
        preprocess=_path(preprocess),
        target=target,
        plan=make_plan(
            protocol, rate=rate, poisson=poisson, until=until, limit_seconds=limit_seconds, meter=meter
        ),
        confidence=confidence,
        trust=trust,
        device=device,
        set_power_mode=set_power_mode,
        progress=progress,
    )


def _choice(kind: type[E], value: E | str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = [str(item.value) for item in kind]
        raise UsageError(
            f"{kind.__name__.lower()} is {value!r}", hint=did_you_mean(str(value), known)
        ) from None


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
