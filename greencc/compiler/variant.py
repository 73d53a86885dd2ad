"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from greencc.core.engine import Engine, Target


@dataclass(frozen=True)
class Variant:
    """Something measurable: an artifact on disk, its open engine, and the graph it was built from.

    `model` is None where the graph is not an ONNX graph we can count operations in; `target` is what runs it, None:
    that of the session.
    """

    artifact: Path
    engine: Engine
    model: ir.Model | None
    size_bytes: int
    accuracy: float | None = None
    target: Target | None = None
