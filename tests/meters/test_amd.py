"""AMD SMI: a fake of the `amdsmi` module over several generations of library and GPU."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import is_counter
from greencc.meters.amd import AmdMeter, AmdPowerMeter, load_amdsmi, open_amdsmi

RESOLUTION = 15.259


class AmdSmiException(Exception):
    """amdsmi's base class."""


class AmdSmiLibraryException(AmdSmiException):
    """amdsmi's: two lines of text."""

    def __str__(self) -> str:
        return f"Error code:\n\t2 | {self.args[0]}"


@dataclass
class Gpu:
    watts: float = 200.0
    joules: float = 1000.0
    frozen: bool = False
    energy_error: str = ""
    powers: dict[str, object] = field(default_factory=dict)


@dataclass
class FakeAmdSmi:
    """The functions of `amdsmi` that greencc calls; `old` is the spelling before ROCm 6.1."""

    gpus: list[Gpu] = field(default_factory=lambda: [Gpu()])
    old: bool = False
    init_error: str = ""
    AmdSmiException: type[Exception] = AmdSmiException

    def amdsmi_init(self) -> None:
        if self.init_error:
            raise AmdSmiLibraryException(self.init_error)

    def amdsmi_get_processor_handles(self) -> list[Gpu]:
        return self.gpus

    def amdsmi_get_energy_count(self, handle: Gpu) -> dict[str, object]:
        if handle.energy_error:
            raise AmdSmiLibraryException(handle.energy_error)
        name = "power" if self.old else "energy_accumulator"
        return {name: int(handle.joules * 1e6 / RESOLUTION), "counter_resolution": RESOLUTION, "timestamp": 1}

    def amdsmi_get_power_info(self, handle: Gpu) -> dict[str, object]:
        return {
            "current_socket_power": "N/A",
            "average_socket_power": "N/A",
            "gfx_voltage": 800,
        } | handle.powers

    def advance(self, seconds: float) -> None:
        for gpu in self.gpus:
            gpu.joules += 0.0 if gpu.frozen else gpu.watts * seconds


@pytest.fixture
def opened(moment) -> Callable[[FakeAmdSmi], Any]:
    def make(library: FakeAmdSmi) -> Any:
        moment.during = library.advance
        return open_amdsmi(lambda: library, moment.clock, moment.sleep)

    return make


@pytest.mark.parametrize("old", [False, True])
def test_the_energy_counter(opened, moment, old) -> None:
    meter = opened(FakeAmdSmi([Gpu(), Gpu(watts=100.0)], old))
    assert isinstance(meter, AmdMeter)
    assert is_counter(meter)
    assert meter.missing() is None
    assert meter.boundary == "2 GPU sockets"
    before = meter.read()
    moment.sleep(10.0)
    after = meter.read()
    assert after.joules["gpu-0"] - before.joules["gpu-0"] == pytest.approx(2000.0, abs=1e-4)
    assert after.joules["gpu-1"] - before.joules["gpu-1"] == pytest.approx(1000.0, abs=1e-4)


@pytest.mark.parametrize(
    "powers",
    [
        {"current_socket_power": 140},
        {"current_socket_power": 140, "average_socket_power": 99},
        {"average_socket_power": 140},
        {"current_socket_power": 0, "average_socket_power": 140},
        {"socket_power": 140},
    ],
)
@pytest.mark.parametrize("gpu", [Gpu(frozen=True), Gpu(energy_error="AMDSMI_STATUS_NOT_SUPPORTED")])
def test_power_where_the_counter_does_not_count(opened, gpu, powers) -> None:
    gpu.powers = powers
    meter = opened(FakeAmdSmi([gpu]))
    assert isinstance(meter, AmdPowerMeter)
    assert meter.missing() is None
    assert meter.sample().watts == {"gpu-0": 140.0}
    assert meter.boundary == "GPU socket"


@pytest.mark.parametrize("told", ["N/A", 0, None, float("nan"), float("inf"), -5, True])
def test_no_power_is_told(opened, told) -> None:
    powers = {"current_socket_power": told, "average_socket_power": told}
    meter = opened(FakeAmdSmi([Gpu(energy_error="AMDSMI_STATUS_NOT_SUPPORTED", powers=powers)]))
    assert "AMD SMI tells no power of GPU 0" in str(meter.missing())


def test_no_driver_and_no_gpu(opened) -> None:
    missing = opened(FakeAmdSmi(init_error="AMDSMI_STATUS_DRIVER_NOT_LOADED")).missing()
    assert missing == (
        "AMD SMI cannot be started (is the amdgpu driver loaded?): "
        "Error code: 2 | AMDSMI_STATUS_DRIVER_NOT_LOADED"
    )
    assert "finds no AMD GPU" in str(opened(FakeAmdSmi([])).missing())


def test_a_gpu_that_goes_away_while_measuring(opened) -> None:
    library = FakeAmdSmi()
    meter = opened(library)
    meter.read()
    library.gpus[0].energy_error = "AMDSMI_STATUS_NO_PERM"
    with pytest.raises(UnavailableError, match=r"tells no energy: .*NO_PERM"):
        meter.read()


def test_a_counter_that_goes_back_begins_a_new_epoch(opened, moment) -> None:
    library = FakeAmdSmi()
    meter = opened(library)
    first = meter.read()
    library.gpus[0].joules = 1.0
    with pytest.raises(UnavailableError, match="went back"):
        meter.read()
    assert meter.read().epoch == first.epoch + 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("amdsmi"), r"pip install 'greencc\[amd\]'"),
        # What the module does where ROCm's library is absent.
        (KeyError("libamd_smi.so"), "install ROCm's amd-smi-lib"),
    ],
)
def test_without_the_library_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys, error, message
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "amdsmi":
            print("/opt/rocm/lib/libamd_smi.so: cannot open shared object file")  # noqa: T201 (as the module does)
            raise error
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError, match=message):
        load_amdsmi()
    assert capsys.readouterr().out == ""
