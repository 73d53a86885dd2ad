"""The CPU's energy counters as perf events (`power/energy-pkg/`, `power/energy-ram/`).

They are the counters that powercap shows (see `greencc.meters.rapl`), behind another permission: a machine that hides
`energy_uj` from users may let them open perf events. `energy-psys`, `energy-cores` and `energy-gpu` are never added:
they contain, or are parts of, the package. The kernel extends the 32-bit hardware counters to 64 bits, so none wraps.

Source: perf_event_open(2); Linux, arch/x86/events/rapl.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from greencc.core.errors import UnavailableError
from greencc.core.machine import read_text
from greencc.core.meter import Grade, Reading
from greencc.meters._reading import SYSFS, Tally, moving

PROC = Path("/proc")
_FOLDER = "bus/event_source/devices/power"
_EVENTS = {"energy-pkg": "package", "energy-ram": "dram"}
_SYSCALLS = {"x86_64": 298, "AMD64": 298, "i686": 336, "aarch64": 241}
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_CLOSE_ON_EXEC = 8
_STUCK_AFTER_SECONDS = 1.0
_PROBE_SECONDS = 0.5
_ORDER = sys.byteorder


class PerfCalls(Protocol):
    """The three system calls that counting takes."""

    def open(self, kind: int, config: int, cpu: int) -> int:
        """Open event `config` of source `kind` for all processes on `cpu`; the file descriptor, or OSError."""

    def read(self, descriptor: int) -> bytes:
        """Its counter, eight bytes in the machine's order; or OSError."""

    def close(self, descriptor: int) -> None: ...


class SystemPerf:
    """`PerfCalls` of this machine. glibc has no wrapper for perf_event_open."""

    def open(self, kind: int, config: int, cpu: int) -> int:
        number = _SYSCALLS.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, f"perf_event_open is not known on {platform.machine()}")
        # struct perf_event_attr begins with type (u32), size (u32) and config (u64); the rest may be zero.
        head = kind.to_bytes(4, _ORDER) + _ATTRIBUTE_BYTES.to_bytes(4, _ORDER) + config.to_bytes(8, _ORDER)
        attributes = ctypes.create_string_buffer(head.ljust(_ATTRIBUTE_BYTES, b"\0"), _ATTRIBUTE_BYTES)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        syscall.restype = ctypes.c_long
        arguments = (ctypes.c_int(-1), ctypes.c_int(cpu), ctypes.c_int(-1), ctypes.c_ulong(_CLOSE_ON_EXEC))
        found = int(syscall(ctypes.c_long(number), attributes, *arguments))
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return found

    def read(self, descriptor: int) -> bytes:
        return os.read(descriptor, 8)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


@dataclass(frozen=True)
class _Event:
    """One counter: its domain, what opens it, and joules per count."""

    domain: str
    kind: int
    config: int
    cpu: int
    scale: float


