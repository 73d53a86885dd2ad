"""Targets that choose how their kernels are written by measuring them on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from greencc.core.errors import UnavailableError
from greencc.core.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.core.engine import Target


@dataclass(frozen=True)
class TuningReport:
    """What tuning did.

    Attributes:
        seconds: It took.
        kernels: Different kernels of the models.
        trials: Schedules that were built and measured, in this run.
        complete: Kernels for which nothing is left to try.
        faster: Kernels that have a faster schedule than the one without tuning, from this run or an earlier one.
        default_us: What all kernels take in one inference with the schedules that they have without tuning.
        tuned_us: The same with the best ones.
        failed: Schedules that could not be built, crashed or computed something else, with the reason.
        warnings: What is wrong with where the schedules are kept.
    """

    seconds: float
    kernels: int
    trials: int
    complete: int
    faster: int
    default_us: float
    tuned_us: float
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """How many times faster the kernels have become; 1.0 without any."""
        return self.default_us / self.tuned_us if self.tuned_us > 0.0 else 1.0


@runtime_checkable
class Tunable(Protocol):
    """A target that can be tuned. What it finds is kept and used by every later `build`."""

    def cannot_tune(self) -> str | None:
        """Why it cannot be tuned on this machine, or None when it can."""

    def check_schedules(self) -> tuple[str, ...]:
        """What is wrong with where schedules are kept; told once, because a damaged file is set aside."""

    def tune(self, model: ir.Model, seconds: float, progress: Progress) -> TuningReport:
        """Find faster schedules for the kernels of a model.

        Args:
            model: As for `Target.lower`.
            seconds: To spend at most. An interruption keeps what was found.
            progress: Shows how far it is.
        """


def tunable(target: Target) -> Tunable:
    """The target, if it can be tuned here.

    Raises:
        UnavailableError: It cannot.
    """
    if target.estimated_on() is not None:
        raise UnavailableError(
            f"target {target.name!r} cannot be tuned here: its code runs on another machine, and is not timed here",
            hint="tune on the machine itself, with --target tvm-cpu",
        )
    if not isinstance(target, Tunable):
        raise UnavailableError(
            f"target {target.name!r} has nothing to tune: its run time has kernels of its own",
            hint="leave tuning out, or use --target tvm-cpu",
        )
    if reason := target.cannot_tune():
        raise UnavailableError(f"target {target.name!r} cannot be tuned here: {reason}")
    return target
