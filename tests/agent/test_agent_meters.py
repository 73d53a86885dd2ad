"""The agent's meters against the host's, on the same machines, and against what goes wrong."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from greencc.agent import machine, meters, rapl
from greencc.agent import pmic as agent_pmic
from greencc.agent.nvml import NvmlMeter
from greencc.agent.places import Places
from greencc.agent.problem import Problem
from greencc.agent.rails import JetsonMeter as AgentJetson
from greencc.agent.rapl import RaplMeter
from greencc.agent.sampler import Sampler
from greencc.core import machine as host_machine
from greencc.core.errors import UnavailableError
from greencc.meters import jetson, raspberry
from greencc.meters.jetson import JetsonMeter
from tests.devices.fake_jetpack import MODULES, make_jetpack
from tests.meters.conftest import Tree
from tests.meters.test_jetson import BOARDS, agx_orin, orin_nano
from tests.meters.test_raspberry import OUTPUT

NVML = Path(__file__).parent / "fake_nvml.c"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A machine's /sys."""
    return Tree(tmp_path / "sys")


def agent_meter(tree: Tree) -> AgentJetson:
    return AgentJetson(tree.root.parent)


def test_names_of_modules_and_cores_are_the_hosts() -> None:
    assert machine.MODULES == jetson._MODULES
    assert machine.GENERATIONS == jetson._GENERATIONS
    assert machine.COMPUTE.keys() == machine.GENERATIONS.keys()
    assert machine._IMPLEMENTERS == host_machine._ARM_IMPLEMENTERS
    assert machine._PARTS == host_machine._ARM_PARTS


@pytest.mark.parametrize(("board", "boundary", "watts"), BOARDS)
def test_every_generation_reads_as_it_does_on_the_host(tree: Tree, board, boundary, watts) -> None:
    board(tree)
    host, agent = JetsonMeter(tree.root), agent_meter(tree)
    assert agent.read() == host.sample().watts == pytest.approx(watts)
    assert agent.boundary == host.boundary
    assert agent.period_s == host.period_s
    told = agent.as_json()
    assert (told["name"], told["grade"], told["uncertainty"]) == (
        host.name,
        host.grade.name,
        host.uncertainty,
    )


@pytest.mark.parametrize("module", MODULES)
def test_machines_in_folders_read_the_same_as_well(tmp_path: Path, module: str) -> None:
    root = make_jetpack(tmp_path / "jetson", module, trtexec=False).root
    host, agent = JetsonMeter(root / "sys"), AgentJetson(root)
    assert agent.read() == host.sample().watts
    assert agent.boundary == host.boundary
    assert sum(agent.read().values()) == pytest.approx(MODULES[module].idle_w, rel=1e-3)


@pytest.mark.parametrize("break_it", ["no device tree", "no monitor", "no rail", "no number", "gone"])
def test_what_is_wrong_is_told_as_the_host_tells_it(tree: Tree, break_it: str) -> None:
    if break_it == "no monitor":
        tree.device_tree("NVIDIA Jetson Orin NX", "nvidia,p3767-0000", "nvidia,tegra234")
    elif break_it == "no rail":
        tree.write({"in2_label": "NC"}, agx_orin(tree))
    elif break_it == "no number":
        tree.write({"curr1_input": "1424 mA"}, orin_nano(tree))
    elif break_it == "gone":
        folder = orin_nano(tree)
        (tree.root / folder / "curr1_input").unlink()
    with pytest.raises(UnavailableError) as host:
        JetsonMeter(tree.root).sample()
    with pytest.raises(Problem) as agent:
        agent_meter(tree).read()
    assert agent.value.message == host.value.message
    assert (agent.value.hint or None) == host.value.hint


def test_the_pis_rails_are_parsed_as_on_the_host() -> None:
    assert agent_pmic.parse(OUTPUT) == raspberry.parse(OUTPUT)
    for text in ("VDD_CORE_V volt(24)=0.8V\n", "nonsense\n", ""):
        with pytest.raises(UnavailableError) as host:
            raspberry.parse(text)
        with pytest.raises(Problem) as agent:
            agent_pmic.parse(text)
        assert agent.value.message == host.value.message


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    tree.device_tree("Raspberry Pi 5 Model B", "raspberrypi,5-model-b", "brcm,bcm2712")
    program = tmp_path / "usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{OUTPUT}EOF\n")
    program.chmod(0o755)
    places = Places(tmp_path / "home", tmp_path)
    meter, _ = meters.choose(places, "cpu")
    assert meter is not None
    assert meter.name == "pi5-pmic"
    assert meter.read() == raspberry.parse(OUTPUT)
    assert meter.boundary.startswith(f"{len(meter.read())} PMIC rails")
    program.write_text("#!/bin/sh\necho 'VCHI initialization failed'\nexit 255\n")
    assert "VCHI initialization failed" in str(meters.choose(places, "cpu")[1])


def counter(tree: Tree, name: str, value: int, *, wraps: int = 262_143_328_850) -> None:
    folder = f"class/powercap/{name}"
    label = {1: "package-0", 2: "dram"}[name.count(":")]
    tree.write({"name": label, "max_energy_range_uj": wraps, "energy_uj": value}, folder)


