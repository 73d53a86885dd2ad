"""Reads sums and products as polynomials, so that one rule covers all the ways of writing an activation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from greencc.core.graph import input_at, is_op, sole_consumer
from greencc.passes._rewriter import Scope, float_scalar

Polynomial = dict[tuple[int, ...], float]
"""Exponents of each symbol -> coefficient."""

_TOLERANCE = 5e-5
_MAX_DEPTH = 12
_MAX_DEGREE = 6
_PATH_OPS = ("Add", "Sub", "Mul", "Div", "Neg")


def polynomial(value: ir.Value | None, symbols: Sequence[ir.Value], depth: int = 0) -> Polynomial | None:
    """The value as a polynomial in `symbols` with scalar constant coefficients, or None."""
    if value is None or depth > _MAX_DEPTH:
        return None
    for index, symbol in enumerate(symbols):
        if value is symbol:
            return {tuple(int(i == index) for i in range(len(symbols))): 1.0}
    number = float_scalar(value)
    if number is not None:
        return {(0,) * len(symbols): number}
    node = value.producer()
    if node is None or not is_op(node, *_PATH_OPS, "Pow"):
        return None
    first = polynomial(node.inputs[0], symbols, depth + 1)
    if first is None:
        return None
    if is_op(node, "Neg"):
        return _scaled(first, -1.0)
    other = input_at(node, 1)
    number = float_scalar(other)
    if is_op(node, "Pow"):
        return _power(first, number)
    if is_op(node, "Div"):
        return _scaled(first, 1.0 / number) if number else None
    second = polynomial(other, symbols, depth + 1)
    if second is None:
        return None
    if is_op(node, "Mul"):
        return _product(first, second)
    return _sum(first, second if is_op(node, "Add") else _scaled(second, -1.0))


def matches(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Whether the coefficients agree to a relative 5e-5 (exporters round constants like sqrt(2))."""
    if found is None:
        return False
    found = {exponents: c for exponents, c in found.items() if c != 0.0}
    return found.keys() == wanted.keys() and all(
        math.isclose(found[exponents], wanted[exponents], rel_tol=_TOLERANCE) for exponents in wanted
    )


def path_from(value: ir.Value, scope: Scope, longest: int = 4) -> list[ir.Node]:
    """The arithmetic nodes that follow `value`, as long as each result is read once."""
    path: list[ir.Node] = []
    while len(path) < longest:
        node = sole_consumer(value)
        if node is None or node.graph is not scope.graph or not is_op(node, *_PATH_OPS):
            break
        path.append(node)
        value = node.outputs[0]
    return path


def operands(path: Sequence[ir.Node]) -> list[ir.Value]:
    """What the nodes of a path may combine their value with: operands, and what those multiply."""
    found: list[ir.Value] = []
    for node in path:
        for value in node.inputs:
            if value is None or float_scalar(value) is not None:
                continue
            found.append(value)
            producer = value.producer()
            if is_op(producer, "Mul", "Div") and producer is not None:
                found.extend(
                    inner for inner in producer.inputs if inner is not None and float_scalar(inner) is None
                )
    return list(dict.fromkeys(found))


def _scaled(a: Polynomial, factor: float) -> Polynomial:
    return {exponents: c * factor for exponents, c in a.items()}


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    return {exponents: a.get(exponents, 0.0) + b.get(exponents, 0.0) for exponents in [*a, *b]}


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    result: Polynomial = {}
    for p, c in a.items():
        for q, d in b.items():
            key = tuple(i + j for i, j in zip(p, q, strict=True))
            if sum(key) > _MAX_DEGREE:
                return None
            result[key] = result.get(key, 0.0) + c * d
    return result


def _power(a: Polynomial, exponent: float | None) -> Polynomial | None:
    if exponent not in (2.0, 3.0):
        return None
    result: Polynomial | None = a
    for _ in range(int(exponent) - 1):
        result = _product(result, a) if result is not None else None
    return result
