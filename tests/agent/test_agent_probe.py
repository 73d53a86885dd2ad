"""What a probe tells of several machines."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import greencc.agent
from greencc.agent import condition, jetpack, machine, probe
from greencc.agent.places import Places
from greencc.devices.facts import DeviceFacts
from tests.devices.fake_jetpack import make_jetpack

from .agents import Agent

SOURCES = sorted(Path(greencc.agent.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(
    ("module", "release", "l4t", "tensorrt", "cuda", "sm", "name"),
    [
        ("nano", "4.6.1", "32.7.1", "8.2.1", "10.2.300", 53, "Nano"),
        ("xavier-nx", "5.1", "35.2.1", "8.5.2", "11.4.19", 72, "Xavier NX"),
        ("orin-nano", "6.2", "36.4.3", "10.3.0.30", "12.6.68", 87, "Orin NX or Orin Nano"),
        ("orin-nx", "6.1", "36.4.0", "10.3.0.30", "12.6.68", 87, "Orin NX or Orin Nano"),
        ("agx-orin", "6.0", "36.3.0", "8.6.2.3", "12.2.140", 87, "AGX Orin"),
        ("thor", "7.0", "38.2.0", "10.13.3.9", "13.0.48", 110, "Thor"),
    ],
)
def test_versions_come_from_what_is_installed(
    tmp_path: Path, module: str, release: str, l4t: str, tensorrt: str, cuda: str, sm: int, name: str
) -> None:
    device = make_jetpack(tmp_path / "jetson", module, release, trtexec=False)
    places = Places.find(device.environment)
    packages = jetpack.installed(device.root)
    assert jetpack.l4t(device.root) == l4t
    assert jetpack.jetpack(l4t, packages) == release
    # Of a package that was removed dpkg still knows.
    assert "libnvinfer7" not in packages
    assert jetpack.tensorrt(places, packages) == {"version": tensorrt, "trtexec": None}
    assert jetpack.cuda(device.root) == cuda
    assert (probe.gpu(places) or {})["sm"] == sm
    found = machine.find_module(device.root)
    assert found is not None
    assert found.name == name
    # A unit that is powered down shows -256 degrees.
    assert condition.temperatures(device.root) == {
        "cpu-thermal": 46.0,
        "gpu-thermal": 46.5,
        "soc0-thermal": 47.0,
    }
    assert condition.gpu_mhz(device.root) == 306.0
    assert any(device.module.gpu in clock for clock in condition.free_clocks(device.root))


def test_jetpacks_own_package_comes_first_and_an_unknown_release_is_not_guessed(tmp_path: Path) -> None:
    assert jetpack.jetpack("36.4.3", {"nvidia-jetpack": "6.2.1+b38"}) == "6.2.1"
    assert jetpack.jetpack("99.1.0", {}) is None
    assert jetpack.jetpack(None, {}) is None


def test_a_whole_probe_over_the_wire(agent: Agent, jetpack) -> None:
    told = agent.ask("probe")
    # The host reads all of it.
    facts = DeviceFacts.parse(told, "orin")
    assert (facts.module, facts.jetpack, facts.tensorrt) == ("Orin NX or Orin Nano", "6.2", "10.3.0.30")
    assert facts.trtexec == str(jetpack.root / "usr/src/tensorrt/bin/trtexec")
    assert (facts.cpu, facts.processors, facts.memory_bytes) == ("Cortex-A78AE", 6, 7802904 * 1024)
    assert told["power"] == {
        "modes": [
            {"name": "15W", "watts": 15.0},
            {"name": "25W", "watts": 25.0},
            {"name": "MAXN_SUPER", "watts": None},
            {"name": "7W", "watts": 7.0},
        ],
        "mode": "25W",
        "default": "25W",
        "before": None,
        "problem": None,
    }
    assert [meter["boundary"] for meter in told["meters"]] == [
        "VDD_IN (Orin NX or Orin Nano module; the carrier board is outside)"
    ]
    assert told["missing_meters"].keys() == {"pi5-pmic", "nvml", "rapl"}
    assert told["backends"]["ort"] == ""
    assert set(told["backends"]) == {"tensorrt", "ort", "tvm"}
    assert told["celsius"] == 47.0
    assert told["clocks_fixed"] is False
    assert told["rails"][0] == {"label": "VDD_IN", "watts": pytest.approx(3.2)}
    assert told["throttle_count"] is None


def test_a_pc_with_a_gpu(tmp_path: Path) -> None:
    smi = tmp_path / "usr/bin/nvidia-smi"
    smi.parent.mkdir(parents=True)
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 143771, 570.86.15'\n")
    smi.chmod(0o755)
    places = Places(tmp_path / "home", tmp_path)
    assert probe.gpu(places) == {
        "name": "NVIDIA H200",
        "sm": 90,
        "memory_bytes": 143771 << 20,
        "driver": "570.86.15",
    }
    smi.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert probe.gpu(places) is None


def test_throttling_is_counted_where_the_device_counts_it(tmp_path: Path) -> None:
    places = Places(tmp_path / "home", tmp_path)
    assert condition.throttle_count(places) is None
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    (folder / "oc1_event_cnt").write_text("2\n")
    (folder / "oc3_event_cnt").write_text("5\n")
    assert condition.throttle_count(places) == 7
    program = tmp_path / "usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(0o755)
    assert condition.throttle_count(places) == 11


def test_what_others_use_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 20 30 900 50 6 7 8 0 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert condition.busy_seconds(tmp_path) == (100 + 20 + 30 + 6 + 7 + 8) / ticks
    assert condition.processors(tmp_path) == 2
    (tmp_path / "proc/stat").write_text("nonsense\n")
    assert condition.busy_seconds(tmp_path) is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_agent_is_written_for_python_3_6(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "annotations cannot be postponed before 3.7"
            assert node.module != "dataclasses"
        if isinstance(node, ast.Call):
            names = {keyword.arg for keyword in node.keywords}
            assert not names & {"capture_output", "missing_ok", "dirs_exist_ok"}, node.lineno
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert function not in ("removeprefix", "removesuffix", "is_relative_to", "readlink"), node.lineno
            if function in ("run", "Popen", "check_output"):
                assert "text" not in names, node.lineno
        if isinstance(node, ast.AnnAssign | ast.arg | ast.FunctionDef):
            annotation = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            for inner in ast.walk(annotation) if annotation is not None else ():
                assert not isinstance(inner, ast.BinOp), "X | Y of types came with 3.10"
                if isinstance(inner, ast.Subscript) and isinstance(inner.value, ast.Name):
                    assert inner.value.id not in ("list", "dict", "tuple", "set", "type"), (
                        "lists of types came with 3.9"
                    )


@pytest.mark.full
def test_the_agent_serves_from_the_oldest_python_there_is_here(agent_file: Path, jetpack) -> None:
    found = next(filter(None, map(_python, ("3.6", "3.7", "3.8", "3.9", "3.10"))), None)
    if found is None:
        pytest.skip("no Python before 3.11 is installed")
    agent = Agent(agent_file, jetpack.environment, (found,))
    try:
        assert agent.ask("probe")["chip"] == "tegra234"
        assert agent.result("quiet", {"kind": "idle", "seconds": 0, "metered": True})["samples"]
        agent.ask("power-mode", set="7W")
        agent.ask("bye")
        assert jetpack.mode == "25W"
    finally:
        agent.end()


def _python(version: str) -> str | None:
    """A Python that runs; version managers leave shims that do not."""
    for name in (f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        path = shutil.which(name)
        if (
            path is not None
            and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return path
    return None
