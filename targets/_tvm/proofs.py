"""What is certain of sizes that are expressions of free ones. Sizes of inputs are never negative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# More than any axis has.
_LARGEST = 1 << 40


def variables(size: Any) -> list[Any]:
    """What a size is computed from."""
    import tvm_ffi
    from tvm.tirx import Var

    found: list[Any] = []
    if not isinstance(size, int):
        tvm_ffi.structural_walk(size, (Var, found.append))
    return found


def fixed(size: Any) -> int | None:
    """The number that a size always is."""
    if isinstance(size, int):
        return size
    value = getattr(size, "value", None)
    return value if isinstance(value, int) else None


def equal(first: Any, second: Any) -> bool:
    """Both are the same, whatever the inputs' sizes."""
    if fixed(first) is not None and fixed(second) is not None:
        return fixed(first) == fixed(second)
    return bool(_analyzer(first, second).can_prove_equal(_expression(first), _expression(second)))


def equal_shapes(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """As many axes, and each `equal`."""
    return len(first) == len(second) and all(map(equal, first, second))


def at_most(first: Any, second: Any) -> bool:
    """The first is never the larger one."""
    if fixed(first) is not None and fixed(second) is not None:
        return (fixed(first) or 0) <= (fixed(second) or 0)
    if equal(first, second):
        return True
    return bool(_analyzer(first, second).can_prove(_expression(first) <= _expression(second)))


def never_negative(size: Any) -> bool:
    """It is 0 or more."""
    return at_most(0, size)


def _expression(size: Any) -> Any:
    from tvm.tirx import IntImm

    return IntImm("int64", size) if isinstance(size, int) else size


def _analyzer(*sizes: Any) -> Any:
    from tvm.ir import Range
    from tvm.sym import Analyzer

    analyzer = Analyzer()
    known: list[Any] = []
    for variable in (found for size in sizes for found in variables(size)):
        if not any(variable.same_as(other) for other in known):
            known.append(variable)
            analyzer.bind(variable, Range(0, _LARGEST))
    return analyzer
