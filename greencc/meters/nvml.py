"""NVIDIA GPUs through NVML (extra `greencc[nvidia]`): the total energy counter, else the power of the board.

Boundary: the boards, with their memory and voltage regulators; never the host. All GPUs of the machine are read, each
a domain of its own, or one that is asked for by its number: then the others need not answer.

What the figures mean (NVML API reference; Yang, Adamek and Armour, "Part-time power measurements: nvidia-smi's lack of
attention", arXiv 2312.02741):

* `nvmlDeviceGetTotalEnergyConsumption` (Volta and later) counts mJ in steps of about 100 ms.
* `NVML_FI_DEV_POWER_INSTANT` is power now; `nvmlDeviceGetPowerUsage` is a 1 s average on Ampere (except GA100) and
  later.
* On A100 and H100 only a quarter of the time is sampled, so short or periodic work can be wholly missed. With a
  period of 0.1 s the protocol's blocks of 100 periods last the 10 s that are needed at least; work must not repeat in
  step with the sampling.
* An accuracy of 5 % is published for Fermi and Kepler alone, which have no energy counter; so none is reported.

Work on a GPU is asynchronous: whoever measures waits for it to end before reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading
from greencc.meters._reading import Tally, moving

_PERIOD = 0.1
_AVERAGE_PERIOD = 1.0
_STUCK_AFTER_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_MILLI = 1e-3
_ON_JETSON = "on a Jetson NVML starts and tells no power: use the module's rails (the jetson meter)"


def load_pynvml() -> Any:
    """The `pynvml` module.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import pynvml
    except ImportError as error:
        raise UnavailableError(
            "NVML's Python bindings are not installed",
            hint="with an NVIDIA GPU: pip install 'greencc[nvidia]'",
        ) from error
    return pynvml


