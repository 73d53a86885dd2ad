"""What devices say of themselves, which target that is, and what does not fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greencc.agent import backends
from greencc.agent.places import Places
from greencc.agent.probe import probe
from greencc.core.errors import ExitCode, GreenccError, InputError, UnavailableError
from greencc.devices.advice import warnings
from greencc.devices.facts import DeviceFacts
from greencc.devices.fitting import Fit, Needs, check, known_release, matching
from greencc.devices.protocol import ProtocolError
from greencc.devices.room import Room, check_room
from greencc.targets import TensorRtTarget, make_target
from greencc.targets._tensorrt.presets import MODULES, releases_by_preset

from .fake_jetpack import FakeJetPack, make_jetpack

RELEASES = releases_by_preset()


@pytest.fixture
def no_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for them starts processes."""
    monkeypatch.setattr(backends, "NAMES", ())


def _probed(fake: FakeJetPack) -> DeviceFacts:
    fake.home.mkdir()
    return DeviceFacts.parse(probe(Places(fake.home, fake.root)), "orin")


@pytest.mark.usefixtures("no_backends")
@pytest.mark.parametrize(
    ("module", "jetpack", "target"),
    [
        ("nano", "4.6.1", "jetson:preset=jetson-nano,jetpack=4.6.1"),
        ("xavier-nx", "4.6.1", "jetson:preset=jetson-xavier-nx,jetpack=4.6.1"),
        ("xavier-nx", "5.1", "jetson:preset=jetson-xavier-nx,jetpack=5.1"),
        ("orin-nano", "6.2", "jetson:preset=jetson-orin-nano,jetpack=6.2"),
        ("orin-nx", "6.1", "jetson:preset=jetson-orin-nx,jetpack=6.1"),
        ("agx-orin", "6.0", "jetson:preset=jetson-agx-orin,jetpack=6.0"),
        ("thor", "7.0", "jetson:preset=jetson-thor,jetpack=7.0"),
    ],
)
def test_modules_are_recognised(tmp_path: Path, module: str, jetpack: str, target: str) -> None:
    fake = make_jetpack(tmp_path / "device", module, jetpack)
    facts = _probed(fake)
    assert matching(facts, RELEASES) == Fit(target)
    assert facts.gpu is not None
    preset = next(preset for preset in MODULES if preset.value in target)
    assert facts.gpu.sm == MODULES[preset].sm
    assert facts.tensorrt is not None
    expected = MODULES[preset].release(jetpack).tensorrt
    assert facts.tensorrt.startswith(f"{expected.major}.{expected.minor}")
    assert facts.power is not None
    assert facts.power.mode == fake.mode
    assert {rail.label for rail in facts.rails} == set(fake.module.rails)
    needs = Needs(target, MODULES[preset].sm, str(expected), preset.value)
    check(facts, needs, "orin", Fit(target))


def _facts(**changes: Any) -> DeviceFacts:
    told = {
        "machine": "aarch64",
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "compatible": ["nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"],
        "module": "Orin NX or Orin Nano",
        "chip": "tegra234",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "tensorrt": {"version": "10.3.0.30", "trtexec": "/usr/src/tensorrt/bin/trtexec"},
        "gpu": {"name": "Orin", "sm": 87, "memory_bytes": 8 << 30, "driver": None},
        "memory_bytes": 8 << 30,
        "memory_free_bytes": 6 << 30,
        "disk_free_bytes": 20 << 30,
        "cpu": {"model": "Cortex-A78AE", "processors": 6, "features": ["asimd"]},
        "meters": [
            {"name": "jetson", "grade": "B", "boundary": "VDD_IN", "period_s": 0.005, "sees": ["cpu", "gpu"]}
        ],
    }
    return DeviceFacts.parse({**told, **changes}, "orin")


@pytest.mark.parametrize(
    ("jetpack", "release"),
    [
        ("6.2", "6.2"),
        ("6.2.1", "6.2"),
        ("6.0", "6.0"),
        ("7.2.2", "7.2.2"),
        ("7.2.1", "7.2"),
        ("7.2.5", "7.2.2"),
        ("4.6.3", "4.6.1"),
        ("4.6", None),
        ("6.2 beta", None),
        ("6", None),
        ("6.20", None),
    ],
)
def test_releases_that_belong_together(jetpack: str, release: str | None) -> None:
    assert known_release(jetpack, ("6.2", "6.1", "6.0", "7.2", "7.2.2", "4.6.1")) == release


