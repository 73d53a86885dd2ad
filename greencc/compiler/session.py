"""What one compile carries along: target, timing, progress, warnings, scratch space."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from greencc.compiler.options import CompileOptions
from greencc.core.cache import Cache, default_folder
from greencc.core.engine import Engine, Target
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.progress import Progress, silent
from greencc.core.report import CompileInfo, ModelTuning
from greencc.devices.target import DeviceTarget
from greencc.execution import Executor, make_executor, runs_here
from greencc.meters.window import Window
from greencc.targets import make_target

if TYPE_CHECKING:
    from greencc.compiler.untimed import Estimator


@dataclass
class Deadline:
    """When a search has to end."""

    seconds: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    @property
    def over(self) -> bool:
        return self.left <= 0.0


@dataclass
class Session:
    """State shared by the phases of one compile.

    `scratch` is removed, and `engines` are closed, when the compile ends. `window` is where the energy of the whole is
    wanted; `source` is the digest of the model. `execution` and `workers` say where candidates are evaluated
    (`greencc.execution.make_executor`). `tuning` is what was tuned so far (`greencc.compiler.tuning`).
    """

    options: CompileOptions
    target: Target
    scratch: Path
    progress: Progress = silent
    warnings: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    cache: Cache = field(init=False)
    engines: list[Engine] = field(default_factory=list)
    window: Window | None = None
    source: str = ""
    execution: str = "local"
    workers: int = 1
    tuning: list[ModelTuning] = field(default_factory=list)
    _executor: Executor | None = field(default=None, init=False, repr=False)

    @property
    def executor(self) -> Executor:
        """Where candidates are evaluated; started when it is first asked for."""
        if self._executor is None:
            self._executor = make_executor(self.execution, self.workers)
        return self._executor

    @cached_property
    def estimator(self) -> Estimator | None:
        """What estimates times where the target's cannot be measured here; None: they are measured."""
        from greencc.compiler.untimed import Estimator

        return Estimator.of(self.target)

    @property
    def on_device(self) -> bool:
        """Whether engines run on another machine than this one, and are timed there."""
        return isinstance(self.target, DeviceTarget)

    @property
    def free_workers(self) -> int:
        """How many other processes there are for work now; none are started to tell that there are none."""
        if self._executor is None and runs_here(self.execution, self.workers):
            return 0
        executor = self.executor
        return 0 if executor.here or executor.busy else executor.workers

    def __post_init__(self) -> None:
        self.cache = Cache(default_folder() if self.options.cache else None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and show its name while it runs."""
        start = time.perf_counter()
        for _ in self.progress((None,), label=name.capitalize()):
            yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def close(self) -> None:
        """Free what is still open, however the compile ended."""
        for engine in self.engines:
            engine.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def compile_info(self) -> CompileInfo:
        return CompileInfo(
            seconds=time.perf_counter() - self.started,
            peak_rss_mb=peak_rss_mb(),
            phases=dict(self.phases),
            tuning=tuple(self.tuning),
        )


def timed_target(spec: str) -> Target:
    """`available_target`, for what has to be timed.

    Raises:
        UsageError: There is no such target or option, or nothing is timed on it here.
        UnavailableError: It cannot run on this machine.
    """
    target = available_target(spec)
    require_timed(target)
    return target


def require_timed(target: Target) -> None:
    """Raise `UsageError` for a target whose engines do not run on its device."""
    profile = target.estimated_on()
    if profile is not None:
        raise UsageError(
            f"nothing can be timed or measured for {target.name} here: it does not run on its device",
            hint=f"'greencc report BUNDLE' has a bundle's estimates, 'greencc estimate MODEL.onnx --device {profile}' "
            "makes those of a model; or measure on the device itself",
        )


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def available_target(spec: str) -> Target:
    """Parse a target spec and make sure that it runs here.

    Raises:
        UsageError: There is no such target or option.
        UnavailableError: It cannot run on this machine.
    """
    target = make_target(spec)
    if missing := target.missing():
        raise UnavailableError(
            f"target {target.name!r} is not available here: {missing}", hint="see 'greencc doctor'"
        )
    return target
