"""Raspberry Pi 5: what vcgencmd prints, and what it prints when it does not work."""

from __future__ import annotations

import subprocess

import pytest

from greencc.core.errors import UnavailableError
from greencc.meters import raspberry
from greencc.meters.raspberry import PmicMeter, parse, run_vcgencmd

# In the shape that a Pi 5 prints: right-aligned names, currents first, two voltages without a current.
OUTPUT = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=2.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""


def pi5(tree) -> None:
    tree.device_tree("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")


def test_rails_with_both_a_voltage_and_a_current(tree) -> None:
    pi5(tree)
    meter = PmicMeter(tree.root, lambda: OUTPUT)
    assert meter.missing() is None
    watts = meter.sample().watts
    assert len(watts) == 12
    assert not {"EXT5V", "BATT"} & set(watts)
    assert watts["VDD_CORE"] == pytest.approx(2.87674 * 0.8974594)
    assert sum(watts.values()) == pytest.approx(3.620219, abs=1e-6)
    assert meter.boundary.startswith("12 PMIC rails")
    assert "5 V input" in meter.boundary


def test_other_boards(tree) -> None:
    assert PmicMeter(tree.root, lambda: OUTPUT).missing() == "not a Raspberry Pi 5"
    tree.device_tree("Raspberry Pi 4 Model B", "raspberrypi,4-model-b", "brcm,bcm2711")
    assert PmicMeter(tree.root, lambda: OUTPUT).missing() == "not a Raspberry Pi 5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no current with its voltage"),
        ("EXT5V_V volt(24)=5.06V\n", "no current with its voltage"),
        ('error=1 error_msg="Command not registered"\n', "which is no reading"),
        ("VDD_CORE_A current(7)=nanA\nVDD_CORE_V volt(15)=0.9V\n", "which is no reading"),
        ("VDD_CORE_A current(7)=-1.0A\n", "which is no reading"),
    ],
)
def test_what_is_no_reading_is_quoted(text, message) -> None:
    with pytest.raises(UnavailableError, match=message):
        parse(text)


def test_a_rail_that_vanishes_is_seen_by_the_sampler(tree, moment) -> None:
    from greencc.meters.sampling import Sampler

    pi5(tree)
    outputs = [OUTPUT, OUTPUT.replace("HDMI_A", "XXXX_A")]
    sampler = Sampler(PmicMeter(tree.root, lambda: outputs.pop(0), moment.clock), clock=moment.clock)
    sampler.read()
    moment.now += 0.5
    with pytest.raises(UnavailableError, match="a domain came or went"):
        sampler.read()


def completed(code: int, out: str = "", err: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(raspberry._COMMAND, code, out, err)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: completed(0, OUTPUT))
    assert run_vcgencmd() == OUTPUT


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (FileNotFoundError(2, "No such file"), "vcgencmd is not installed .*raspi-utils"),
        (subprocess.TimeoutExpired("vcgencmd", 5.0), "vcgencmd failed: .*timed out"),
        (
            completed(255, err="Can't open device file: /dev/vcio\n"),
            "Can't open device file.*usermod -aG video",
        ),
        (completed(1), "exit code 1"),
    ],
)
def test_a_command_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch, result, message) -> None:
    def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UnavailableError, match=message):
        run_vcgencmd()
