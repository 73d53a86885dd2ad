"""Raspberry Pi 5: the rails of its power management chip, by the rules of `greencc.meters.raspberry`."""

import re
from typing import Dict, Tuple

from greencc.agent.commands import run
from greencc.agent.machine import compatible
from greencc.agent.meter import Meter
from greencc.agent.places import Places
from greencc.agent.problem import Problem

_LINE = re.compile(r"(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)[AV]")
_TIMEOUT_S = 5.0


class PmicMeter(Meter):
    """Power of the Pi's rails, without the losses at its input.

    Args:
        places: The agent's folders.
    """

    name = "pi5-pmic"
    sees = ("cpu",)

    def __init__(self, places: Places) -> None:
        self._pi = "brcm,bcm2712" in " ".join(compatible(places.root))
        self._program = places.program("vcgencmd", "opt/vc/bin")
        self._rails: Tuple[str, ...] = ()

    @property
    def boundary(self) -> str:
        count = "%d " % len(self._rails) if self._rails else ""
        return "%sPMIC rails (without the losses at the 5 V input, and without USB)" % count

    @property
    def period_s(self) -> float:
        """How often it is worth asking: each reading starts a process."""
        return 0.5

    def read(self) -> Dict[str, float]:
        if not self._pi:
            raise Problem("unavailable", "not a Raspberry Pi 5")
        if self._program is None:
            raise Problem("unavailable", "vcgencmd is not installed", "sudo apt-get install raspi-utils")
        code, text = run([self._program, "pmic_read_adc"], _TIMEOUT_S)
        if code != 0:
            told = text.strip().splitlines()
            raise Problem(
                "unavailable",
                "vcgencmd failed: %s" % (told[0] if told else "exit code %s" % code),
                "it needs /dev/vcio: sudo usermod -aG video $USER, then log in again",
            )
        watts = parse(text)
        self._rails = tuple(watts)
        return watts


def parse(text: str) -> Dict[str, float]:
    """Watts of the rails whose voltage and current both stand in the output of `vcgencmd pmic_read_adc`.

    Raises:
        Problem: A line is no reading, or there is no whole pair.
    """
    volts: Dict[str, float] = {}
    amperes: Dict[str, float] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise Problem("unavailable", "vcgencmd pmic_read_adc printed %.60r, which is no reading" % line)
        (volts if match.group(2) == "V" else amperes)[match.group(1)] = float(match.group(3))
    watts = {name: amperes[name] * volts[name] for name in amperes if name in volts}
    if not watts:
        raise Problem("unavailable", "vcgencmd pmic_read_adc printed no current with its voltage")
    return watts
