"""Order of the nodes in a parsed model file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnx import FunctionProto, GraphProto, NodeProto


def every_node(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and the nodes of their subgraphs. Depth is bounded by protobuf's own nesting limit."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_node(attribute.g.node)
            for graph in attribute.graphs:
                yield from every_node(graph.node)


def is_sorted(graph: GraphProto | FunctionProto) -> bool:
    """True when every node comes after the nodes it reads from, at every depth."""
    written = {name for node in graph.node for name in node.output if name}
    seen: set[str] = set()
    for node in graph.node:
        inner = list(every_node([node]))
        defined = {name for other in inner[1:] for name in other.output}
        reads = {name for other in inner for name in other.input if name} - defined
        if any(name in written and name not in seen for name in reads):
            return False
        seen.update(node.output)
        for attribute in node.attribute:
            bodies = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            if not all(is_sorted(body) for body in bodies):
                return False
    return True


def find_cycle(depends: Sequence[Sequence[int]]) -> list[int]:
    """Return the nodes of one cycle in data-flow order, or an empty list (Kahn's algorithm, then a walk)."""
    readers: list[list[int]] = [[] for _ in depends]
    waiting = [len(sources) for sources in depends]
    for index, sources in enumerate(depends):
        for source in sources:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    stuck = {index for index, count in enumerate(waiting) if count}
    if not stuck:
        return []
    walk = [min(stuck)]
    position = {walk[0]: 0}
    while True:
        source = next(other for other in depends[walk[-1]] if other in stuck)
        if source in position:
            return list(reversed(walk[position[source] :]))
        position[source] = len(walk)
        walk.append(source)
