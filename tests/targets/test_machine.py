"""Recorded CPUs, control groups and topologies."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.core import machine


def x86(flags: str, model: str = "AMD EPYC 7763 64-Core Processor", cores: int = 2) -> str:
    block = "processor\t: {}\nvendor_id\t: AuthenticAMD\nmodel name\t: {}\nflags\t\t: {}\n"
    return "\n".join(block.format(index, model, flags) for index in range(cores))


def arm(features: str, part: str = "0xd0b") -> str:
    return "\n".join(
        f"processor\t: {index}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for index in range(4)
    )


def test_x86_flags_and_name() -> None:
    cpu = machine.parse_cpuinfo(x86("fpu avx2 fma avx512_vnni hypervisor"))
    assert (cpu.x86, cpu.arm64, cpu.vnni, cpu.virtualised, cpu.logical) == (True, False, True, True, 2)
    assert cpu.model == "AMD EPYC 7763 64-Core Processor"
    assert cpu.notable == ("avx2", "fma", "avx512_vnni")


def test_arm_parts_are_named_and_cannot_tell_a_hypervisor() -> None:
    cpu = machine.parse_cpuinfo(arm("fp asimd asimddp"))
    assert (cpu.arm64, cpu.model, cpu.vendor, cpu.virtualised) == (True, "Cortex-A76", "ARM", None)


def test_heterogeneous_cores_keep_the_common_features() -> None:
    text = arm("fp asimd asimddp", "0xd0b") + "\n" + arm("fp asimd", "0xd05")
    cpu = machine.parse_cpuinfo(text)
    assert cpu.features == {"fp", "asimd"}
    assert cpu.model == "Cortex-A76 + Cortex-A55"


def test_an_unknown_arm_part_is_described_not_guessed() -> None:
    assert machine.parse_cpuinfo(arm("asimd", "0xfff")).model == "ARM part 0xfff"


def test_nothing_readable_gives_no_features(tmp_path: Path) -> None:
    cpu = machine.read_cpuinfo(tmp_path)
    assert cpu.features == frozenset()
    assert cpu.logical == 0


def test_hyper_threads_are_one_physical_core(tmp_path: Path) -> None:
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert machine.physical_cores(range(4), tmp_path) == 2
    assert machine.physical_cores([0, 2], tmp_path) == 1


def test_core_ids_of_two_sockets_differ(tmp_path: Path) -> None:
    for cpu in range(2):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_id").write_text("0\n")
        (folder / "physical_package_id").write_text(f"{cpu}\n")
    assert machine.physical_cores(range(2), tmp_path) == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_control_group_limits(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert machine.cgroup_cpus(tmp_path) == expected


def test_a_control_group_limits_the_threads_but_not_below_one(tmp_path: Path) -> None:
    path = tmp_path / "sys/fs/cgroup/cpu.max"
    path.parent.mkdir(parents=True)
    path.write_text("20000 100000\n")
    assert machine.usable_threads(tmp_path) == 1


def test_memory_board_and_governor(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8000000 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B\0")
    for cpu, name in enumerate(("schedutil", "performance")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(name + "\n")
    assert machine.memory_total_bytes(tmp_path) == 8_000_000 * 1024
    assert machine.board_model(tmp_path) == "Raspberry Pi 5 Model B"
    assert machine.governor(tmp_path) == "performance+schedutil"