@dataclass
class PerfMeter:
    """Sum of all packages (and their DRAM); implements `greencc.core.meter.Meter`.

    Args:
        root: The sysfs root.
        proc: Where `sys/kernel/perf_event_paranoid` is told.
        calls: The system calls.
        clock: Monotonic seconds.
        sleep: Waits while probing.
    """

    root: Path = SYSFS
    proc: Path = PROC
    calls: PerfCalls = field(default_factory=SystemPerf)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _opened: dict[int, _Event] = field(default_factory=dict, init=False, repr=False)
    _tally: Tally = field(
        default_factory=lambda: Tally("perf energy", _STUCK_AFTER_SECONDS), init=False, repr=False
    )

    def __post_init__(self) -> None:
        weakref.finalize(self, _close_all, self.calls, self._opened)

    @property
    def name(self) -> str:
        return "perf"

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """Neither Intel nor AMD publishes one."""
        return None

    @property
    def period_s(self) -> float:
        """As RAPL's: about a millisecond."""
        return 0.001

    @property
    def boundary(self) -> str:
        """E.g. ``package-0 + package-0/dram``."""
        return " + ".join(event.domain for event in self._opened.values()) or "CPU package"

    def missing(self) -> str | None:
        """Open the events and see every package's counter move; say why there is none."""
        try:
            self._settle()
        except UnavailableError as error:
            return str(error)
        return None

    def read(self) -> Reading:
        """Joules of each domain since the first reading.

        Raises:
            UnavailableError: An event cannot be opened or read, or stands still.
        """
        if not self._opened:
            self._settle()
        values = self._values()
        return self._tally.reading(self.clock(), values)

    def _settle(self) -> None:
        _close_all(self.calls, self._opened)
        for event in self._events():
            try:
                descriptor = self.calls.open(event.kind, event.config, event.cpu)
            except OSError as error:
                _close_all(self.calls, self._opened)
                raise self._refused(error) from error
            self._opened[descriptor] = event
        moved = moving(self._values, self.sleep, _PROBE_SECONDS)
        still = [event.domain for event in self._opened.values() if event.domain not in moved]
        if any(not domain.endswith("dram") for domain in still):
            _close_all(self.calls, self._opened)
            raise UnavailableError(
                f"the perf energy counter of {', '.join(still)} never moves",
                hint="the hypervisor or firmware shows the event but does not count",
            )
        # DRAM that is never counted is outside the boundary, as with RAPL.
        for descriptor in [number for number, event in self._opened.items() if event.domain in still]:
            del self._opened[descriptor]
            self.calls.close(descriptor)

    def _values(self) -> Mapping[str, float]:
        values: dict[str, float] = {}
        try:
            for descriptor, event in self._opened.items():
                data = self.calls.read(descriptor)
                if len(data) != 8:
                    raise OSError(errno.EIO, f"{len(data)} bytes instead of 8")
                values[event.domain] = int.from_bytes(data, _ORDER) * event.scale
        except OSError as error:
            # Events opened again count from 0.
            _close_all(self.calls, self._opened)
            self._tally.restart()
            raise UnavailableError(f"a perf energy event cannot be read: {error.strerror}") from error
        return values

    def _refused(self, error: OSError) -> UnavailableError:
        if error.errno in (errno.EACCES, errno.EPERM):
            level = read_text(self.proc / "sys/kernel/perf_event_paranoid") or "unknown"
            return UnavailableError(
                f"no permission to open perf energy events (perf_event_paranoid is {level})",
                hint="they need 0 or less, or the capability CAP_PERFMON: sudo sysctl kernel.perf_event_paranoid=0",
            )
        return UnavailableError(f"perf energy events cannot be opened: {error.strerror}")

    def _events(self) -> list[_Event]:
        """The events of the `power` source, for one processor of each package.

        Raises:
            UnavailableError: There is no such source, or its files say something unexpected.
        """
        folder = self.root / _FOLDER
        if not (folder / "events/energy-pkg").exists():
            raise UnavailableError(
                f"no perf energy events under {folder}",
                hint="virtual machines usually hide them; on bare metal load the rapl module (modprobe rapl)",
            )
        kind = read_text(folder / "type") or ""
        cpus = parse_cpus(read_text(folder / "cpumask") or "")
        if not kind.isdigit() or not cpus:
            raise UnavailableError(f"{folder} tells no usable type and cpumask")
        events: list[_Event] = []
        for name, what in _EVENTS.items():
            if not (folder / "events" / name).exists():
                continue
            config, scale = _event(folder / "events" / name)
            for cpu in cpus:
                package = self._package(cpu, cpus)
                domain = package if what == "package" else f"{package}/{what}"
                events.append(_Event(domain, int(kind), config, cpu, scale))
        return events

    def _package(self, cpu: int, cpus: tuple[int, ...]) -> str:
        """A domain's name: by package, and by processor where a package has several counters (dies)."""
        ids = {
            number: read_text(self.root / f"devices/system/cpu/cpu{number}/topology/physical_package_id")
            for number in cpus
        }
        own = ids[cpu] or str(cpus.index(cpu))
        alone = list(ids.values()).count(ids[cpu]) == 1 or ids[cpu] is None
        return f"package-{own}" if alone else f"package-{own}-cpu-{cpu}"


def _event(path: Path) -> tuple[int, float]:
    """The `config` of an event, and joules per count."""
    text, unit = read_text(path) or "", read_text(path.with_name(f"{path.name}.unit"))
    match = re.fullmatch(r"event=(0x[0-9a-fA-F]+|\d+)", text)
    try:
        scale = float(read_text(path.with_name(f"{path.name}.scale")) or "")
    except ValueError:
        scale = 0.0
    if match is None or unit != "Joules" or not 0.0 < scale < 1.0:
        raise UnavailableError(f"{path} tells no usable event, unit and scale")
    return int(match[1], 0), scale


def parse_cpus(text: str) -> tuple[int, ...]:
    """Processors of a kernel list such as ``0,18-19``; empty where it is none."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return ()
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _close_all(calls: PerfCalls, opened: dict[int, _Event]) -> None:
    """Close the events that are still open."""
    while opened:
        calls.close(opened.popitem()[0])
