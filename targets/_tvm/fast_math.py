"""Puts polynomials in the place of elementary functions, which LLVM would call from libm, number by number.

Only float32 is replaced; see `kernels.vectormath` for the errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greencc.targets._tvm.kernels import vectormath
from greencc.targets._tvm.kernels.emit import Emit, Expr
from greencc.targets._tvm.machine import Machine

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

_FUNCTIONS = {
    "tirx.exp": vectormath.exp,
    "tirx.erf": vectormath.erf,
    "tirx.tanh": vectormath.tanh,
    "tirx.sigmoid": vectormath.sigmoid,
}


class _ScalarEmit(Emit):
    """LLVM vectorises no loop with a fence in it, and none of these polynomials depends on how a product is rounded."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._bound: list[tuple[Expr, Expr]] = []

    def rounded(self, value: Expr) -> Expr:
        return value

    def bind(self, value: Expr) -> Expr:
        """A variable of the expression: there is no statement to compute it in."""
        from tvm import tirx

        variable = tirx.Var("x", str(value.expr_ty().dtype))
        self._bound.append((variable, value))
        return variable

    def enclosed(self, result: Expr) -> Expr:
        """The result with the values of what was bound since the last one."""
        from tvm import tirx

        while self._bound:
            result = tirx.Let(*self._bound.pop(), result)
        return result


def with_fast_math(function: PrimFunc, machine: Machine) -> PrimFunc:
    """The function with polynomials for exp, erf, tanh and sigmoid of float32."""
    import tvm_ffi
    from tvm.ir import Call

    emit = _ScalarEmit(machine)

    def replaced(call: Any) -> Any:
        polynomial = _FUNCTIONS.get(getattr(call.op, "name", ""))
        if polynomial is None or str(call.expr_ty().dtype) != "float32":
            return call
        # Polynomials name their argument many times.
        return emit.enclosed(polynomial(emit, emit.bind(call.args[0])))

    return tvm_ffi.structural_map(function, (Call, replaced))