@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        ({"jetpack": None}, "its JetPack is not known (L4T 36.4.3)", "nvidia-jetpack"),
        ({"jetpack": "9.1", "tensorrt": None}, "JetPack 9.1 is not known", "known: 6.2"),
        (
            {
                "compatible": ["nvidia,p3448-0000"],
                "jetpack": "4.6",
                "tensorrt": {"version": "8.0.1"},
            },
            "nor TensorRT 8.0",
            "known: 4.6.1; install",
        ),
        (
            {"compatible": [], "board": "?", "module": "AGX Xavier", "chip": "tegra194"},
            "no preset",
            "jetson-cpu",
        ),
    ],
)
def test_jetsons_without_a_target(changes: dict[str, Any], reason: str, remedy: str) -> None:
    fit = matching(_facts(**changes), RELEASES)
    assert fit.target is None
    assert reason in fit.reason
    assert remedy in fit.remedy


@pytest.mark.parametrize(("jetpack", "version"), [("7.2.2", "11.4"), ("9.1", "11.6")])
def test_a_jetson_with_another_tensorrt_is_its_gpu_with_that(jetpack: str, version: str) -> None:
    fit = matching(_facts(jetpack=jetpack, tensorrt={"version": f"{version}.1"}), RELEASES)
    assert fit.target == f"tensorrt:version={version},gpu=jetson-orin-nano"
    target = make_target(fit.target)
    assert isinstance(target, TensorRtTarget)
    assert (target.machine.gpu.sm, target.machine.version.release) == (87, version)
    assert f"JetPack {jetpack} with TensorRT {version}" in fit.reason


_OTHER: dict[str, Any] = {
    "chip": None,
    "module": None,
    "compatible": [],
    "gpu": None,
    "tensorrt": None,
    "jetpack": None,
}


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({"board": "Raspberry Pi 5 Model B Rev 1.0"}, "tvm-arm:preset=rpi5"),
        ({"board": "Raspberry Pi 4 Model B"}, "tvm-arm:preset=rpi4"),
        ({"board": "a board", "cpu": {"model": "Cortex-A76 + Cortex-A55"}}, "tvm-arm:preset=cortex-a76"),
        ({"board": "a board", "cpu": {"model": "Neoverse-N1"}}, "tvm-arm"),
        ({"machine": "x86_64"}, "cpu"),
        (
            {"machine": "x86_64", "gpu": {"name": "RTX", "sm": 89}, "tensorrt": {"version": "10.3.0.30"}},
            "tensorrt:version=10.3",
        ),
        ({"machine": "riscv64"}, None),
    ],
)
def test_other_machines(changes: dict[str, Any], target: str | None) -> None:
    assert matching(_facts(**{**_OTHER, **changes}), RELEASES).target == target


_NEEDS = Needs("jetson:preset=jetson-orin-nano,jetpack=6.2", 87, "10.3.0", "jetson-orin-nano")


@pytest.mark.parametrize(
    ("changes", "needs", "kind", "message", "hint"),
    [
        (
            {**_OTHER, "board": "Raspberry Pi 5"},
            _NEEDS,
            UnavailableError,
            "is no Jetson, but Raspberry Pi 5",
            "rpi5",
        ),
        (
            {"compatible": ["nvidia,p3767-0000"]},
            _NEEDS,
            InputError,
            "is a jetson-orin-nx, and",
            "preset=jetson-orin-nx",
        ),
        ({"gpu": {"name": "X", "sm": 72}}, _NEEDS, InputError, "of compute capability 72", "--target jetson"),
        ({"gpu": None}, _NEEDS, UnavailableError, "shows no NVIDIA GPU", "nvidia-smi"),
        ({"tensorrt": {"version": None}}, _NEEDS, UnavailableError, "has no TensorRT", "sudo apt install"),
        (
            {"tensorrt": None, "jetpack": None, "l4t": None},
            _NEEDS,
            UnavailableError,
            "no JetPack that can be recognised",
            "nvidia-jetpack",
        ),
        (
            {"tensorrt": {"version": "8.5.2"}, "jetpack": "5.1"},
            _NEEDS,
            InputError,
            "has TensorRT 8.5.2, and",
            "jetpack=5.1",
        ),
    ],
)
def test_what_does_not_fit(
    changes: dict[str, Any], needs: Needs, kind: type[GreenccError], message: str, hint: str
) -> None:
    facts = _facts(**changes)
    with pytest.raises(kind) as caught:
        check(facts, needs, "orin", matching(facts, RELEASES))
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_what_is_not_needed_is_not_asked_for() -> None:
    check(_facts(**_OTHER), Needs("cpu"), "orin", Fit("cpu"))
    unknown = _facts(memory_bytes=None, disk_free_bytes=None)
    check_room(unknown, Room(1 << 50, 1 << 50), "the model", "orin")


