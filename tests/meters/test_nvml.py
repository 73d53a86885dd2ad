"""NVML: a fake of the `pynvml` module, with GPUs of several generations and the ways in which they refuse."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, is_counter
from greencc.meters.known import Sources
from greencc.meters.nvml import NvmlMeter, NvmlPowerMeter, load_pynvml, open_nvml
from greencc.meters.opening import open_meter
from greencc.meters.sampling import Sampler

NOT_SUPPORTED, NO_PERMISSION, LIBRARY, LOST = 3, 4, 12, 15
TEXTS = {
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    LIBRARY: "NVML Shared Library Not Found",
    LOST: "GPU is lost",
}


class NVMLError(Exception):
    """As pynvml's: made from a code, printed as its text."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return TEXTS[self.value]


@dataclass
class Gpu:
    """A board that draws `watts`; whatever it does not support answers with that code."""

    name: str | bytes = "NVIDIA H200"
    watts: float = 300.0
    joules: float = 5e6
    energy_error: int = 0
    instant_error: int = 0
    average_error: int = 0
    handle_error: int = 0


@dataclass
class FakeNvml:
    """The functions of `pynvml` that greencc calls, with their types: handles, ints in mJ and mW, field values."""

    gpus: list[Gpu] = field(default_factory=lambda: [Gpu()])
    init_error: int = 0
    inits: int = 0
    NVMLError: type[NVMLError] = NVMLError
    NVML_SUCCESS: int = 0
    NVML_FI_DEV_POWER_INSTANT: int = 186

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.init_error:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if self.gpus[index].handle_error:
            raise NVMLError(self.gpus[index].handle_error)
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: Gpu) -> str | bytes:
        return handle.name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Gpu) -> int:
        if handle.energy_error:
            raise NVMLError(handle.energy_error)
        # Steps of 100 ms' worth, as the real counter has.
        step = max(handle.watts, 1.0) * 0.1
        return int(handle.joules // step * step * 1e3)

    def nvmlDeviceGetFieldValues(self, handle: Gpu, fields: list[int]) -> list[Any]:
        assert fields == [186]
        value = SimpleNamespace(uiVal=int(handle.watts * 1e3))
        return [SimpleNamespace(nvmlReturn=handle.instant_error, value=value)]

    def nvmlDeviceGetPowerUsage(self, handle: Gpu) -> int:
        if handle.average_error:
            raise NVMLError(handle.average_error)
        return int(handle.watts * 1e3)

    def advance(self, seconds: float) -> None:
        for gpu in self.gpus:
            gpu.joules += gpu.watts * seconds


@pytest.fixture
def opened(moment) -> Callable[[FakeNvml], Any]:
    def make(library: FakeNvml) -> Any:
        moment.during = library.advance
        return open_nvml(lambda: library, moment.clock, moment.sleep)

    return make


def test_the_energy_counter(opened, moment) -> None:
    library = FakeNvml()
    meter = opened(library)
    assert isinstance(meter, NvmlMeter)
    assert is_counter(meter)
    assert meter.missing() is None
    assert (meter.name, meter.grade, meter.uncertainty) == ("nvml", Grade.B, None)
    assert meter.boundary == "GPU board (NVIDIA H200)"
    before = meter.read()
    moment.sleep(10.0)
    assert meter.read().joules["gpu-0"] - before.joules["gpu-0"] == pytest.approx(3000.0, abs=30.0)
    assert library.inits == 1


def test_the_protocol_s_hundred_periods_last_the_ten_seconds_that_partial_sampling_needs(opened) -> None:
    assert 100 * opened(FakeNvml()).period_s >= 10.0


def test_several_gpus_are_domains(opened, moment) -> None:
    meter = opened(FakeNvml([Gpu(b"NVIDIA A100", 100.0), Gpu("NVIDIA A100", 50.0)]))
    before = meter.read()
    moment.sleep(100.0)
    after = meter.read()
    assert meter.boundary == "2 GPU boards (0: NVIDIA A100, 1: NVIDIA A100)"
    for name, watts in (("gpu-0", 100.0), ("gpu-1", 50.0)):
        assert after.joules[name] - before.joules[name] == pytest.approx(100.0 * watts, rel=2e-3)


def test_without_a_counter_instant_power_is_integrated(opened, moment) -> None:
    meter = opened(FakeNvml([Gpu("Tesla P100", 120.0, energy_error=NOT_SUPPORTED)]))
    assert isinstance(meter, NvmlPowerMeter)
    assert (meter.name, meter.period_s) == ("nvml-instant", 0.1)
    sampler = Sampler(meter, clock=moment.clock)
    sampler.read()
    for _ in range(20):
        moment.sleep(0.1)
        reading = sampler.read()
    assert reading.joules["gpu-0"] == pytest.approx(240.0)


def test_a_counter_that_never_moves_is_not_used(opened) -> None:
    library = FakeNvml()
    library.advance = lambda seconds: None  # type: ignore[method-assign]
    assert isinstance(opened(library), NvmlPowerMeter)


def test_averaged_power_is_the_last_choice_and_says_so(opened) -> None:
    meter = opened(FakeNvml([Gpu(energy_error=NOT_SUPPORTED, instant_error=NOT_SUPPORTED)]))
    assert (meter.name, meter.period_s) == ("nvml-average", 1.0)
    assert meter.missing() is None
    assert meter.sample().watts == {"gpu-0": 300.0}


def test_bindings_without_the_field(opened) -> None:
    library = FakeNvml([Gpu(energy_error=NOT_SUPPORTED)])
    del FakeNvml.NVML_FI_DEV_POWER_INSTANT
    try:
        del library.NVML_FI_DEV_POWER_INSTANT
        assert opened(library).name == "nvml-average"
    finally:
        FakeNvml.NVML_FI_DEV_POWER_INSTANT = 186


def test_it_starts_and_then_refuses_power_as_on_a_jetson(opened) -> None:
    refusing = Gpu("Orin (nvgpu)", 0.0, 0.0, NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED)
    missing = opened(FakeNvml([refusing])).missing()
    assert missing is not None
    assert "NVML tells no power of GPU 0: Not Supported" in missing
    assert "jetson meter" in missing


def test_no_driver_and_no_gpu(opened) -> None:
    missing = opened(FakeNvml(init_error=LIBRARY)).missing()
    assert "cannot be started (is the NVIDIA driver loaded?): NVML Shared Library Not Found" in str(missing)
    assert "finds no NVIDIA GPU" in str(opened(FakeNvml([])).missing())


def test_no_permission(opened) -> None:
    gpu = Gpu(energy_error=NO_PERMISSION, instant_error=NO_PERMISSION, average_error=NO_PERMISSION)
    assert "Insufficient Permissions" in str(opened(FakeNvml([gpu])).missing())


def test_a_gpu_that_is_lost_while_measuring(opened) -> None:
    library = FakeNvml()
    meter = opened(library)
    meter.read()
    library.gpus[0].energy_error = LOST
    with pytest.raises(UnavailableError, match="NVML tells no energy of GPU 0: GPU is lost"):
        meter.read()


def test_one_gpu_is_measured_though_another_is_lost(opened, moment) -> None:
    library = FakeNvml(
        [Gpu("NVIDIA A100", 100.0), Gpu(handle_error=LOST), Gpu("Tesla P100", energy_error=NOT_SUPPORTED)]
    )
    reason = opened(library).missing()
    assert "NVML gives no handle of GPU 1: GPU is lost" in str(reason)
    assert "such as nvml:0" in str(reason)
    moment.during = library.advance
    first = open_nvml(lambda: library, moment.clock, moment.sleep, only=0)
    assert first.missing() is None
    assert (first.name, first.boundary) == ("nvml:0", "GPU board 0: NVIDIA A100")
    assert isinstance(first, NvmlMeter)
    assert list(first.read().joules) == ["gpu-0"]
    third = open_nvml(lambda: library, moment.clock, moment.sleep, only=2)
    assert isinstance(third, NvmlPowerMeter)
    assert (third.name, third.sample().watts) == ("nvml-instant:2", {"gpu-2": 300.0})
    lost = open_nvml(lambda: library, moment.clock, moment.sleep, only=1).missing()
    assert str(lost) == "NVML gives no handle of GPU 1: GPU is lost"
    none = open_nvml(lambda: library, moment.clock, moment.sleep, only=3).missing()
    assert str(none) == "NVML finds no GPU 3 (there are 0 to 2)"


@pytest.mark.parametrize("spec", ["nvml:0", "nvml:gpu-0"])
def test_a_spec_asks_one_gpu_alone(spec: str) -> None:
    library = FakeNvml([Gpu(energy_error=NOT_SUPPORTED), Gpu(handle_error=LOST)])
    meter = open_meter(spec, {}, Sources(nvml=lambda: library))
    assert meter.missing() is None
    assert meter.name == "nvml-instant:0"


def test_a_counter_that_goes_back_or_sticks(opened, moment) -> None:
    library = FakeNvml()
    meter = opened(library)
    first = meter.read()
    library.gpus[0].joules = 100.0
    with pytest.raises(UnavailableError, match="gpu-0 went back"):
        meter.read()
    assert meter.read().epoch == first.epoch + 1
    moment.now += 6.0
    with pytest.raises(UnavailableError, match="gpu-0 is stuck"):
        meter.read()


def test_without_the_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError, match=r"pip install 'greencc\[nvidia\]'"):
        load_pynvml()
    missing = open_nvml().missing()
    assert "bindings are not installed" in str(missing)
