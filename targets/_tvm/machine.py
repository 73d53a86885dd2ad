"""What code is generated for: a processor with its instruction sets, this machine's or another's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Dot(Enum):
    """How four 8-bit products per lane are summed into INT32."""

    VNNI512 = "avx512vnni"
    """`vpdpbusd` on 512 bits: u8 x s8, exact."""
    VNNI256 = "avxvnni"
    """`vpdpbusd` on 256 bits: u8 x s8, exact."""
    MADDUBS = "avx2"
    """`vpmaddubsw`, `vpmaddwd`: u8 x s8 through saturating INT16 pairs, exact only with weights of 7 bits."""
    SDOT = "dotprod"
    """`sdot`: s8 x s8."""
    SMLAL = "neon"
    """`smull`, `smlal`, `sadalp`: s8 x s8 through INT16, which every aarch64 has."""
    PLAIN = "plain"
    """Widening multiplications that LLVM vectorises as it can: any processor."""


@dataclass(frozen=True)
class Machine:
    """A processor that code is generated for.

    Attributes:
        triple: LLVM's, e.g. ``x86_64-linux-gnu`` or ``aarch64-linux-gnu``.
        cpu: LLVM's name of it (``-mcpu``), e.g. ``znver4``, ``cortex-a76``, ``generic``.
        features: LLVM's names of the instruction sets that code may use, beyond the triple's baseline, e.g.
            ``avx512vnni``, ``dotprod``. What runs the code is checked for them first.
        cores: Physical cores to expect: how finely work is split.
        l1_bytes: Level-1 data cache of a core.
        l2_bytes: Level-2 cache of a core.
    """

    triple: str
    cpu: str
    features: frozenset[str]
    cores: int = 1
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10

    @property
    def x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def aarch64(self) -> bool:
        return self.triple.startswith("aarch64")

    @property
    def vector_bits(self) -> int:
        """Width of the vectors that kernels use."""
        if self.x86:
            return 512 if "avx512f" in self.features else 256 if "avx2" in self.features else 128
        return 128

    @property
    def lanes(self) -> int:
        """Numbers of 32 bits in a vector."""
        return self.vector_bits // 32

    @property
    def registers(self) -> int:
        """Vector registers."""
        if self.x86:
            return 32 if "avx512f" in self.features else 16
        return 32 if self.aarch64 else 16

    @property
    def dot(self) -> Dot:
        """How INT8 products are summed."""
        if self.x86:
            if {"avx512vnni", "avx512vl"} <= self.features:
                return Dot.VNNI512
            if "avxvnni" in self.features:
                return Dot.VNNI256
            return Dot.MADDUBS if "avx2" in self.features else Dot.PLAIN
        if self.aarch64:
            return Dot.SDOT if "dotprod" in self.features else Dot.SMLAL
        return Dot.PLAIN

    @property
    def activation(self) -> str:
        """Type of quantized activations that the integer instructions take: ``uint8`` or ``int8``."""
        return "uint8" if self.dot in (Dot.VNNI512, Dot.VNNI256, Dot.MADDUBS) else "int8"
