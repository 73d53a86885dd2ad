"""The processor of this computer, as what code is generated for, and whether it can run code that exists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from greencc.core import machine
from greencc.core.errors import UnavailableError
from greencc.core.machine import CpuInfo
from greencc.targets._tvm.machine import Machine

# Instruction sets that LLVM uses for ordinary code and our kernels for theirs, by LLVM's name, with what Linux calls
# them in /proc/cpuinfo. Left out: those that only intrinsics of their own reach (AES, SHA, RDRAND).
_X86_FLAGS: Mapping[str, str] = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "cx16": "cx16",
    "sahf": "lahf_lm",
    "lzcnt": "abm",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "adx": "adx",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
    "f16c": "f16c",
    "gfni": "gfni",
    "pclmul": "pclmulqdq",
    "vpclmulqdq": "vpclmulqdq",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
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
}
_ARM_FLAGS: Mapping[str, str] = {
    "neon": "asimd",
    "crc": "crc32",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "complxnum": "fcma",
    "jsconv": "jscvt",
    "rcpc": "lrcpc",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
# The levels of the x86-64 psABI, for processors that LLVM takes for another one: hypervisors hide instruction sets.
_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "x86-64-v4",
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi", "bmi2"}),
    ),
    ("x86-64-v3", frozenset({"avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe"})),
    ("x86-64-v2", frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "sahf"})),
)
_L1_BYTES = 32 << 10
_L2_BYTES = 512 << 10


def features_of(cpu: CpuInfo) -> frozenset[str]:
    """The instruction sets that code for a CPU may use, by LLVM's names."""
    flags = _X86_FLAGS if cpu.x86 else _ARM_FLAGS if cpu.arm64 else {}
    return frozenset(name for name, flag in flags.items() if flag in cpu.features)


def machine_of(cpu: CpuInfo, cores: int, root: Path = machine.ROOT) -> Machine:
    """The CPU as a `Machine`, under a name that stands for no more than what it has: LLVM is not asked.

    Args:
        cpu: Facts about it.
        cores: How many of its cores code will run on.
        root: Of the file tree that the sizes of caches are read from.
    """
    features = features_of(cpu)
    sizes = {cache.level: cache.bytes for cache in machine.data_caches(machine.allowed_cpus(), root)}
    architecture = "x86_64" if cpu.x86 else "aarch64" if cpu.arm64 else cpu.architecture
    return Machine(
        triple=f"{architecture}-linux-gnu",
        cpu=_level(features) if cpu.x86 else "generic",
        features=features,
        cores=cores,
        l1_bytes=sizes.get(1, _L1_BYTES),
        l2_bytes=sizes.get(2, _L2_BYTES),
    )


def host_machine(threads: int, root: Path = machine.ROOT) -> Machine:
    """This computer, under the name that LLVM has for its processor where that fits.

    LLVM goes by family and model, and may take a processor for one with instruction sets that a hypervisor hides. Then,
    and where it knows none, the name is a level of the architecture.

    Args:
        threads: How many cores code will run on.
        root: Of the file tree that facts are read from.

    Raises:
        UnavailableError: TVM cannot be imported.
    """
    from greencc.targets._tvm.versions import load

    load()
    from tvm.target import Target, codegen

    cpu = machine.read_cpuinfo(root)
    plain = machine_of(cpu, threads, root)
    name = str(codegen.llvm_get_system_cpu())
    if not codegen.llvm_is_valid_cpu(name, plain.triple):
        return plain
    target = Target({"kind": "llvm", "mtriple": plain.triple, "mcpu": name})
    return replace(plain, cpu=name) if fits(codegen.llvm_get_cpu_features(target), plain) else plain


def machine_text(machine: Machine) -> str:
    """All that is known of a processor, in a fixed order: equal for equal ones, in every process."""
    return json.dumps(asdict(machine) | {"features": sorted(machine.features)}, sort_keys=True)


def fits(implied: Iterable[str], plain: Machine) -> bool:
    """Whether a processor has every instruction set that a name of LLVM stands for.

    Args:
        implied: What the name stands for; names of other things than instruction sets are passed over.
        plain: The processor.
    """
    known = _X86_FLAGS if plain.x86 else _ARM_FLAGS
    return plain.features.issuperset(name for name in map(str, implied) if name in known)


def check_runs(architecture: str, features: Iterable[str], cpu: CpuInfo, name: str) -> None:
    """Make sure that code runs on a CPU, before it is loaded: a missing instruction would end the process.

    Args:
        architecture: What the code is for: the triple, or its first part.
        features: The instruction sets it may use, by LLVM's names.
        cpu: What it would run on.
        name: What messages call the code.

    Raises:
        UnavailableError: It does not.
    """
    wanted = architecture.partition("-")[0]
    here = "x86_64" if cpu.x86 else "aarch64" if cpu.arm64 else cpu.architecture
    if wanted != here:
        raise UnavailableError(
            f"{name} holds code for {wanted}, and this computer is {here}",
            hint="compile the model for this computer",
        )
    if absent := sorted(set(features) - features_of(cpu)):
        raise UnavailableError(
            f"{name} holds code that uses {', '.join(absent)}, which this CPU ({cpu.model}) does not have",
            hint="compile the model on this computer",
        )


def _level(features: frozenset[str]) -> str:
    held: list[str] = []
    for name, needed in reversed(_LEVELS):
        if not needed <= features:
            break
        held.append(name)
    return held[-1] if held else "x86-64"
