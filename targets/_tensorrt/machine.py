"""What a TensorRT version on a GPU can do, as facts: the emitter, the linter and the targets read them, never a name.

Sources: NVIDIA TensorRT documentation, "Support Matrix" (precisions by compute capability), release notes of 10.12 and
11 (weak typing deprecated, then gone), "Working with Quantized Types"; NVIDIA JetPack release notes (versions).

Releases by compute capability: release notes of 10.5 (7.0 removed) and 10.8 (Blackwell: GeForce 50, B200);
NVIDIA/TensorRT issues 2727 (8.9: not with 8.4, with 8.5.1), 4317 (12.0: not with 10.7) and 3027 (a Jetson stays with
the TensorRT of its JetPack: Nano and TX2 end with JetPack 4.6 and 8.2, Xavier with JetPack 5.1 and 8.5); "DGX GB300
release notes" (10.3: since 10.13). 9.0 came with 8.5, 8.7 with JetPack 5 (8.4), 11.0 with JetPack 7 (10.13). 12.1
is taken to have come with CUDA 13, whose first TensorRT is 10.13; so is 8.8, which is in no table of TensorRT's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import total_ordering

from greencc.core.errors import UsageError


@total_ordering
@dataclass(frozen=True)
class TensorRtVersion:
    """Major, minor and patch; as text ``10.3`` or ``8.2.1``."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> TensorRtVersion:
        """From ``10.3``, ``8.2.1`` or ``10.3.0.30``.

        Raises:
            UsageError: It is no version, or one that is older or newer than is known.
        """
        match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:\.\d+)*", text.strip())
        if match is None:
            raise UsageError(
                f"{text!r} is not a TensorRT version", hint="write one such as 8.6, 10.3 or 11.4"
            )
        found = cls(int(match[1]), int(match[2] or 0), int(match[3] or 0))
        if not OLDEST <= found < BEYOND:
            raise UsageError(
                f"TensorRT {found} is not known",
                hint=f"versions from {OLDEST} up to {BEYOND.major - 1}.x are",
            )
        return found

    @property
    def release(self) -> str:
        """Major and minor version: what tells releases apart that build differently."""
        return f"{self.major}.{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f".{self.patch}" if self.patch else "")

    def __lt__(self, other: TensorRtVersion) -> bool:
        return (self.major, self.minor, self.patch) < (other.major, other.minor, other.patch)


OLDEST, BEYOND = TensorRtVersion(8, 2), TensorRtVersion(12, 0)
NEWEST = TensorRtVersion(11, 4)
"""Taken where a spec names no version."""
RTX_LIKE = TensorRtVersion(10, 15)
"""The TensorRT that TensorRT-RTX 1.x is like."""
_STRONG = TensorRtVersion(10, 12)
_ONLY_STRONG = TensorRtVersion(11, 0)
_INTEGER_WEIGHTS = TensorRtVersion(10, 0)


class Typing(Enum):
    """Where precision lives: in builder flags that allow it (weak), or in the graph's own types (strong)."""

    WEAK = "weak"
    STRONG = "strong"


@dataclass(frozen=True)
class Architecture:
    """A GPU generation by its compute capability, such as 87 for 8.7.

    Attributes:
        sm: Compute capability, without the point.
        name: For people.
        int8: It has INT8 products worth using.
        float16: It computes in FP16 faster than in FP32.
        bfloat16: Likewise.
        float8: Likewise FP8 (E4M3).
        sparsity: 2:4 structured sparsity.
        since: The first TensorRT that builds for it, as far as older ones are known.
        last: The last release that does, such as 10.4 for any 10.4.x; None: the newest does.
    """

    sm: int
    name: str
    int8: bool
    float16: bool
    bfloat16: bool = False
    float8: bool = False
    sparsity: bool = False
    since: TensorRtVersion = OLDEST
    last: TensorRtVersion | None = None

    @property
    def capability(self) -> str:
        """With its point, such as ``8.7``."""
        return f"{self.sm // 10}.{self.sm % 10}"

    @property
    def newest(self) -> TensorRtVersion:
        """The newest TensorRT that builds for it."""
        return NEWEST if self.last is None else self.last

    @property
    def span(self) -> str:
        """The releases that build for it, for messages."""
        if self.since.release == self.newest.release:
            return f"TensorRT {self.since} does"
        return f"TensorRT {self.since} to {self.newest} do"

    def refusal(self, version: TensorRtVersion) -> str | None:
        """Why a TensorRT builds nothing for it; None: it does."""
        named = f"compute capability {self.capability} ({self.name})"
        if version < self.since:
            return f"TensorRT {version} does not build for {named}, which came with {self.since}"
        if self.last is not None and (version.major, version.minor) > (self.last.major, self.last.minor):
            return f"TensorRT {version} does not build for {named}, which ended with {self.last}"
        return None


