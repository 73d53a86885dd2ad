"""RAPL: the running average power limit counters of Intel and AMD CPUs, through Linux's powercap tree.

Boundary: the packages, and their DRAM where the CPU counts it. `psys` (the platform) and `core`/`uncore` (parts of the
package) are never added on top. Counters wrap at `max_energy_range_uj`.

Source: Linux, Documentation/power/powercap/powercap.rst; Khan et al., "RAPL in Action", TOMPECS 3 (2018).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.machine import read_text
from greencc.core.meter import Grade, Reading
from greencc.meters._reading import SYSFS

_FOLDER = "class/powercap"
_MICROJOULES = 1e-6
_PROBE_SECONDS = 0.5
_PROBE_STEP_SECONDS = 0.01
_STUCK_AFTER_SECONDS = 1.0
# More than any CPU package or its DRAM draws; tells a wrap from a counter that was reset.
_PLAUSIBLE_WATTS = 2000.0
_SLACK_JOULES = 5.0
# To know when a counter may have wrapped unseen. Of the limit that the kernel tells only a larger one is believed: it
# is a design power, which a laptop of 15 W may exceed four times for a while.
_PACKAGE_WATTS = 500.0
_DRAM_WATTS = 150.0
# Turbo exceeds the design power for a while.
_TURBO = 1.5

PERMISSION_HINT = (
    "the counters are readable by root alone since Linux 5.10; put this line into "
    "/etc/udev/rules.d/99-powercap.rules and run 'sudo udevadm trigger --action=add --subsystem-match=powercap': "
    'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"; '
    "or until the next boot: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
)


@dataclass(frozen=True)
class Domain:
    """One counter.

    Attributes:
        name: ``package-0`` or ``package-0/dram``.
        folder: Its powercap zone.
        range_uj: The value at which it wraps.
        limit_watts: More than it draws, to know when it may have wrapped unseen.
    """

    name: str
    folder: Path
    range_uj: int
    limit_watts: float

    @property
    def is_package(self) -> bool:
        return "/" not in self.name


@dataclass
class _Counter:
    """The running sum of one domain."""

    raw: int
    seconds: float
    moved_at: float
    joules: float = 0.0


@dataclass
class RaplMeter:
    """Sum of all packages (and their DRAM); implements `greencc.core.meter.Meter`.

    Args:
        root: The sysfs root.
        clock: Monotonic seconds.
        sleep: Waits while probing.

    Two readings must be less than one wrap of the counter apart (5 minutes for the usual 262 kJ, at more watts than a
    package draws); a longer gap is an error, for the energy within it is unknown.
    """

    root: Path = SYSFS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _domains: tuple[Domain, ...] | None = field(default=None, init=False, repr=False)
    _counters: dict[str, _Counter] = field(default_factory=dict, init=False, repr=False)
    _epoch: int = field(default=0, init=False, repr=False)

    @property
    def name(self) -> str:
        return "rapl"

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def period_s(self) -> float:
        """The counters are updated about every millisecond."""
        return 0.001

    @property
    def uncertainty(self) -> float | None:
        """Neither Intel nor AMD publishes one."""
        return None

    @property
    def boundary(self) -> str:
        """E.g. ``package-0 + dram``; with several sockets ``package-0 + package-0/dram + package-1 + ...``."""
        domains = self._active()
        single = sum(domain.is_package for domain in domains) == 1
        names = [domain.name.split("/")[-1] if single else domain.name for domain in domains]
        return " + ".join(names) or "no RAPL package"

    def missing(self) -> str | None:
        """Take readings until every package's counter has moved; say why there is none."""
        try:
            self._settle()
        except UnavailableError as error:
            return str(error)
        return None

    def read(self) -> Reading:
        """Cumulative joules of each domain since the first reading of this epoch.

        Raises:
            UnavailableError: A counter cannot be read, is stuck, went back, or was not read for too long.
        """
        if self._domains is None:
            self._settle()
        values = {domain.name: _read_counter(domain) for domain in self._active()}
        now = self.clock()
        for domain in self._active():
            self._advance(domain, values[domain.name], now)
        return Reading(now, {name: counter.joules for name, counter in self._counters.items()}, self._epoch)

    def _active(self) -> tuple[Domain, ...]:
        return find_domains(self.root) if self._domains is None else self._domains

    def _settle(self) -> None:
        """Find the domains and see each counter move. DRAM counters that never do are left out of the boundary."""
        domains = find_domains(self.root)
        if not any(domain.is_package for domain in domains):
            raise UnavailableError(
                f"no RAPL package counter under {self.root / _FOLDER}",
                hint="virtual machines and containers usually hide it; on bare metal load the intel_rapl_msr module",
            )
        first = {domain.name: _read_counter(domain) for domain in domains}
        moved: set[str] = set()
        for _ in range(round(_PROBE_SECONDS / _PROBE_STEP_SECONDS)):
            self.sleep(_PROBE_STEP_SECONDS)
            moved |= {domain.name for domain in domains if _read_counter(domain) != first[domain.name]}
            if len(moved) == len(domains):
                break
        stuck = [domain.name for domain in domains if domain.is_package and domain.name not in moved]
        if stuck:
            raise UnavailableError(
                f"the RAPL counter of {', '.join(stuck)} never moves",
                hint="the hypervisor or firmware shows the file but does not count",
            )
        self._domains = tuple(domain for domain in domains if domain.name in moved)

    def _advance(self, domain: Domain, raw: int, now: float) -> None:
        counter = self._counters.get(domain.name)
        if counter is None:
            self._counters[domain.name] = _Counter(raw, now, now)
            return
        try:
            step = _step(domain, counter, raw, now)
        except UnavailableError:
            self._restart()
            raise
        if raw != counter.raw:
            counter.moved_at = now
        elif domain.is_package and now - counter.moved_at >= _STUCK_AFTER_SECONDS:
            self._restart()
            raise UnavailableError(f"the RAPL counter of {domain.name} is stuck at {raw} uJ")
        counter.raw, counter.seconds = raw, now
        counter.joules += step

    def _restart(self) -> None:
        """The next reading starts afresh, in a new epoch: what happened in between is unknown."""
        self._counters.clear()
        self._epoch += 1


