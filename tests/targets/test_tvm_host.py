"""What code is generated for on this computer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from greencc.core.machine import CpuInfo, parse_cpuinfo
from greencc.targets._tvm.features import features_of
from greencc.targets._tvm.host import fits, host_machine, machine_of, machine_text
from greencc.targets._tvm.machine import Dot
from greencc.targets._tvm.versions import missing_tvm

here = pytest.mark.skipif(missing_tvm() is not None, reason=str(missing_tvm()))

BASE = "fpu sse sse2"
V2 = f"{BASE} pni ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm"
V3 = f"{V2} avx avx2 fma f16c bmi1 bmi2 abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
PI5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PI4 = "fp asimd evtstrm crc32 cpuid"


def x86(flags: str) -> CpuInfo:
    return parse_cpuinfo(f"processor : 0\nvendor_id : GenuineIntel\nmodel name : Some CPU\nflags : {flags}\n")


def arm(features: str) -> CpuInfo:
    return parse_cpuinfo(f"processor : 0\nFeatures : {features}\nCPU implementer : 0x41\nCPU part : 0xd0b\n")


@pytest.mark.parametrize(
    ("cpu", "name", "dot", "bits", "activation"),
    [
        (x86(BASE), "x86-64", Dot.PLAIN, 128, "int8"),
        (x86(V2), "x86-64-v2", Dot.PLAIN, 128, "int8"),
        (x86(V3), "x86-64-v3", Dot.MADDUBS, 256, "uint8"),
        # AVX2 without what else belongs to the level.
        (x86(f"{V2} avx avx2"), "x86-64-v2", Dot.MADDUBS, 256, "uint8"),
        (x86(f"{V3} avx_vnni"), "x86-64-v3", Dot.VNNI256, 256, "uint8"),
        (x86(V4), "x86-64-v4", Dot.MADDUBS, 512, "uint8"),
        (x86(f"{V4} avx512_vnni"), "x86-64-v4", Dot.VNNI512, 512, "uint8"),
        (arm(PI5), "generic", Dot.SDOT, 128, "int8"),
        (arm(PI4), "generic", Dot.SMLAL, 128, "int8"),
    ],
)
def test_the_machine_of_a_cpu(
    cpu: CpuInfo, name: str, dot: Dot, bits: int, activation: str, tmp_path: Path
) -> None:
    machine = machine_of(cpu, 2, tmp_path)
    assert (machine.cpu, machine.dot, machine.vector_bits, machine.activation) == (
        name,
        dot,
        bits,
        activation,
    )
    assert machine.triple == f"{cpu.architecture}-linux-gnu"
    assert (machine.cores, machine.l1_bytes, machine.l2_bytes) == (2, 32 << 10, 512 << 10)


def test_features_go_by_the_names_of_llvm() -> None:
    assert features_of(arm(PI5)) == {
        *("fp-armv8", "neon", "crc", "lse", "fullfp16", "rdm", "rcpc", "dotprod")
    }
    assert features_of(x86("sse4_1 avx512_vnni rdrand")) == {"sse4.1", "avx512vnni"}
    assert features_of(CpuInfo("riscv64", "?", "?", frozenset({"avx2", "asimd"}), 1, None)) == frozenset()


def test_sizes_of_caches_are_read(tmp_path: Path) -> None:
    import os

    cpu = sorted(os.sched_getaffinity(0))[0]
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "64K"), (2, "Unified", "2M")]
    ):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("type", kind), ("size", size), ("shared_cpu_list", "0")):
            (folder / name).write_text(text + "\n")
    machine = machine_of(x86(V3), 1, tmp_path)
    assert (machine.l1_bytes, machine.l2_bytes) == (48 << 10, 2 << 20)


def test_a_name_that_stands_for_more_does_not_fit(tmp_path: Path) -> None:
    machine = machine_of(x86(V3), 1, tmp_path)
    assert fits(["64bit", "fast-gather", "avx2"], machine)
    assert not fits(["avx2", "avx512f"], machine)
    assert fits(["neon", "v8.2a", "dotprod"], machine_of(arm(PI5), 1, tmp_path))
    assert not fits(["neon", "i8mm"], machine_of(arm(PI5), 1, tmp_path))


@here
def test_the_name_that_llvm_knows_unless_something_is_hidden(tmp_path: Path) -> None:
    machine = host_machine(2)
    assert machine.features == machine_of(_this_cpu(), 2).features
    if not _this_cpu().x86:
        return
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nflags : {BASE}\n")
    hidden = host_machine(2, tmp_path)
    assert (hidden.cpu, hidden.features) == ("x86-64", {"sse", "sse2"})


def test_the_text_of_a_machine_is_the_same_in_every_process(tmp_path: Path) -> None:
    machine = machine_of(x86(f"{V4} avx512_vnni"), 2, tmp_path)
    text = machine_text(machine)
    assert json.loads(text)["features"] == sorted(machine.features)
    program = (
        "from greencc.core.machine import parse_cpuinfo\n"
        "from greencc.targets._tvm.host import machine_of, machine_text\n"
        "from pathlib import Path\n"
        f"cpu = parse_cpuinfo('processor : 0\\nmodel name : Some CPU\\nflags : {V4} avx512_vnni\\n')\n"
        f"print(machine_text(machine_of(cpu, 2, Path({str(tmp_path)!r}))))"
    )
    for seed in "12":
        found = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        )
        assert found.stdout.strip() == text


def _this_cpu() -> CpuInfo:
    from greencc.core.machine import read_cpuinfo

    return read_cpuinfo()