_HOPPER_RELEASE, _ORIN_RELEASE = TensorRtVersion(8, 5), TensorRtVersion(8, 4)
_BLACKWELL_RELEASE, _CUDA_13_RELEASE = TensorRtVersion(10, 8), TensorRtVersion(10, 13)


def _ampere(sm: int, name: str, since: TensorRtVersion = OLDEST, *, float8: bool = False) -> Architecture:
    return Architecture(
        sm, name, int8=True, float16=True, bfloat16=True, float8=float8, sparsity=True, since=since
    )


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(53, "Maxwell (Tegra X1)", int8=False, float16=True, last=TensorRtVersion(8, 2)),
    Architecture(62, "Pascal (Tegra X2)", int8=False, float16=True, last=TensorRtVersion(8, 2)),
    Architecture(70, "Volta", int8=True, float16=True, last=TensorRtVersion(10, 4)),
    Architecture(72, "Volta (Xavier)", int8=True, float16=True, last=TensorRtVersion(8, 5)),
    Architecture(75, "Turing", int8=True, float16=True),
    _ampere(80, "Ampere"),
    _ampere(86, "Ampere"),
    _ampere(87, "Ampere (Orin)", _ORIN_RELEASE),
    _ampere(88, "Ampere", _CUDA_13_RELEASE),
    _ampere(89, "Ada", _HOPPER_RELEASE, float8=True),
    _ampere(90, "Hopper", _HOPPER_RELEASE, float8=True),
    _ampere(100, "Blackwell", _BLACKWELL_RELEASE, float8=True),
    _ampere(103, "Blackwell (B300)", _CUDA_13_RELEASE, float8=True),
    _ampere(110, "Blackwell (Thor)", _CUDA_13_RELEASE, float8=True),
    _ampere(120, "Blackwell", _BLACKWELL_RELEASE, float8=True),
    _ampere(121, "Blackwell (GB10)", _CUDA_13_RELEASE, float8=True),
)


def architecture(sm: int) -> Architecture:
    """The generation of a compute capability such as 87.

    Raises:
        UsageError: It is not known.
    """
    for each in ARCHITECTURES:
        if each.sm == sm:
            return each
    known = ", ".join(str(each.sm) for each in ARCHITECTURES)
    raise UsageError(f"compute capability {sm} is not known", hint=f"known: {known}")


@dataclass(frozen=True)
class TensorRtMachine:
    """A TensorRT version on a GPU: what is emitted for, and checked against.

    Attributes:
        version: Of TensorRT.
        gpu: Its generation.
        dla: Number of deep-learning accelerators that graphs may be built for; 0: none, or not by this version.
        memory_bytes: Of the device, which CPU and GPU of a Jetson share; None: not known.
        rtx: TensorRT-RTX, whose version numbers are its own; `version` is then the TensorRT it is like.
    """

    version: TensorRtVersion
    gpu: Architecture
    dla: int = 0
    memory_bytes: int | None = None
    rtx: bool = False

    @property
    def typing(self) -> Typing:
        """How its graphs are typed: weak where builder flags decide on precision."""
        return Typing.STRONG if self.rtx or self.version >= _STRONG else Typing.WEAK

    @property
    def only_strong(self) -> bool:
        """It has no weak typing any more: no precision flags, no calibrator."""
        return self.rtx or self.version >= _ONLY_STRONG

    @property
    def min_opset(self) -> int:
        """The oldest opset of its quantized graphs: FP16 scales came with opset 19."""
        return 19 if self.typing is Typing.STRONG else 13

    @property
    def max_opset(self) -> int:
        """The newest opset that is emitted for it.

        Weakly typed graphs stay at 17, which every parser since 8.5 reads; 8.2 reads 13 (onnx-tensorrt, release notes).
        """
        if self.typing is Typing.STRONG:
            return 20
        return 13 if self.version < TensorRtVersion(8, 5) else 17

    @property
    def integer_weights(self) -> bool:
        """Quantized weights may be stored as INT8 before a DequantizeLinear.

        The documentation of 10 and 11 takes either ("Explicit Quantization": "a high-precision data type ... or a
        low-precision quantized type"). That of 8 asks for FP32 weights, and 8.0, 8.2 and 8.4 are known to refuse a
        constant of INT8, "invalid weights type of Int8" (megvii-research/Sparsebit issue 16, microsoft/onnxruntime
        issue 11535). 9, of which nothing is known, is treated like 8: every version reads float weights behind a pair.
        """
        return self.rtx or self.version >= _INTEGER_WEIGHTS

    @property
    def bfloat16(self) -> bool:
        """BF16 graphs, and the builder flag that allows it, since 9.0, where the GPU has it."""
        return self.gpu.bfloat16 and (self.rtx or self.version >= TensorRtVersion(9, 0))

    @property
    def float8(self) -> bool:
        """FP8 Q/DQ: parsed since 8.6 (opset 19), where the GPU has it."""
        return self.gpu.float8 and self.version >= TensorRtVersion(9, 0)
