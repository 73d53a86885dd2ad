"""What the device is and has, as it is now: everything here was read, not assumed. What is not known is None or absent.

Keys:

* ``hostname user machine kernel board compatible python glibc uptime_s load boot_id`` (text and numbers), ``cpu``
  {"model", "processors", "features"};
* of a Jetson ``module`` ("AGX Orin"), ``chip`` ("tegra234"), ``l4t`` ("36.4.3"), ``jetpack`` ("6.2");
* ``cuda``, ``tensorrt`` {"version", "trtexec"}, ``gpu`` {"name", "sm", "memory_bytes", "driver"} or None;
* ``memory_bytes memory_free_bytes disk_free_bytes disk_used_bytes`` (the last: by the agent);
* ``backends`` {NAME: why it cannot be used, empty: it can}, ``backend_facts`` {NAME: {fact: text}};
* ``power`` {"modes" [{"name", "watts"}], "mode", "default", "before", "problem"} or None (`greencc.agent.power`);
* ``clocks`` {"cpu_mhz", "gpu_mhz", "free": [clocks that are not fixed], "governor"}, ``clocks_fixed``, ``celsius`` (of
  the hottest sensor), ``temperatures`` {zone: degrees Celsius}, ``throttle_count``, ``busy`` (who times something just
  now, or None);
* ``rails`` [{"label", "watts"}] of a Jetson, all that can be read; ``meters`` [{"name", "grade", "boundary",
  "period_s", "uncertainty", "counts", "sees"}], which gave a reading, and ``missing_meters`` {name: why not}.
"""

import os
from typing import Any, Dict, List, Optional, Tuple

from greencc.agent import backends, condition, disk, jetpack, machine, meters, power
from greencc.agent.commands import run
from greencc.agent.device import who
from greencc.agent.places import Places
from greencc.agent.problem import Problem
from greencc.agent.rails import find_rails, watts
from greencc.agent.supervisor import memory

Backends = Tuple[Dict[str, str], Dict[str, Dict[str, str]]]
"""Why each cannot be used, and the versions of those that can."""


def probe(places: Places, known: Backends) -> Dict[str, Any]:
    """Look at everything.

    Args:
        places: The agent's folders.
        known: Of `known_backends`.
    """
    facts = machine.describe(places.root)
    facts["boot_id"] = places.boot_id
    module = machine.find_module(places.root)
    facts["module"] = module.name if module else None
    facts["chip"] = module.chip if module else None
    packages = jetpack.installed(places.root)
    facts["l4t"] = jetpack.l4t(places.root)
    facts["jetpack"] = jetpack.jetpack(facts["l4t"], packages)
    facts["cuda"] = jetpack.cuda(places.root)
    facts["tensorrt"] = jetpack.tensorrt(places, packages)
    facts["gpu"] = gpu(places)
    figures = memory(places)
    facts["memory_bytes"] = figures.get("MemTotal")
    facts["memory_free_bytes"] = figures.get("MemAvailable")
    facts["disk_free_bytes"] = disk.free_bytes(places)
    facts["disk_used_bytes"] = disk.used_bytes(places.home)
    facts["backends"], facts["backend_facts"] = known
    _believe(facts, facts["backend_facts"].get("tensorrt"))
    facts["power"] = power.describe(places)
    free = condition.free_clocks(places.root)
    facts["clocks"] = {
        "cpu_mhz": condition.cpu_mhz(places.root),
        "gpu_mhz": condition.gpu_mhz(places.root),
        "free": free,
        "governor": condition.governor(places.root),
    }
    shown = facts["clocks"]["cpu_mhz"] is not None or facts["clocks"]["gpu_mhz"] is not None
    facts["clocks_fixed"] = not free if shown else None
    facts["temperatures"] = zones = condition.temperatures(places.root)
    facts["celsius"] = max(zones.values()) if zones else None
    facts["throttle_count"] = condition.throttle_count(places)
    facts["busy"] = who(places)
    facts["rails"] = rails(places)
    facts["meters"], facts["missing_meters"] = meters.describe(places)
    return facts


def _believe(facts: Dict[str, Any], used: Optional[Dict[str, str]]) -> None:
    """What runs engines knows best what it is: it may be a wheel, which no package list has."""
    if used is None:
        return
    facts["tensorrt"]["version"] = used.get("tensorrt", facts["tensorrt"]["version"])
    sm = used.get("compute_capability", "").replace(".", "")
    if facts["gpu"] is None and sm.isdigit():
        facts["gpu"] = {"name": "NVIDIA GPU", "sm": int(sm), "memory_bytes": None, "driver": None}


def known_backends(places: Places) -> Backends:
    """Ask all backends; some seconds."""
    missing: Dict[str, str] = {}
    facts: Dict[str, Dict[str, str]] = {}
    for name in backends.NAMES:
        found = backends.find(name, str(places.root), os.environ, str(places.cache))
        missing[name] = found.missing() or ""
        if not missing[name]:
            facts[name] = found.facts()
    return missing, facts


def rails(places: Places) -> List[Dict[str, Any]]:
    """What each rail of a Jetson draws; those that cannot be read are left out."""
    module = machine.find_module(places.root)
    found = []
    for rail in find_rails(places.root / "sys", module) if module is not None else ():
        try:
            found.append({"label": rail.label, "watts": watts(rail)})
        except Problem:
            continue
    return found


def gpu(places: Places) -> Optional[Dict[str, Any]]:
    """The first NVIDIA GPU; on a Jetson by its chip, whose memory is the machine's."""
    module = machine.find_module(places.root)
    if module is not None:
        return {
            "name": "%s GPU (%s)" % (module.name, module.chip),
            "sm": machine.COMPUTE[module.chip],
            "memory_bytes": memory(places).get("MemTotal"),
            "driver": None,
        }
    program = places.program("nvidia-smi")
    if program is None:
        return None
    wanted = "--query-gpu=name,compute_cap,memory.total,driver_version"
    code, text = run([program, wanted, "--format=csv,noheader,nounits"])
    cells = [cell.strip() for cell in text.splitlines()[0].split(",")] if code == 0 and text.strip() else []
    if len(cells) != 4:
        return None
    name, compute, megabytes, driver = cells
    return {
        "name": name,
        "sm": int(compute.replace(".", "")) if compute.replace(".", "").isdigit() else None,
        "memory_bytes": int(megabytes) << 20 if megabytes.isdigit() else None,
        "driver": driver,
    }