def _step(domain: Domain, counter: _Counter, raw: int, now: float) -> float:
    """Joules between two values of a counter."""
    elapsed = now - counter.seconds
    difference = raw - counter.raw
    if difference < 0:
        difference += domain.range_uj
        if difference < 0 or difference * _MICROJOULES > _PLAUSIBLE_WATTS * elapsed + _SLACK_JOULES:
            raise UnavailableError(
                f"the RAPL counter of {domain.name} went back from {counter.raw} to {raw} uJ, "
                "which a wrap does not explain",
                hint="the counter was reset (suspend, firmware); measure again",
            )
    if elapsed * domain.limit_watts * _TURBO > domain.range_uj * _MICROJOULES:
        raise UnavailableError(
            f"the RAPL counter of {domain.name} was not read for {elapsed:.0f} s and may have wrapped more than once",
            hint="read it more often",
        )
    return difference * _MICROJOULES


def find_domains(root: Path) -> tuple[Domain, ...]:
    """The package counters and their DRAM counters, sorted by name.

    Only the MSR interface is read (`intel-rapl:*`, AMD as well); `intel-rapl-mmio:*` shows the same packages again.

    Raises:
        UnavailableError: A domain has no usable `max_energy_range_uj`.
    """
    folder = root / _FOLDER
    found: dict[str, Domain] = {}
    for package in sorted(folder.glob("intel-rapl:*")):
        if package.name.count(":") != 1:
            continue
        name = _text(package / "name")
        if not name.startswith("package-"):
            continue
        if name in found:
            raise UnavailableError(f"two RAPL packages are called {name}: {found[name].folder} and {package}")
        found[name] = _domain(name, package, _PACKAGE_WATTS)
        parts = sorted(
            {*folder.glob(f"{package.name}:*"), *package.glob(f"{package.name}:*")}, key=lambda p: p.name
        )
        for part in parts:
            if _text(part / "name") == "dram":
                found.setdefault(f"{name}/dram", _domain(f"{name}/dram", part, _DRAM_WATTS))
    return tuple(found[name] for name in sorted(found))


def package_watts(folder: Path) -> float | None:
    """The thermal design power the kernel knows for a domain (`constraint_0_max_power_uw`), or None."""
    try:
        watts = int(_text(folder / "constraint_0_max_power_uw")) * 1e-6
    except ValueError:
        return None
    return watts if watts > 0 else None


def design_power_watts(root: Path = SYSFS) -> float | None:
    """Thermal design power of all packages, where powercap tells it (readable without privileges); else None."""
    packages = [path for path in sorted((root / _FOLDER).glob("intel-rapl:*")) if path.name.count(":") == 1]
    watts = [package_watts(path) for path in packages if _text(path / "name").startswith("package-")]
    known = [value for value in watts if value is not None]
    return sum(known) if known and len(known) == len(watts) else None


def _domain(name: str, folder: Path, assumed_watts: float) -> Domain:
    text = _text(folder / "max_energy_range_uj")
    if not text.isdigit() or int(text) == 0:
        raise UnavailableError(f"the RAPL domain {name} has no usable max_energy_range_uj: {text!r}")
    return Domain(name, folder, int(text), max(package_watts(folder) or 0.0, assumed_watts))


def _read_counter(domain: Domain) -> int:
    path = domain.folder / "energy_uj"
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except PermissionError as error:
        raise UnavailableError(f"no permission to read {path}", hint=PERMISSION_HINT) from error
    except OSError as error:
        raise UnavailableError(f"the RAPL domain {domain.name} vanished: {path}: {error.strerror}") from error
    if not text.isdigit():
        raise UnavailableError(f"the RAPL domain {domain.name} reads {text!r}, not a number of microjoules")
    return int(text)


def _text(path: Path) -> str:
    """A small file's text, empty where it cannot be read."""
    return read_text(path) or ""
