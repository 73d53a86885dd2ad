"""The option `exclude`: it holds for a node and for what the node has become.

A pass that puts several nodes in the place of one writes the name of that one into each (`came_from`), so that a later
pass which is told to leave it alone leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from greencc.core.passes import Finding

_ORIGIN = "greencc.origin"


def came_from(node: ir.Node, sources: Iterable[ir.Node]) -> None:
    """Write into `node` that it does work of `sources`, and of what those came from."""
    names = [name for source in sources for name in (str(source.name), *origins(source))]
    node.metadata_props[_ORIGIN] = json.dumps(list(dict.fromkeys(names)))


def origins(node: ir.Node) -> tuple[str, ...]:
    """Names of the nodes that a node came from; none for one that was there from the start."""
    text = node.metadata_props.get(_ORIGIN)
    if text is None:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        # Written by somebody else: no name of ours.
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def is_excluded(node: ir.Node, names: Collection[str]) -> bool:
    """Whether one of `names` is that of the node, or of one that it came from."""
    return node.name in names or any(name in names for name in origins(node))


def covered(model: ir.Model, names: Collection[str]) -> frozenset[str]:
    """`names`, and those of the nodes that came from such nodes; subgraphs count."""
    found = (str(node.name) for node in model.graph.all_nodes() if is_excluded(node, names))
    return frozenset((*names, *found))


def unmatched(model: ir.Model, names: Sequence[str], rule: str) -> list[Finding]:
    """A warning for each of `names` that names no node, and none that a node came from.

    Args:
        model: As the pass gets it, its nodes named; those of subgraphs count.
        names: The option.
        rule: Of the findings.
    """
    if not names:
        return []
    known = {name for node in model.graph.all_nodes() for name in (node.name, *origins(node))}
    return [
        Finding("warning", f"no node is named {name!r}, so excluding it has no effect", rule=rule)
        for name in names
        if name not in known
    ]
