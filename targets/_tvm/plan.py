"""A static plan: which kernels run in which order, on which tensors, and where those lie.

`planning` makes it from a Relax function; `runtime/plan.c` reads the bytes that `encode` gives. They are little endian:
a header, then sections of fixed-size records (see `runtime/internal.h`, which has the same records in the same order).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from greencc.targets._tvm.dims import Dim, is_constant

MAGIC = 0x4C504347
VERSION = 2
COPY = 0xFFFFFFFF
ALIGNMENT = 64


class Place(IntEnum):
    """Where a tensor lies."""

    INPUT = 0
    OUTPUT = 1
    CONSTANT = 2
    STORAGE = 3


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor, or a view of one: views have the same place and another shape.

    Attributes:
        dtype: TVM's name.
        code: DLPack's type: code, bits, lanes.
        shape: One expression per axis.
        place: Where it lies.
        index: Number of the input, output, storage; 0 for constants.
        offset: Bytes from the start of the weights, of a constant.
    """

    dtype: str
    code: tuple[int, int, int]
    shape: tuple[Dim, ...]
    place: Place
    index: int
    offset: int = 0


@dataclass(frozen=True)
class Kernel:
    """A function that steps call.

    Attributes:
        symbol: Its name.
        pattern: One letter per argument: ``r`` a tensor that it reads, ``i`` an integer, ``w`` a tensor that it writes.
        alone: One thread computes it where the last tensor's first dimension is at most this.
    """

    symbol: str
    pattern: str
    alone: int = 0


@dataclass(frozen=True)
class PlannedStep:
    """One call.

    Attributes:
        kernel: Number of the kernel, None: copies its first tensor to its second.
        args: Numbers of tensors, and values of integers.
    """

    kernel: int | None
    args: tuple[int | Dim, ...]


@dataclass(frozen=True)
class Plan:
    """Everything the executor needs but the kernels' code and the weights.

    Attributes:
        symbols: Names of the symbolic dimensions.
        kernels: What the steps call; the library has a table in this order.
        tensors: All of them, by number.
        steps: In order.
        inputs: Number of the tensor of each input, with its name.
        outputs: Likewise.
        storages: Bytes of each buffer.
        weights_bytes: Size of the weights.
        part: The most samples that run at once; 0: all of a batch.
    """

    symbols: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    tensors: tuple[PlannedTensor, ...]
    steps: tuple[PlannedStep, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    storages: tuple[Dim, ...]
    weights_bytes: int
    part: int = 0

    def symbol(self, step: PlannedStep) -> str:
        """Name of what a step calls."""
        return "copy" if step.kernel is None else self.kernels[step.kernel].symbol

    def encode(self) -> bytes:
        """The bytes that the executor reads."""
        expressions, text = _Expressions(), _Text()
        dims: list[int] = []
        tensors = b""
        for tensor in self.tensors:
            code, bits, lanes = tensor.code
            first = len(dims)
            dims += [expressions.index(dim) for dim in tensor.shape]
            tensors += struct.pack(
                "<QIIIIBBHI",
                tensor.offset,
                tensor.place,
                tensor.index,
                first,
                len(tensor.shape),
                code,
                bits,
                lanes,
                0,
            )
        args: list[int] = []
        steps = b""
        for step in self.steps:
            given = [arg if isinstance(arg, int) else expressions.index(arg) for arg in step.args]
            kernel = COPY if step.kernel is None else step.kernel
            steps += struct.pack("<4I", kernel, len(args), len(given), text.offset(self.symbol(step)))
            args += given
        inputs = _words([word for name, tensor in self.inputs for word in (tensor, text.offset(name))])
        outputs = _words([word for name, tensor in self.outputs for word in (tensor, text.offset(name))])
        storages = [expressions.index(size) for size in self.storages]
        header = struct.pack(
            "<IIQ14I",
            MAGIC,
            VERSION,
            self.weights_bytes,
            len(self.symbols),
            len(self.kernels),
            len(expressions.words),
            len(self.tensors),
            len(expressions.table),
            len(self.steps),
            len(self.inputs),
            len(self.outputs),
            len(args),
            len(dims),
            len(storages),
            len(text.data),
            self.part,
            0,
        )
        words = struct.pack(f"<{len(expressions.words)}q", *expressions.words)
        table = _words([word for entry in expressions.table for word in entry])
        sections = [header, words, tensors, table, steps, inputs, outputs, _words(args), _words(dims)]
        return b"".join([*sections, _words(storages), bytes(text.data)])


class _Expressions:
    """Each expression once."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.table: list[tuple[int, int]] = []
        self._known: dict[Dim, int] = {}

    def index(self, dim: Dim) -> int:
        if dim not in self._known:
            self._known[dim] = len(self.table)
            self.table.append((len(self.words), len(dim)))
            self.words += [int(word) for word in dim]
        return self._known[dim]


class _Text:
    """Each name once, closed by a NUL."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._known = {"": 0}

    def offset(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = len(self.data)
            self.data += name.replace("\0", "?").encode() + b"\0"
        return self._known[name]


def _words(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def fixed_shape(tensor: PlannedTensor) -> tuple[int | None, ...]:
    """Sizes of the axes, None for those that follow from the inputs."""
    return tuple(dim[1] if is_constant(dim) else None for dim in tensor.shape)
