"""Sizes as expressions in the symbolic dimensions: postfix code that the executor evaluates when shapes change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import reduce
from typing import Any


class Op(IntEnum):
    """Operations; the first two are followed by a number in the code. `runtime/internal.h` has the same list."""

    CONST = 0
    SYMBOL = 1
    ADD = 2
    SUB = 3
    MUL = 4
    FLOORDIV = 5
    FLOORMOD = 6
    MAX = 7
    MIN = 8
    DIV = 9
    MOD = 10


MAX_DEPTH = 32
"""Values that an evaluation may hold at once."""

Dim = tuple[int, ...]
"""An expression in postfix code."""

_OPS = {
    "Add": Op.ADD,
    "Sub": Op.SUB,
    "Mul": Op.MUL,
    "FloorDiv": Op.FLOORDIV,
    "FloorMod": Op.FLOORMOD,
    "Max": Op.MAX,
    "Min": Op.MIN,
    "Div": Op.DIV,
    "Mod": Op.MOD,
}

_APPLY: dict[int, Callable[[int, int], int]] = {
    Op.ADD: lambda a, b: a + b,
    Op.SUB: lambda a, b: a - b,
    Op.MUL: lambda a, b: a * b,
    Op.FLOORDIV: lambda a, b: a // b,
    Op.FLOORMOD: lambda a, b: a % b,
    Op.MAX: max,
    Op.MIN: min,
    Op.DIV: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    Op.MOD: lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
}


def constant(value: int) -> Dim:
    """A fixed size."""
    return (Op.CONST, value)


def symbol(index: int) -> Dim:
    """A symbolic dimension."""
    return (Op.SYMBOL, index)


def apply(op: Op, a: Dim, b: Dim) -> Dim:
    """`a op b`, computed at once where both are fixed."""
    divides = op in (Op.FLOORDIV, Op.FLOORMOD, Op.DIV, Op.MOD)
    if is_constant(a) and is_constant(b) and not (divides and b[1] == 0):
        return constant(_APPLY[op](a[1], b[1]))
    if op is Op.MUL and constant(1) in (a, b):
        return a if b == constant(1) else b
    if op is Op.MAX and a == b:
        return a
    return (*a, *b, op)


def product(dims: Iterable[Dim], factor: int = 1) -> Dim:
    """The product of all, fixed ones first, times `factor`."""
    dims = list(dims)
    fixed = reduce(lambda size, dim: size * dim[1], filter(is_constant, dims), factor)
    symbolic = sorted(dim for dim in dims if not is_constant(dim))
    return reduce(lambda a, b: apply(Op.MUL, a, b), symbolic, constant(fixed))


def is_constant(dim: Dim) -> bool:
    """True for a fixed size."""
    return len(dim) == 2 and dim[0] == Op.CONST


def is_symbol(dim: Dim) -> bool:
    """True for a symbolic dimension by itself."""
    return len(dim) == 2 and dim[0] == Op.SYMBOL


def evaluate(dim: Dim, symbols: Sequence[int]) -> int:
    """The value for these sizes of the symbolic dimensions."""
    stack: list[int] = []
    words = iter(dim)
    for word in words:
        if word == Op.CONST:
            stack.append(next(words))
        elif word == Op.SYMBOL:
            stack.append(symbols[next(words)])
        else:
            b = stack.pop()
            stack.append(_APPLY[word](stack.pop(), b))
    return stack[0]


def symbols_of(dim: Dim) -> frozenset[int]:
    """Which symbolic dimensions take part."""
    found: set[int] = set()
    words = iter(dim)
    for word in words:
        if word in (Op.CONST, Op.SYMBOL):
            value = next(words)
            if word == Op.SYMBOL:
                found.add(value)
    return frozenset(found)


def depth(dim: Dim) -> int:
    """Values that the evaluation holds at once."""
    most = now = 0
    words = iter(dim)
    for word in words:
        if word in (Op.CONST, Op.SYMBOL):
            next(words)
            now += 1
            most = max(most, now)
        else:
            now -= 1
    return most


def from_tvm(expr: Any, index_of: Callable[[Any], int]) -> Dim:
    """The code of a TVM expression.

    Args:
        expr: Of integers.
        index_of: The number of a variable.

    Raises:
        ValueError: It has an operation that plans do not have, or is too deep.
    """
    dim = _from_tvm(expr, index_of)
    if depth(dim) > MAX_DEPTH:
        raise ValueError(f"the size {expr} is too deep an expression")
    return dim


def _from_tvm(expr: Any, index_of: Callable[[Any], int]) -> Dim:
    kind = type(expr).__name__
    if kind == "int":
        return constant(expr)
    if kind == "IntImm":
        return constant(int(expr.value))
    if kind == "Var":
        return symbol(index_of(expr))
    if kind == "Cast":
        return _from_tvm(expr.value, index_of)
    if kind in _OPS:
        return apply(_OPS[kind], _from_tvm(expr.a, index_of), _from_tvm(expr.b, index_of))
    raise ValueError(f"the size {expr} cannot be computed from the inputs' shapes")
