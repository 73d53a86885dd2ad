"""AMD GPUs through AMD SMI (extra `greencc[amd]`, and ROCm's libamd_smi): the energy counter, else the power.

Boundary: the GPU socket (package with its memory on accelerators); never the host. All GPUs of the machine are read,
each a domain of its own. AMD publishes neither an accuracy nor how often the figures update; 0.1 s is assumed.

Some generations of library and firmware give the same energy for ever (ROCm/amdsmi issue 22): a counter that does not
move is not used.

Source: AMD SMI Python API reference, `amdsmi_get_energy_count` (`energy_accumulator`, older `power`, times
`counter_resolution` in uJ) and `amdsmi_get_power_info` (W; ``"N/A"`` where a chip does not tell).
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading
from greencc.meters._reading import Tally, moving

_PERIOD = 0.1
_STUCK_AFTER_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_MICRO = 1e-6
# MI300 and later tell the current power, the others an average of the firmware's; ROCm 7 has one field for both.
_POWERS = ("current_socket_power", "average_socket_power", "socket_power")


def load_amdsmi() -> Any:
    """The `amdsmi` module.

    Raises:
        UnavailableError: It, or the library it wraps, is not installed.
    """
    try:
        # It prints why it cannot find its library, and then fails with a KeyError.
        with contextlib.redirect_stdout(io.StringIO()):
            import amdsmi
    except ImportError as error:
        raise UnavailableError(
            "AMD SMI's Python bindings are not installed", hint="with an AMD GPU: pip install 'greencc[amd]'"
        ) from error
    except (KeyError, OSError, AttributeError) as error:
        raise UnavailableError(
            "libamd_smi.so, which amdsmi wraps, does not load", hint="install ROCm's amd-smi-lib"
        ) from error
    return amdsmi


@dataclass
class AmdGpus:
    """The GPUs that AMD SMI shows, opened when they are first asked for.

    Args:
        load: Gives the library: the `amdsmi` module, or what stands in for it.
    """

    load: Callable[[], Any] = load_amdsmi
    library: Any = field(default=None, init=False, repr=False)
    handles: tuple[Any, ...] = field(default=(), init=False, repr=False)

    def open(self) -> None:
        """Start the library and find the GPUs.

        Raises:
            UnavailableError: There is no library, driver or GPU.
        """
        if self.handles:
            return
        self.library = self.load()
        self.call("cannot be started (is the amdgpu driver loaded?)", self.library.amdsmi_init)
        self.handles = tuple(self.call("tells no GPUs", self.library.amdsmi_get_processor_handles))
        if not self.handles:
            raise UnavailableError("AMD SMI finds no AMD GPU")

    def call(self, failing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call AMD SMI; its errors become an `UnavailableError` that says what is `failing`."""
        try:
            return function(*arguments)
        except self.library.AmdSmiException as error:
            raise UnavailableError(f"AMD SMI {failing}: {' '.join(str(error).split())}") from error

    def energy(self) -> dict[str, float]:
        """Joules that each GPU has counted."""
        self.open()
        joules = {}
        for number, handle in enumerate(self.handles):
            told = self.call("tells no energy", self.library.amdsmi_get_energy_count, handle)
            count = _number(told.get("energy_accumulator", told.get("power")))
            resolution = _number(told.get("counter_resolution"))
            if count is None or not resolution:
                raise UnavailableError(f"AMD SMI tells no energy of GPU {number}: {told}")
            joules[f"gpu-{number}"] = count * resolution * _MICRO
        return joules

    def power(self) -> dict[str, float]:
        """Watts that each GPU draws."""
        self.open()
        watts = {}
        for number, handle in enumerate(self.handles):
            told = self.call("tells no power", self.library.amdsmi_get_power_info, handle)
            # No GPU draws 0 W: that, too, is a field that this chip does not fill.
            found = next((value for name in _POWERS if (value := _number(told.get(name)))), None)
            if found is None:
                raise UnavailableError(f"AMD SMI tells no power of GPU {number}: {told}")
            watts[f"gpu-{number}"] = found
        return watts


def _number(value: object) -> float | None:
    """A count or a measure; None for ``"N/A"`` and the like."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value < float("inf")
    return float(value) if usable and isinstance(value, (int, float)) else None


def open_amdsmi(
    load: Callable[[], Any] = load_amdsmi,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Meter | PowerMeter:
    """The best meter that these GPUs have: the energy counter if it moves, else the power."""
    gpus = AmdGpus(load)
    counter = AmdMeter(gpus, clock, sleep)
    try:
        gpus.open()
    except UnavailableError:
        return counter
    return counter if counter.missing() is None else AmdPowerMeter(gpus, clock)


@dataclass
class _Amd:
    """What both kinds share.

    Args:
        gpus: Whose.
        clock: Monotonic seconds.
    """

    gpus: AmdGpus = field(default_factory=AmdGpus)
    clock: Callable[[], float] = time.monotonic

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """AMD publishes none."""
        return None

    @property
    def period_s(self) -> float:
        """Assumed: AMD publishes none."""
        return _PERIOD

    @property
    def boundary(self) -> str:
        count = len(self.gpus.handles)
        return "GPU socket" if count == 1 else f"{count} GPU sockets" if count else "GPU sockets"


@dataclass
class AmdMeter(_Amd):
    """The energy counters; implements `greencc.core.meter.Meter`.

    Args:
        sleep: Waits while probing.
    """

    sleep: Callable[[float], None] = time.sleep
    _tally: Tally = field(
        default_factory=lambda: Tally("AMD SMI energy", _STUCK_AFTER_SECONDS), init=False, repr=False
    )

    @property
    def name(self) -> str:
        return "amdsmi"

    def missing(self) -> str | None:
        """See each GPU's counter move; say why there is none."""
        try:
            moved = moving(self.gpus.energy, self.sleep, _PROBE_SECONDS)
        except UnavailableError as error:
            return str(error)
        stuck = [f"gpu-{number}" for number in range(len(self.gpus.handles)) if f"gpu-{number}" not in moved]
        return f"the AMD SMI energy counter of {', '.join(stuck)} never moves" if stuck else None

    def read(self) -> Reading:
        """Joules of each GPU since the first reading.

        Raises:
            UnavailableError: A GPU or the driver went away, or a counter went back or stands still.
        """
        joules = self.gpus.energy()
        return self._tally.reading(self.clock(), joules)


@dataclass
class AmdPowerMeter(_Amd):
    """Power of the sockets; implements `greencc.core.meter.PowerMeter`."""

    @property
    def name(self) -> str:
        return "amdsmi-power"

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            return str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each GPU.

        Raises:
            UnavailableError: A GPU or the driver went away, or tells no power.
        """
        watts = self.gpus.power()
        return PowerSample(self.clock(), watts)
