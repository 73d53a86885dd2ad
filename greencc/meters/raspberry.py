"""Raspberry Pi 5: the voltages and currents of its power management chip, through `vcgencmd pmic_read_adc`.

Boundary: the rails behind the chip. What its own converters lose, and what the 5 V input feeds past it (USB ports,
fan, HATs), is outside: the input's voltage is told, its current is not. Against a wall meter the sum therefore reads
low, and is meant for comparing two variants.

Source: Raspberry Pi documentation, "vcgencmd"; Raspberry Pi Ltd, "Extra PMIC features on Raspberry Pi 4, 5 and CM4".
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.machine import read_text
from greencc.core.meter import Grade, PowerSample
from greencc.meters._reading import SYSFS

_COMMAND = ("vcgencmd", "pmic_read_adc")
_TIMEOUT = 5.0
_LINE = re.compile(r"(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)[AV]")
# Each reading starts a process (some milliseconds of a core).
_PERIOD = 0.5


def run_vcgencmd() -> str:
    """What `vcgencmd pmic_read_adc` prints.

    Raises:
        UnavailableError: The command is missing, fails or hangs.
    """
    try:
        done = subprocess.run(
            _COMMAND, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            "vcgencmd is not installed", hint="sudo apt-get install raspi-utils"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"vcgencmd failed: {error}") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(
            f"vcgencmd failed: {told[0] if told else f'exit code {done.returncode}'}",
            hint="it needs /dev/vcio: sudo usermod -aG video $USER, then log in again",
        )
    return done.stdout


@dataclass
class PmicMeter:
    """Power of the Pi's rails; implements `greencc.core.meter.PowerMeter`.

    Args:
        root: The sysfs root, which tells the board.
        run: Gives the text of `vcgencmd pmic_read_adc`.
        clock: Monotonic seconds.
    """

    root: Path = SYSFS
    run: Callable[[], str] = run_vcgencmd
    clock: Callable[[], float] = time.monotonic
    _rails: tuple[str, ...] = field(default=(), init=False, repr=False)

    @property
    def name(self) -> str:
        return "pi5-pmic"

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """Not published."""
        return None

    @property
    def period_s(self) -> float:
        """How often it is worth asking: the chip answers at any time, at the cost of a process."""
        return _PERIOD

    @property
    def boundary(self) -> str:
        count = f"{len(self._rails)} " if self._rails else ""
        return f"{count}PMIC rails (without the losses at the 5 V input, and without USB)"

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            return str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each rail.

        Raises:
            UnavailableError: This is no Raspberry Pi 5, the command fails, or prints something else.
        """
        if not self._rails:
            compatible = read_text(self.root / "firmware/devicetree/base/compatible") or ""
            if "brcm,bcm2712" not in compatible:
                raise UnavailableError("not a Raspberry Pi 5")
        watts = parse(self.run())
        self._rails = tuple(watts)
        return PowerSample(self.clock(), watts)


def parse(text: str) -> dict[str, float]:
    """Watts of the rails whose voltage and current both stand in the output of `vcgencmd pmic_read_adc`.

    Raises:
        UnavailableError: A line is no reading, or there is no whole pair.
    """
    volts: dict[str, float] = {}
    amperes: dict[str, float] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UnavailableError(f"vcgencmd pmic_read_adc printed {line.strip()!r}, which is no reading")
        (volts if match[2] == "V" else amperes)[match[1]] = float(match[3])
    watts = {name: amperes[name] * volts[name] for name in amperes if name in volts}
    if not watts:
        raise UnavailableError("vcgencmd pmic_read_adc printed no current with its voltage")
    return watts
