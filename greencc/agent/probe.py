"""What the device is and has, as it is now: everything here was read, not assumed. What is not known is None or absent.

Keys: ``hostname user machine kernel board compatible python glibc cpu uptime_s load boot_id`` (strings and numbers;
``cpu`` has ``model processors features``); ``module`` and ``chip`` of a Jetson; ``l4t jetpack cuda``; ``tensorrt``
(``version trtexec``); ``gpu`` (``name sm memory_bytes driver``); ``memory_bytes memory_free_bytes``;
``disk_free_bytes disk_used_bytes``.
"""

from typing import Any, Dict, Optional

from greencc.agent import disk, jetpack, machine
from greencc.agent.commands import run
from greencc.agent.places import Places
from greencc.agent.supervisor import memory


def probe(places: Places) -> Dict[str, Any]:
    """Look at everything; some seconds where programs have to be asked."""
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
    return facts


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
