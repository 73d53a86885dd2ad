"""Elementary functions of float32 vectors as polynomials: LLVM would call libm for one lane after the other.

Errors (against float64, over all of float32 that does not overflow; the tests measure them):

    exp       relative 2e-7; arguments are clamped to [-87.3, 88.3], so nothing overflows or is subnormal
    tanh      absolute 4e-7, relative 4e-7 near 0
    erf       absolute 5e-7
    sigmoid   relative 4e-7 above -87
"""

from __future__ import annotations

from collections.abc import Sequence

from greencc.targets._tvm.epilogue import Apply, Function
from greencc.targets._tvm.kernels.emit import Emit, Expr

# Cephes, expf.c (S. Moshier, netlib): exp(r) on [-ln 2 / 2, ln 2 / 2], and ln 2 in two parts.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4

# Eigen, MathFunctionsImpl.h: rational minimax approximations, odd over even, highest power first.
_TANH_CLAMP = 7.90531110763549805
_TANH_ABOVE = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_CLAMP = 4.0
_ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_SQRT_HALF = 0.70710678118654752


def exp(emit: Emit, x: Expr) -> Expr:
    """e^x: 2^n e^r with |r| <= ln 2 / 2; 2^n is made from its exponent bits."""
    lanes = emit.lanes(x)
    x = emit.clip(x, -87.3, 88.3)
    x = emit.bind(x)
    steps = emit.bind(emit.nearest(emit.rounded(x * _LOG2_E)))
    n = emit.bind(emit.cast(steps, "float32"))
    r = x - n * _LN2_HIGH
    r = emit.bind(r - n * _LN2_LOW)
    value = _polynomial(r, _EXP) * (r * r) + r + 1.0
    exponent = (steps + emit.splat("int32", 127, lanes)) << emit.splat("int32", 23, lanes)
    return value * emit.bits(exponent, "float32", lanes)


def sigmoid(emit: Emit, x: Expr) -> Expr:
    """1 / (1 + e^-x)"""
    one = emit.splat("float32", 1.0, emit.lanes(x))
    return one / (exp(emit, -x) + one)


def tanh(emit: Emit, x: Expr) -> Expr:
    """The clamp is where it is 1 in float32."""
    x = emit.bind(emit.clip(x, -_TANH_CLAMP, _TANH_CLAMP))
    square = emit.bind(x * x)
    return x * _polynomial(square, _TANH_ABOVE) / _polynomial(square, _TANH_BELOW)


def erf(emit: Emit, x: Expr) -> Expr:
    """The clamp is where it is 1 in float32."""
    x = emit.bind(emit.clip(x, -_ERF_CLAMP, _ERF_CLAMP))
    square = emit.bind(x * x)
    return x * _polynomial(square, _ERF_ABOVE) / _polynomial(square, _ERF_BELOW)


def apply(emit: Emit, step: Apply, x: Expr) -> Expr:
    """An element-wise function of a float32 vector."""
    x = emit.bind(x)
    match step.function:
        case Function.HARD_SWISH:
            return x * emit.clip(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)
        case Function.HARD_SIGMOID:
            return emit.clip(x * step.alpha + step.beta, 0.0, 1.0)
        case Function.LEAKY_RELU:
            infinity = float("inf")
            return emit.clip(x, 0.0, infinity) + emit.clip(x, -infinity, 0.0) * step.alpha
        case Function.SIGMOID:
            return sigmoid(emit, x)
        case Function.SILU:
            return x * sigmoid(emit, x)
        case Function.TANH:
            return tanh(emit, x)
        case Function.GELU:
            return x * 0.5 * (erf(emit, x * _SQRT_HALF) + 1.0)


def heavy(step: object) -> bool:
    """True if `apply` takes so many operations that a kernel had better write them in a loop than once per tile."""
    light = (Function.HARD_SWISH, Function.HARD_SIGMOID, Function.LEAKY_RELU)
    return isinstance(step, Apply) and step.function not in light


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """By Horner's scheme, the highest power first."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value
