"""Names in the option `exclude` that no node has: said rather than silently ignored."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from greencc.core.passes import Finding


def unmatched(model: ir.Model, names: Sequence[str], rule: str) -> list[Finding]:
    """A warning for each of `names` that names no node.

    Args:
        model: As the pass gets it, its nodes named; those of subgraphs count.
        names: The option.
        rule: Of the findings.
    """
    known = {node.name for node in model.graph.all_nodes()}
    return [
        Finding("warning", f"no node is named {name!r}, so excluding it has no effect", rule=rule)
        for name in names
        if name not in known
    ]
