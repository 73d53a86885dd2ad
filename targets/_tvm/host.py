"""The processor of this computer, as what code is generated for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from greencc.core import machine
from greencc.core.machine import CpuInfo
from greencc.targets._tvm.features import features_of, needed_features
from greencc.targets._tvm.machine import Machine

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
    return plain.features.issuperset(needed_features(plain.triple, (), map(str, implied)))


def _level(features: frozenset[str]) -> str:
    held: list[str] = []
    for name, needed in reversed(_LEVELS):
        if not needed <= features:
            break
        held.append(name)
    return held[-1] if held else "x86-64"
