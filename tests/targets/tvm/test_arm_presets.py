"""ARM machines by name: what code is generated for, and the profiles and processors that go with it."""

from __future__ import annotations

import platform

import pytest

from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.meters.device_store import find_profile
from greencc.targets import format_spec, make_target
from greencc.targets._tvm.arm_engine import check_emulated
from greencc.targets._tvm.description import Description, FileFacts
from greencc.targets._tvm.emulator import FEATURES
from greencc.targets._tvm.machine import Dot
from greencc.targets._tvm.presets import DOTPROD, MACHINES, ArmPreset, arm_machine
from greencc.targets.tvm_arm import TvmArmTarget

SDOT = {ArmPreset.RPI5, ArmPreset.CORTEX_A76, ArmPreset.CORTEX_A78AE, ArmPreset.JETSON_CPU}
PRESETS = list(MACHINES)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_and_its_device_profile_are_of_one_machine(preset: ArmPreset) -> None:
    arm = arm_machine(preset)
    profile = find_profile(arm.profile)
    assert profile.processor == "cpu"
    assert profile.cores == arm.machine.cores
    assert profile.calibration is None
    assert arm.machine.aarch64
    assert arm.machine.activation == "int8"
    assert arm.machine.dot is (Dot.SDOT if preset in SDOT else Dot.SMLAL)
    # Half floats are costed as such where the core computes in them, which those with dot products do.
    assert ("float16" in profile.rates) == (preset in SDOT)
    sizes = {level.name: level.bytes for level in profile.levels}
    assert sizes["L1"] == arm.machine.cores * arm.machine.l1_bytes


@pytest.mark.parametrize("preset", PRESETS)
def test_the_emulated_processor_has_what_llvm_takes_for_granted(preset: ArmPreset) -> None:
    pytest.importorskip("tvm")
    from tvm.target import codegen

    from greencc.targets._tvm.features import needed_features
    from greencc.targets._tvm.pipeline import llvm_target

    arm = arm_machine(preset)
    assert codegen.llvm_is_valid_cpu(arm.machine.cpu, arm.machine.triple)
    implied = map(str, codegen.llvm_get_cpu_features(llvm_target(arm.machine)))
    needed = set(needed_features(arm.machine.triple, arm.machine.features, implied))
    assert needed <= FEATURES[arm.emulated]
    assert (DOTPROD in needed) == (DOTPROD in FEATURES[arm.emulated]) == (preset in SDOT)


def test_32_bits_are_refused_with_what_to_use() -> None:
    with pytest.raises(UsageError, match="32-bit ARM is not supported") as caught:
        make_target("tvm-arm:preset=armv7")
    assert "generic-aarch64" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="preset is 'armv8'") as unknown:
        make_target("tvm-arm:preset=armv8")
    assert "armv7" not in (unknown.value.hint or "")
    with pytest.raises(UsageError, match="did you mean 'rpi5'"):
        make_target("tvm-arm:preset=rp5")


def test_a_target_is_its_preset_in_text_and_in_facts() -> None:
    target = make_target("tvm-arm:preset=rpi5,threads=2")
    assert isinstance(target, TvmArmTarget)
    assert make_target(format_spec(target)) == target
    device = target.device()
    assert device.name == "Raspberry Pi 5 (4 x Cortex-A76 at 2.4 GHz)"
    assert device.facts["threads"] == "2"
    assert device.facts["physical_cores"] == "4"
    assert target.estimated_on() == "raspberry-pi-5"
    prints = {make_target(f"tvm-arm:preset={preset}").device().fingerprint for preset in PRESETS}
    assert len(prints | {device.fingerprint}) == len(PRESETS) + 1
    assert (target.with_threads(1), target.beside()) == (target, target)
    with pytest.raises(UsageError, match="rpi5 has 4 cores"):
        make_target("tvm-arm:preset=rpi5,threads=5")
    with pytest.raises(UnavailableError, match="cannot be profiled here"):
        target.profile(None, {}, 1)  # type: ignore[arg-type]


def described(*features: str, triple: str = "aarch64-linux-gnu") -> Description:
    nothing = FileFacts(0, "0" * 64)
    return Description((), (), triple, "cortex-a76", features, "0", (), nothing, nothing)


def test_code_with_instructions_that_the_machine_lacks_is_refused_before_it_runs() -> None:
    check_emulated("net", described("neon", "dotprod"), arm_machine(ArmPreset.RPI5))
    check_emulated("net", described("neon"), arm_machine(ArmPreset.RPI4))
    with pytest.raises(InputError, match="net needs dotprod, which Raspberry Pi 4"):
        check_emulated("net", described("neon", "dotprod"), arm_machine(ArmPreset.RPI4))
    with pytest.raises(InputError, match="compiled for x86_64-linux-gnu"):
        check_emulated("net", described(triple="x86_64-linux-gnu"), arm_machine(ArmPreset.RPI4))


def test_what_is_missing_is_said_with_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    if platform.machine() == "aarch64":
        pytest.skip("nothing has to be emulated here")
    monkeypatch.setenv("PATH", "/nonexistent")
    target = make_target("tvm-arm")
    assert "gcc-aarch64-linux-gnu libc6-dev-arm64-cross" in (target.missing() or "")
    assert "qemu-user-static" in (target.missing_to_open() or "")
