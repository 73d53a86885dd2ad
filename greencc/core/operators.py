"""Which operators ONNX defines at a version of an operator set, and which of them half precision is no good for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from greencc.core.errors import did_you_mean

KEPT_FROM_HALF = (
    "Exp",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "Pow",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
)
"""What FP16 computes badly: sums run out of its digits, exponentials make more of an error (Micikevicius et al., arXiv
1710.03740, section 3.3)."""


def operators_at(domain: str, version: int) -> dict[str, bool]:
    """Operators of a domain at a version, and whether each is deprecated there."""
    key = (domain, version)
    if key not in _SCHEMA_CACHE:
        newest: dict[str, tuple[int, bool]] = {}
        for schema in onnx.defs.get_all_schemas_with_history():
            if schema.domain == domain and schema.since_version <= version:
                seen = newest.get(schema.name, (0, False))
                newest[schema.name] = max(seen, (schema.since_version, schema.deprecated))
        _SCHEMA_CACHE[key] = {name: deprecated for name, (_, deprecated) in newest.items()}
    return _SCHEMA_CACHE[key]


_SCHEMA_CACHE: dict[tuple[str, int], dict[str, bool]] = {}


def introductions(domain: str) -> Iterator[tuple[str, int]]:
    """Yield (operator, version) for every version that changed an operator of a domain."""
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == domain:
            yield schema.name, schema.since_version


def closest(name: str, known: Iterable[str]) -> str:
    """A suggestion without the listing of all operators."""
    return did_you_mean(name, known).partition("? ")[0].partition("known: ")[0] or "check the spelling"