@dataclass
class Gpus:
    """The GPUs that NVML shows, opened when they are first asked for.

    Args:
        load: Gives the library: the `pynvml` module, or what stands in for it.
        only: Number of the one GPU that is wanted; None: all.
    """

    load: Callable[[], Any] = load_pynvml
    only: int | None = None
    library: Any = field(default=None, init=False, repr=False)
    handles: dict[int, Any] = field(default_factory=dict, init=False, repr=False)
    names: dict[int, str] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)

    def open(self) -> None:
        """Start the library and find the GPUs.

        Raises:
            UnavailableError: There is no library, driver or GPU.
        """
        if self.handles:
            return
        self.library = self.load()
        # NVML counts its users and is never shut down here: other code of this process may be using it.
        self.call("cannot be started (is the NVIDIA driver loaded?)", self.library.nvmlInit)
        count = self.call("tells no GPUs", self.library.nvmlDeviceGetCount)
        if not count:
            raise UnavailableError("NVML finds no NVIDIA GPU")
        self.count = count
        if self.only is not None and self.only >= count:
            raise UnavailableError(f"NVML finds no GPU {self.only}", hint=f"there are 0 to {count - 1}")
        wanted = range(count) if self.only is None else [self.only]
        handles = {
            number: self.of(number, "gives no handle", self.library.nvmlDeviceGetHandleByIndex, number)
            for number in wanted
        }
        for number, handle in handles.items():
            name = self.of(number, "tells no name", self.library.nvmlDeviceGetName, handle)
            self.names[number] = name.decode() if isinstance(name, bytes) else str(name)
        self.handles = handles

    def of(self, number: int, failing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """`call`, about one GPU; where there are more, the message tells how to do without it."""
        try:
            return self.call(f"{failing} of GPU {number}", function, *arguments)
        except UnavailableError as error:
            several = self.only is None and self.count > 1
            hint = "to measure one of the others alone give its number, such as nvml:0" if several else None
            raise UnavailableError(error.message, hint=hint) from error

    def call(self, failing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call NVML; its errors become an `UnavailableError` that says what is `failing`."""
        try:
            return function(*arguments)
        except self.library.NVMLError as error:
            raise UnavailableError(f"NVML {failing}: {error}") from error

    def boundary(self) -> str:
        listed = ", ".join(f"{number}: {name}" for number, name in self.names.items())
        if self.only is not None:
            return f"GPU board {listed}" if listed else f"GPU board {self.only}"
        if len(self.names) == 1:
            return f"GPU board ({self.names[0]})"
        return f"{len(self.names)} GPU boards ({listed})" if self.names else "GPU boards"

    def energy(self) -> dict[str, float]:
        """Joules that each GPU has counted since its driver was loaded."""
        self.open()
        function = self.library.nvmlDeviceGetTotalEnergyConsumption
        return {
            f"gpu-{number}": self.of(number, "tells no energy", function, handle) * _MILLI
            for number, handle in self.handles.items()
        }

    def instant(self) -> dict[str, float]:
        """Watts that each GPU draws now."""
        self.open()
        wanted = getattr(self.library, "NVML_FI_DEV_POWER_INSTANT", None)
        if wanted is None:
            raise UnavailableError("these bindings know no instant power", hint="pip install -U nvidia-ml-py")
        watts = {}
        for number, handle in self.handles.items():
            (value,) = self.of(
                number, "tells no power", self.library.nvmlDeviceGetFieldValues, handle, [wanted]
            )
            if value.nvmlReturn != self.library.NVML_SUCCESS:
                error = self.library.NVMLError(value.nvmlReturn)
                raise UnavailableError(f"NVML tells no instant power of GPU {number}: {error}")
            watts[f"gpu-{number}"] = value.value.uiVal * _MILLI
        return watts

    def average(self) -> dict[str, float]:
        """Watts of each GPU, averaged over a second on most."""
        self.open()
        return {
            f"gpu-{number}": self.of(number, "tells no power", self.library.nvmlDeviceGetPowerUsage, handle)
            * _MILLI
            for number, handle in self.handles.items()
        }


def open_nvml(
    load: Callable[[], Any] = load_pynvml,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    *,
    only: int | None = None,
) -> Meter | PowerMeter:
    """The best meter that all GPUs, or the `only` one, have: the energy counter if it moves, instant power, or averaged
    power."""
    gpus = Gpus(load, only)
    counter = NvmlMeter(gpus, clock, sleep)
    try:
        gpus.open()
    except UnavailableError:
        return counter
    if counter.missing() is None:
        return counter
    instant = NvmlPowerMeter(gpus, clock)
    return instant if instant.missing() is None else NvmlPowerMeter(gpus, clock, averaged=True)


@dataclass
class _Nvml:
    """What both kinds share.

    Args:
        gpus: Whose.
        clock: Monotonic seconds.
    """

    gpus: Gpus = field(default_factory=Gpus)
    clock: Callable[[], float] = time.monotonic

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """None is published for GPUs later than Kepler."""
        return None

    @property
    def boundary(self) -> str:
        """E.g. ``GPU board (NVIDIA H200)``."""
        return self.gpus.boundary()

    def _named(self, name: str) -> str:
        return name if self.gpus.only is None else f"{name}:{self.gpus.only}"


@dataclass
class NvmlMeter(_Nvml):
    """The energy counters; implements `greencc.core.meter.Meter`.

    Args:
        sleep: Waits while probing.
    """

    sleep: Callable[[float], None] = time.sleep
    _tally: Tally = field(
        default_factory=lambda: Tally("NVML energy", _STUCK_AFTER_SECONDS), init=False, repr=False
    )

    @property
    def name(self) -> str:
        return self._named("nvml")

    @property
    def period_s(self) -> float:
        """The counters step about every 100 ms."""
        return _PERIOD

    def missing(self) -> str | None:
        """See each GPU's counter move; say why there is none."""
        try:
            moved = moving(self.gpus.energy, self.sleep, _PROBE_SECONDS)
        except UnavailableError as error:
            return str(error)
        stuck = [f"gpu-{number}" for number in self.gpus.handles if f"gpu-{number}" not in moved]
        return f"the NVML energy counter of {', '.join(stuck)} never moves" if stuck else None

    def read(self) -> Reading:
        """Joules of each GPU since the first reading.

        Raises:
            UnavailableError: A GPU or the driver went away, or a counter went back or stands still.
        """
        joules = self.gpus.energy()
        return self._tally.reading(self.clock(), joules)


@dataclass
class NvmlPowerMeter(_Nvml):
    """Power of the boards; implements `greencc.core.meter.PowerMeter`.

    Args:
        averaged: Read `nvmlDeviceGetPowerUsage`, which older GPUs have.
    """

    averaged: bool = False

    @property
    def name(self) -> str:
        return self._named("nvml-average" if self.averaged else "nvml-instant")

    @property
    def period_s(self) -> float:
        """0.1 s, or the second that the average runs over."""
        return _AVERAGE_PERIOD if self.averaged else _PERIOD

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            # The library is there and answers: what it refuses is power.
            return f"{error} ({_ON_JETSON})" if self.gpus.handles else str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each GPU.

        Raises:
            UnavailableError: A GPU or the driver went away, or tells no power.
        """
        watts = self.gpus.average() if self.averaged else self.gpus.instant()
        return PowerSample(self.clock(), watts)
