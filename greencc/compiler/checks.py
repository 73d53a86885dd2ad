"""What is refused before anything is built."""

from __future__ import annotations

from pathlib import Path

from greencc.bundle.manifest import FILE_NAME as MANIFEST
from greencc.compiler.named import recipe_precision
from greencc.compiler.options import CompileOptions
from greencc.compiler.planning.modes import modes_of_profile
from greencc.compiler.untimed import Estimator
from greencc.core.engine import Target
from greencc.core.errors import InputError, UsageError
from greencc.core.pass_list import parse_passes
from greencc.passes import PASSES


def check_output(final: Path, force: bool) -> None:
    """Refuse to overwrite: without `force` anything, with it whatever is not a bundle."""
    if not final.exists():
        return
    if not force:
        raise InputError(f"{final} already exists", hint="choose another name or pass --force")
    if not (final / MANIFEST).is_file():
        raise InputError(
            f"{final} exists and is not a bundle, so --force does not replace it", hint="choose another name"
        )


def check_passes(options: CompileOptions) -> None:
    """Refuse a list of passes that is wrong, or that needs data where there are none."""
    if options.passes is None:
        return
    precision = recipe_precision(parse_passes(options.passes, PASSES))
    if precision.needs_calibration and options.calibration is None:
        raise UsageError(
            f"precision {precision.value} needs calibration data and none was given",
            hint="pass --calibration DATA (64 or more real inputs); --calibration synthetic works "
            "without data, but the result cannot be certified",
        )


def check_plan(options: CompileOptions, target: Target) -> None:
    """Refuse a device that nothing can be estimated of, and power modes of another, before anything is built."""
    estimator = Estimator.of(target)
    if options.plans and estimator is not None:
        modes_of_profile(estimator.profile, options.limits)