_CARD = {"machine": "x86_64", "chip": None, "module": None, "compatible": []}


@pytest.mark.parametrize(
    ("changes", "room", "message"),
    [
        # The 4 GB variant of a module whose preset has 8 GB.
        (
            {"memory_bytes": 4 << 30},
            Room(4 << 30, 0),
            "4,295 MB of memory .* has 4,295 MB, of which the system",
        ),
        ({"memory_bytes": 4 << 30}, Room(3900 << 20, 0), "before anything is copied"),
        (
            {**_CARD, "gpu": {"name": "RTX", "sm": 89, "memory_bytes": 2 << 30}},
            Room(3 << 30, 0),
            r"has 2,147 MB \(compile",
        ),
        ({**_CARD, "memory_bytes": 1 << 30}, Room(1 << 30, 0, on_gpu=False), "of which the system"),
        ({"disk_free_bytes": 100, "disk_used_bytes": 5}, Room(0, 1 << 30), "0 MB of free disk"),
    ],
)
def test_what_a_device_cannot_hold(changes: dict[str, Any], room: Room, message: str) -> None:
    with pytest.raises(GreenccError, match=message):
        check_room(_facts(**changes), room, "the model", "orin")


@pytest.mark.parametrize(
    ("changes", "room"),
    [
        ({"memory_bytes": 4 << 30}, Room(3 << 30, 0)),
        # Other programs may end before the build; the device itself refuses if they do not.
        ({"memory_free_bytes": 1 << 30}, Room(2 << 30, 0)),
        ({**_CARD, "gpu": {"name": "RTX", "sm": 89, "memory_bytes": 16 << 30}}, Room(12 << 30, 0)),
        # What greencc keeps there may be the very model.
        ({"disk_free_bytes": 100, "disk_used_bytes": 2 << 30}, Room(0, 1 << 30)),
    ],
)
def test_what_a_device_can_hold(changes: dict[str, Any], room: Room) -> None:
    check_room(_facts(**changes), room, "the model", "orin")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hostname": 7}, "hostname"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"memory_bytes": True}, "memory_bytes"),
        ({"memory_bytes": 1 << 70}, "memory_bytes"),
        ({"uptime_s": "long"}, "uptime_s"),
        ({"load": ["a"]}, "load"),
        ({"load": 1.0}, "load"),
        ({"compatible": "nvidia"}, "compatible"),
        ({"compatible": ["x"] * 5000}, "compatible"),
        ({"cpu": []}, "cpu"),
        ({"gpu": {"sm": "87"}}, "sm"),
        ({"power": {"modes": [15]}}, "modes"),
        ({"clocks": {"free": "all"}}, "free"),
        ({"temperatures": {"cpu": "hot"}}, "cpu"),
        ({"temperatures": {str(index): 1.0 for index in range(5000)}}, "more than"),
        ({"rails": {"VDD_IN": 1}}, "rails"),
        ({"meters": ["jetson"]}, r"meters\[0\]"),
        ({"meters": [{"counts": 1}]}, "counts"),
        ({"missing_meters": {"rapl": []}}, "missing_meters: rapl"),
        ({"backends": {"ort": None}}, "backends: ort"),
        ({"backends": {"ort": ""}, "backend_facts": {"ort": "1.2"}}, "backend_facts: ort"),
    ],
)
def test_facts_of_another_form(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ProtocolError, match=key) as caught:
        _facts(**changes)
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert "the probe of orin" in caught.value.message


def test_long_and_hostile_texts_are_made_harmless() -> None:
    facts = _facts(hostname="h" * 9000, board="\x1b]0;owned\x07")
    assert facts.hostname == "h" * 500 + "..."
    assert facts.board == "?]0;owned?"


def test_what_is_to_be_known_before_measuring() -> None:
    assert warnings(_facts()) == []
    assert "no energy meter" in warnings(_facts(meters=[], missing_meters={"rapl": "no counter"}))[0]
    assert "jetson_clocks" in warnings(_facts(clocks_fixed=False))[0]
    assert "'performance' governor" in warnings(_facts(**_OTHER, clocks_fixed=False))[0]
    assert "disk" in warnings(_facts(disk_free_bytes=100 << 20))[0]
    assert "85 °C" in warnings(_facts(celsius=85.0))[0]
    assert "job 7 of u" in warnings(_facts(busy="job 7 of u"))[0]
    assert "should be 15W again" in warnings(_facts(power={"before": "15W", "problem": "sudo"}))[0]
    assert "load 5.0" in warnings(_facts(load=[5.0, 1.0, 1.0]))[0]
