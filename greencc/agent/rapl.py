"""RAPL: the energy counters of Intel and AMD CPUs, by the rules of `greencc.meters.rapl`: packages and their DRAM."""

import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Set

from greencc.agent.meter import Meter, read_integer
from greencc.agent.places import read_text
from greencc.agent.problem import Problem

_DENIED = (
    "the counters are readable by root alone since Linux 5.10; until the next boot: "
    "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
)
_MICRO = 1e-6
_PROBE_S = 0.5
_STEP_S = 0.02
_PLAUSIBLE_WATTS = 2000.0
_SLACK_JOULES = 5.0

Domain = NamedTuple("Domain", [("name", str), ("file", Path), ("range_uj", int)])


class RaplMeter(Meter):
    """Sum of all packages, and of their DRAM where it is counted.

    Args:
        root: Of the file system.
    """

    name = "rapl"
    counts = True
    sees = ("cpu",)

    def __init__(self, root: Path) -> None:
        self._folder = root / "sys/class/powercap"
        self._domains: Optional[List[Domain]] = None
        self._last: Dict[str, int] = {}
        self._joules: Dict[str, float] = {}
        self._at = 0.0

    @property
    def boundary(self) -> str:
        return " + ".join(domain.name for domain in self._domains or ()) or "RAPL packages"

    @property
    def period_s(self) -> float:
        """The counters step every millisecond."""
        return 0.001

    def read(self) -> Dict[str, float]:
        domains = self._settle() if self._domains is None else self._domains
        values = {domain.name: read_integer(domain.file, _DENIED) for domain in domains}
        now = time.monotonic()
        for domain in domains:
            step = values[domain.name] - self._last.get(domain.name, values[domain.name])
            if step < 0:
                step += domain.range_uj
                if step < 0 or step * _MICRO > _PLAUSIBLE_WATTS * (now - self._at) + _SLACK_JOULES:
                    self._last.clear()
                    raise Problem(
                        "unavailable",
                        "the RAPL counter of %s went back, which a wrap does not explain" % domain.name,
                    )
            self._joules[domain.name] = self._joules.get(domain.name, 0.0) + step * _MICRO
        self._last, self._at = values, now
        return dict(self._joules)

    def _settle(self) -> List[Domain]:
        """The domains whose counters move; a package's must."""
        domains = find_domains(self._folder)
        if not any("/" not in domain.name for domain in domains):
            raise Problem(
                "unavailable",
                "no RAPL package counter under %s" % self._folder,
                "virtual machines and containers usually hide it; on bare metal load the intel_rapl_msr module",
            )
        first = {domain.name: read_integer(domain.file, _DENIED) for domain in domains}
        moved: Set[str] = set()
        deadline = time.monotonic() + _PROBE_S
        while len(moved) < len(domains) and time.monotonic() < deadline:
            time.sleep(_STEP_S)
            moved |= {each.name for each in domains if read_integer(each.file, _DENIED) != first[each.name]}
        stuck = [each.name for each in domains if "/" not in each.name and each.name not in moved]
        if stuck:
            raise Problem("unavailable", "the RAPL counter of %s never moves" % ", ".join(stuck))
        self._domains = [each for each in domains if each.name in moved]
        return self._domains


def find_domains(folder: Path) -> List[Domain]:
    """Packages and their DRAM, by name; never `psys`, nor parts of a package.

    Raises:
        Problem: A counter does not say where it wraps.
    """
    found = {}
    for package in sorted(folder.glob("intel-rapl:*")):
        name = read_text(package / "name") or ""
        if package.name.count(":") != 1 or not name.startswith("package-"):
            continue
        found[name] = _domain(name, package)
        parts = {*folder.glob(package.name + ":*"), *package.glob(package.name + ":*")}
        for part in sorted(parts, key=lambda path: path.name):
            if read_text(part / "name") == "dram":
                found.setdefault(name + "/dram", _domain(name + "/dram", part))
    return [found[name] for name in sorted(found)]


def _domain(name: str, folder: Path) -> Domain:
    text = read_text(folder / "max_energy_range_uj") or ""
    if not text.isdigit() or int(text) == 0:
        raise Problem(
            "unavailable", "the RAPL domain %s has no usable max_energy_range_uj: %.40r" % (name, text)
        )
    return Domain(name, folder / "energy_uj", int(text))
