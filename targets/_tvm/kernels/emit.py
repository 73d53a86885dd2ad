"""Small words for TIR: constants, vectors, loops, and the float operations that processors have cheaply.

Expressions are TVM's; a vector is one expression of several lanes. Indices are INT64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from greencc.targets._tvm.machine import Machine

Expr = Any
"""An expression, a variable or a buffer of TVM."""
Index = Any
"""An int or an INT64 expression."""

ALONE = "greencc.alone"
"""Attribute of a function: one thread had better compute an output of up to so many samples (or rows)."""

_WORTH = 1 << 14
"""Operations of vectors in the time that it takes to wake threads."""

# 1.5 * 2^23: adding it leaves the nearest integer, halves to even, in the low bits of a float32 below 2^22.
_ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000
"""Those bits of 0."""


class Emit:
    """Writes into the IRBuilder that is open.

    Attributes:
        machine: What is written for.
        T: TVM's IRBuilder functions.
        llvm_major: Version of the LLVM inside TVM.
    """

    def __init__(self, machine: Machine) -> None:
        from tvm import tirx
        from tvm.script.ir_builder import tirx as script
        from tvm.target import codegen

        self.machine = machine
        self.T = script
        self.llvm_major = int(codegen.llvm_version_major())
        self._tirx = tirx
        self._alone = 0

    @contextmanager
    def function(self, name: str) -> Iterator[None]:
        """The function that is open; its arguments come first."""
        with self.T.prim_func(s_tir=True):
            self.T.func_name(name)
            yield
            attributes = {"tirx.noalias": True, "tirx.is_scheduled": True}
            self.T.func_attr(attributes | ({ALONE: self._alone} if self._alone else {}))

    # Values

    def const(self, dtype: str, value: float | int) -> Expr:
        return self._tirx.const(value, dtype)

    def index(self, value: Index) -> Expr:
        """An INT64 expression."""
        return self.const("int64", value) if isinstance(value, int) else value

    def splat(self, dtype: str, value: float | int, lanes: int) -> Expr:
        """A constant in every lane."""
        return self.broadcast(self.const(dtype, value), lanes)

    def broadcast(self, scalar: Expr, lanes: int) -> Expr:
        return scalar if lanes == 1 else self.T.broadcast(scalar, lanes)

    def lanes(self, value: Expr) -> int:
        return int(value.expr_ty().dtype.lanes)

    def bind(self, value: Expr) -> Expr:
        """A value computed here, once: an expression that is used twice would be written twice.

        In memory that LLVM makes a register of: TVM would put a variable's value back in the place of the variable.
        """
        dtype, lanes = value.expr_ty().dtype, self.lanes(value)
        held = self.registers(str(dtype).partition("x")[0], lanes)
        self.store(held, [0], value, lanes)
        return self.load(held, [0], lanes)

    def cast(self, value: Expr, dtype: str) -> Expr:
        """Converts every lane."""
        return self.T.cast(value, typed(dtype, self.lanes(value)))

    def bits(self, value: Expr, dtype: str, lanes: int) -> Expr:
        """The same bits as another vector."""
        return self.T.reinterpret(typed(dtype, lanes), value)

    def llvm(self, dtype: str, lanes: int, name: str, *arguments: Expr) -> Expr:
        """A call of an LLVM intrinsic without side effects."""
        return self.T.call_llvm_pure_intrin(typed(dtype, lanes), name, *arguments)

    def shuffled(self, vectors: Sequence[Expr], order: Iterable[int]) -> Expr:
        """The elements of some vectors, numbered one after the other, in this order."""
        return self._tirx.Shuffle(list(vectors), [self.const("int32", index) for index in order])

    def part(self, vector: Expr, first: int, size: int) -> Expr:
        """Neighbouring elements of a vector."""
        return vector if size == self.lanes(vector) else self.shuffled([vector], range(first, first + size))

    # Memory

    def argument(self, name: str, shape: Sequence[Index], dtype: str) -> Expr:
        """The next argument of the function: a buffer."""
        handle = self.T.arg(f"{name}_handle", self.T.handle())
        return self.T.match_buffer(handle, tuple(shape), dtype)

    def ramp(self, base: Index, lanes: int) -> Expr:
        """Indices of neighbours."""
        base = self.index(base)
        return base if lanes == 1 else self.T.ramp(base, self.const("int64", 1), lanes)

    def load(self, buffer: Expr, at: Sequence[Index], lanes: int) -> Expr:
        """`lanes` neighbours; `at` may run over the end of the last dimension into the next row."""
        *outer, last = at
        return buffer[(*(self.index(each) for each in outer), self.ramp(last, lanes))]

    def store(self, buffer: Expr, at: Sequence[Index], value: Expr, lanes: int) -> None:
        *outer, last = at
        self.T.buffer_store(buffer, value, [*(self.index(each) for each in outer), self.ramp(last, lanes)])

    def scratch(self, dtype: str, size: int) -> Expr:
        """Memory for the scope that is open."""
        return self.T.alloc_buffer((size,), dtype, scope="global")

    def registers(self, dtype: str, size: int) -> Expr:
        """Values that LLVM keeps in registers: only constant indices may be used."""
        return self.T.alloc_buffer((size,), dtype, scope="local")

    # Control

    @contextmanager
    def loop(self, stop: Index, *, start: Index = 0, parallel: bool = False) -> Iterator[Expr]:
        """A loop variable from `start` to below `stop`; one serial iteration is written without a loop.

        On a single core, nothing is parallel.
        """
        parallel = parallel and self.machine.cores > 1
        if stop == 1 and start == 0 and not parallel:
            yield self.const("int64", 0)
            return
        begin, end = self.index(start), self.index(stop)
        with (self.T.parallel if parallel else self.T.serial)(begin, end) as variable:
            yield variable

    def tasks(
        self, size: Expr, parts: int, work: int, body: Callable[[Expr], None], *, band: int = 1
    ) -> None:
        """A parallel loop; where threads would cost more than they save, whoever calls is told to use one: `ALONE`.

        Args:
            size: The symbolic dimension of the output, its first.
            parts: Tasks for every `band` of it.
            work: Operations of vectors that a task takes.
            body: Writes a task.
            band: See `parts`.
        """
        if self.machine.cores > 1:
            self._alone = _WORTH // max(work, 1) // parts * band
        bands = size if band == 1 else (size + (band - 1)) // band
        with self.loop(bands * parts, parallel=True) as task:
            body(task)

    def share(self, count: int, chunk: Index, chunks: int) -> AbstractContextManager[Expr]:
        """The loop over the part of `count` that one of `chunks` tasks has."""
        if chunks == 1:
            return self.loop(count)
        return self.loop((chunk + 1) * count // chunks, start=chunk * count // chunks)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        with self.T.If(condition), self.T.Then():
            yield

    # Float operations

    def maximum(self, left: Expr, right: Expr) -> Expr:
        """The greater one; that of two constants and a NaN is `right` on x86."""
        return self._extreme("maxnum", self.T.max, left, right)

    def minimum(self, left: Expr, right: Expr) -> Expr:
        return self._extreme("minnum", self.T.min, left, right)

    def _extreme(self, name: str, plain: Any, left: Expr, right: Expr) -> Expr:
        lanes = self.lanes(left)
        if self.machine.aarch64 and lanes > 1:
            return self.llvm("float32", lanes, f"llvm.{name}", left, right)
        return plain(left, right)

    def clip(self, value: Expr, low: float, high: float) -> Expr:
        """min(max(value, low), high), and NaN of NaN. Infinite bounds cost nothing.

        Processors keep a NaN where it is the second operand (x86) or always (llvm.maximum on AArch64).
        """
        lanes = self.lanes(value)
        if low != -float("inf"):
            value = self._extreme("maximum", self.T.max, self.splat("float32", low, lanes), value)
        if high != float("inf"):
            value = self._extreme("minimum", self.T.min, self.splat("float32", high, lanes), value)
        return value

    def rounded(self, value: Expr) -> Expr:
        """A float32 as it is when rounded by itself: LLVM may not contract it with an addition to one operation."""
        return self.llvm("float32", self.lanes(value), "llvm.arithmetic.fence", value)

    def nearest(self, value: Expr) -> Expr:
        """The nearest INT32, halves to even, of float32 below 2^22 in magnitude (and no bare product: see `rounded`).

        In the default rounding mode the sum with 1.5 * 2^23 is nearbyint, in one operation on every processor.
        """
        return self.rounding(value, self.splat("int32", -ROUNDER_BITS, self.lanes(value)))

    def rounding(self, value: Expr, plus: Expr) -> Expr:
        """`nearest(value) + plus` for a `plus` that `ROUNDER_BITS` was subtracted from."""
        lanes = self.lanes(value)
        return self.bits(value + self.splat("float32", _ROUNDER, lanes), "int32", lanes) + plus


def typed(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
