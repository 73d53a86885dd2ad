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

    def rounded(self, value: Expr) -> Expr:
        return value


def with_fast_math(function: PrimFunc, machine: Machine) -> PrimFunc:
    """The function with polynomials for exp, erf, tanh and sigmoid of float32."""
    import tvm_ffi
    from tvm import tirx
    from tvm.ir import Call

    emit = _ScalarEmit(machine)

    def replaced(call: Any) -> Any:
        polynomial = _FUNCTIONS.get(getattr(call.op, "name", ""))
        if polynomial is None or str(call.expr_ty().dtype) != "float32":
            return call
        # Polynomials name their argument many times.
        argument = tirx.Var("x", "float32")
        return tirx.Let(argument, call.args[0], polynomial(emit, argument))

    return tvm_ffi.structural_map(function, (Call, replaced))