def test_rapl_counts_packages_and_memory_over_a_wrap(tree: Tree, monkeypatch) -> None:
    counter(tree, "intel-rapl:0", 262_143_000_000)
    counter(tree, "intel-rapl:0:1", 500_000)
    tree.write({"name": "psys", "max_energy_range_uj": 10**9, "energy_uj": 5}, "class/powercap/intel-rapl:1")

    def tick(seconds: float) -> None:
        counter(tree, "intel-rapl:0", 262_143_100_000)
        counter(tree, "intel-rapl:0:1", 600_000)

    monkeypatch.setattr(rapl, "time", SimpleNamespace(sleep=tick, monotonic=lambda: 0.0))
    meter = RaplMeter(tree.root.parent)
    assert meter.read() == {"package-0": 0.0, "package-0/dram": 0.0}
    counter(tree, "intel-rapl:0", 1_000_000)
    counter(tree, "intel-rapl:0:1", 700_000)
    assert meter.read() == pytest.approx({"package-0": 1.22885, "package-0/dram": 0.1})
    assert meter.boundary == "package-0 + package-0/dram"
    counter(tree, "intel-rapl:0", 10)
    counter(tree, "intel-rapl:0:1", 10)
    with pytest.raises(Problem, match="went back"):
        meter.read()
    assert meter.read()["package-0"] == pytest.approx(1.22885)


def test_a_rapl_counter_that_stands_still_is_none(tree: Tree, monkeypatch) -> None:
    counter(tree, "intel-rapl:0", 77)
    monkeypatch.setattr(rapl, "_PROBE_S", 0.05)
    assert "never moves" in str(RaplMeter(tree.root.parent).check())


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The double of NVML, compiled."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    library = tmp_path_factory.mktemp("nvml") / "libnvml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, NVML], check=True)
    return library


@pytest.mark.parametrize(
    ("kind", "name", "first"),
    [
        ("energy", "nvml", {"gpu-0": 0.0, "gpu-1": 0.0}),
        ("instant", "nvml-instant", {"gpu-0": 123.456, "gpu-1": 30.0}),
        ("average", "nvml-average", {"gpu-0": 120.0, "gpu-1": 31.0}),
    ],
)
def test_nvml_gives_the_best_that_the_gpus_have(
    nvml: Path, monkeypatch, kind: str, name: str, first: dict
) -> None:
    monkeypatch.setenv("GREENCC_AGENT_NVML", str(nvml))
    monkeypatch.setenv("NVML_DOUBLE", kind)
    monkeypatch.setattr("greencc.agent.nvml._PROBE_S", 0.05)
    meter = NvmlMeter()
    assert meter.read() == pytest.approx(first)
    assert (meter.name, meter.counts) == (name, kind == "energy")
    assert meter.boundary == "2 GPU boards (0: NVIDIA H200, 1: NVIDIA L4)"
    if kind == "energy":
        # The double counts 1.5 J from reading to reading, on a counter that takes more than 32 bits.
        assert meter.read() == pytest.approx({"gpu-0": 1.5, "gpu-1": 1.5})


def test_nvml_that_starts_and_tells_nothing_is_no_meter(nvml: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GREENCC_AGENT_NVML", str(nvml))
    monkeypatch.setenv("NVML_DOUBLE", "none")
    assert "Not Supported" in str(NvmlMeter().check())
    meter, why = meters.choose(Places(tmp_path, tmp_path), "gpu", "nvml:7")
    assert meter is None
    assert "no NVIDIA GPU 7" in str(why)


def test_one_gpu_of_several(nvml: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GREENCC_AGENT_NVML", str(nvml))
    meter, _ = meters.choose(Places(tmp_path, tmp_path), "gpu", "nvml:1")
    assert meter is not None
    assert list(meter.read()) == ["gpu-1"]
    assert meter.boundary == "GPU board 1: NVIDIA L4"
    assert meter.name == "nvml:1"
    with pytest.raises(Problem, match="no meter of devices"):
        meters.choose(Places(tmp_path, tmp_path), "gpu", "kwh")


class Scripted:
    """A meter that gives what it is told, one after another."""

    def __init__(self, rows: list, counts: bool) -> None:
        self.rows, self.counts = rows, counts
        self.period_s = 0.001

    def read(self) -> dict[str, float]:
        row = self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]
        if isinstance(row, Problem):
            raise row
        return {"rail": row}


def test_samples_begin_before_and_end_after_what_is_watched() -> None:
    sampler = Sampler(Scripted([5.0], counts=False))
    sampler.start()
    begin = time.monotonic()
    end = time.monotonic()
    told = sampler.stop()
    assert told["problem"] is None
    assert told["readings"] == []
    times = [row["seconds"] for row in told["samples"]]
    assert times[0] <= begin <= end <= times[-1]
    assert times == sorted(times)


def test_a_counter_that_failed_in_between_begins_another_epoch() -> None:
    rows = [1.0, Problem("unavailable", "it is gone"), 7.0]
    sampler = Sampler(Scripted(rows, counts=True))
    sampler.start()
    sampler.stop()
    sampler = Sampler(Scripted([1.0, Problem("unavailable", "it is gone"), 7.0, 8.0], counts=True))
    for _ in range(4):
        sampler._take()
    assert [(row[1]["rail"], row[2]) for row in sampler._rows] == [(1.0, 0), (7.0, 1), (8.0, 1)]
    assert sampler._problem == "it is gone"
