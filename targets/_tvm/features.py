"""Instruction sets under LLVM's names and under those of Linux's `/proc/cpuinfo`.

Code is generated with the features of a named processor and those asked for; before it is loaded, this machine must
show all of them. Features that do not bring instructions that a compiler would pick by itself (tuning, system
registers, random numbers) are not in the table and not checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from greencc.core import machine
from greencc.core.errors import InputError
from greencc.core.machine import CpuInfo
from greencc.targets._tvm.link import architecture_of

_X86 = {
    "cmov": "cmov",
    "mmx": "mmx",
    "sse": "sse",
    "sse2": "sse2",
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "crc32": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "cx16": "cx16",
    "sahf": "lahf_lm",
    "movbe": "movbe",
    "prfchw": "3dnowprefetch",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "adx": "adx",
    "aes": "aes",
    "vaes": "vaes",
    "pclmul": "pclmulqdq",
    "vpclmulqdq": "vpclmulqdq",
    "gfni": "gfni",
    "sha": "sha_ni",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
    "f16c": "f16c",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vp2intersect": "avx512_vp2intersect",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}

# Without AES and SHA-2: only intrinsics of their own reach them, LLVM's Cortex-A53 and A72 imply them, and the
# Raspberry Pi 4 has them not.
_AARCH64 = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "sha3": "sha3",
    "crc": "crc32",
    "lse": "atomics",
    "lse2": "uscat",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "fp16fml": "asimdfhm",
    "jsconv": "jscvt",
    "complxnum": "fcma",
    "rcpc": "lrcpc",
    "rcpc-immo": "ilrcpc",
    "fptoint": "frint",
    "flagm": "flagm",
    "altnzcv": "flagm2",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}

_ARM = {
    "neon": "neon",
    "vfp2": "vfp",
    "vfp3": "vfpv3",
    "vfp4": "vfpv4",
    "hwdiv": "idivt",
    "hwdiv-arm": "idiva",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "crc": "crc32",
}

_TABLES = {"x86_64": _X86, "aarch64": _AARCH64, "arm": _ARM}


def features_of(cpu: CpuInfo) -> frozenset[str]:
    """The instruction sets of a CPU, by LLVM's names."""
    table = _X86 if cpu.x86 else _AARCH64 if cpu.arm64 else {}
    return frozenset(name for name, flag in table.items() if cpu.has(flag))


def needed_features(triple: str, asked: Iterable[str], implied: Iterable[str]) -> tuple[str, ...]:
    """What must be checked before code is loaded, sorted.

    Args:
        triple: LLVM's.
        asked: Features asked for by name.
        implied: All that LLVM uses, those of the named processor included.

    Raises:
        InputError: One that was asked for could not be checked.
    """
    table = _TABLES[architecture_of(triple)]
    for name in asked:
        if name not in table:
            raise InputError(
                f"the instruction set {name!r} cannot be checked for before code is loaded",
                hint=f"known: {', '.join(sorted(table))}",
            )
    return tuple(sorted(table.keys() & {*asked, *implied}))


def linux_flags(triple: str, features: Iterable[str]) -> list[tuple[str, str]]:
    """Instruction sets with Linux's names of them, sorted; those without one are left out."""
    table = _TABLES[architecture_of(triple)]
    return [(name, table[name]) for name in sorted(features) if name in table]


def this_cpu(root: Path = machine.ROOT) -> CpuInfo:
    """`/proc/cpuinfo`, and the architecture of the programs that run here."""
    import platform

    return replace(machine.read_cpuinfo(root), architecture=platform.machine())


def check_cpu(where: str, triple: str, features: Iterable[str], cpu: CpuInfo) -> None:
    """Refuse code that this machine cannot run.

    Raises:
        InputError: It is for another architecture, or uses instruction sets that are missing or not known.
    """
    architecture = architecture_of(triple)
    here = "x86_64" if cpu.x86 else "aarch64" if cpu.arm64 else cpu.architecture
    if here.startswith("arm") and here != "arm64":
        here = "arm"
    if here != architecture:
        raise InputError(
            f"{where} is compiled for {architecture}, this machine is {cpu.architecture}",
            hint="run it on such a machine, or compile for tvm-cpu here",
        )
    table = _TABLES[architecture]
    missing = [name for name in features if name not in table or not cpu.has(table[name])]
    if missing:
        raise InputError(
            f"{where} needs {', '.join(missing)}, which this processor ({cpu.model}) does not have",
            hint="compile it for this machine",
        )
