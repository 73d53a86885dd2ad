"""The meters of the device: which of them work, and which one sees the work."""

import re
from typing import Any, Dict, List, Optional, Tuple

from greencc.agent.meter import Meter
from greencc.agent.nvml import NvmlMeter
from greencc.agent.places import Places
from greencc.agent.pmic import PmicMeter
from greencc.agent.problem import Problem
from greencc.agent.rails import JetsonMeter
from greencc.agent.rapl import RaplMeter


def known(places: Places) -> List[Meter]:
    """All kinds, the widest boundary first; not opened yet."""
    return [JetsonMeter(places.root), PmicMeter(places), NvmlMeter(), RaplMeter(places.root)]


def describe(places: Places) -> Tuple[List[Dict[str, Any]], Dict[str, str]]:
    """What each meter that works says of itself, and why each of the others does not."""
    working, missing = [], {}
    for meter in known(places):
        why = meter.check()
        if why is None:
            working.append(meter.as_json())
        else:
            missing[meter.name] = why
    return working, missing


def choose(
    places: Places, processor: str, name: Optional[str] = None
) -> Tuple[Optional[Meter], Optional[str]]:
    """The first meter that works and sees a processor, or the one of a name; else why there is none.

    Args:
        processor: ``cpu`` or ``gpu``: where the work is done.
        name: Of a meter, as `describe` tells them.

    Raises:
        Problem: There is no meter of that name.
    """
    reasons = []
    for meter in [_named(places, name)] if name is not None else known(places):
        if name is None and processor not in meter.sees:
            continue
        why = meter.check()
        if why is None:
            return meter, None
        reasons.append("%s: %s" % (meter.name, why))
    return None, "; ".join(reasons) or "no meter sees the %s" % processor


def _named(places: Places, name: str) -> Meter:
    match = re.fullmatch(r"nvml(?:-instant|-average)?(?::(\d{1,3}))?", name)
    if match is not None:
        return NvmlMeter(None if match.group(1) is None else int(match.group(1)))
    for meter in known(places):
        if meter.name == name:
            return meter
    raise Problem("usage", "%.60r is no meter of devices" % name, "jetson, pi5-pmic, nvml, nvml:N or rapl")
