"""Which nodes compute in half precision: the assignment that moves the fewest bytes, as a minimum cut.

Every node is on the half or on the float side. Operators with half kernels may choose, products among them must be
half; all others, and the model's inputs and outputs, are float. A value produced on one side and read on the other
costs one Cast, 6 bytes an element (4 on the float end, 2 on the half end), however many readers it has. A node on
the half side saves 2 bytes for every element it reads and writes. The sum is smallest at a minimum s-t cut (Picard &
Ratliff 1975), where each value has one auxiliary vertex per direction. So casts go where the tensor is small, a value
that only passes data movement between half nodes is never cast up and down, and a region that would save less than
its casts cost stays float.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import constant_tensor
from greencc.passes._half_schema import PRODUCTS, half_inputs, half_outputs, half_values, is_blind

_CAST_BYTES = 6
_SAVED_BYTES = 2
# Capacities are int32; all finite ones together stay below an infinite one.
_INFINITE = 1 << 30
_HALF, _FLOAT = 0, 1


def place(
    graph: ir.Graph, candidates: Collection[ir.Node], opset: int, *, half_borders: bool
) -> set[ir.Node]:
    """The candidates that compute in half precision.

    Args:
        graph: The main graph, with shapes and types inferred.
        candidates: Nodes that can.
        opset: Of the default domain.
        half_borders: The model's inputs and outputs are half, too.
    """
    allowed = set(candidates)
    network = _Network()
    vertices = {node: network.vertex() for node in graph if node in allowed}
    border = _HALF if half_borders else _FLOAT
    for node, vertex in vertices.items():
        if node.op_type in PRODUCTS:
            network.edge(_HALF, vertex, None)
        else:
            moved = sum(_elements(v) for v in half_values(node, opset) if constant_tensor(v) is None)
            network.edge(_HALF, vertex, _SAVED_BYTES * moved)
    for value in graph.inputs:
        if value.dtype is ir.DataType.FLOAT:
            # An input with a default has a float32 initializer.
            source = _FLOAT if value.is_initializer() else border
            _value(network, value, source, vertices, opset, border)
    for node in graph:
        chosen = set(half_outputs(node, opset)) if node in vertices else set()
        for value in node.outputs:
            if value.dtype is ir.DataType.FLOAT and constant_tensor(value) is None:
                source = vertices[node] if value in chosen else _FLOAT
                _value(network, value, source, vertices, opset, border)
    side = network.half_side()
    return {node for node, vertex in vertices.items() if vertex in side}


def _value(
    network: _Network, value: ir.Value, source: int, vertices: dict[ir.Node, int], opset: int, border: int
) -> None:
    """The two ways of casting a value: down for half readers of a float producer, up for the opposite."""
    readers = set()
    for use in value.uses():
        if use.node in vertices and use.idx in half_inputs(use.node, opset):
            readers.add(vertices[use.node])
        elif not is_blind(use.node):
            readers.add(_FLOAT)
    if value.is_graph_output():
        readers.add(border)
    readers.discard(source)
    if not readers:
        return
    cost = _CAST_BYTES * _elements(value)
    up, down = network.vertex(), network.vertex()
    network.edge(source, up, cost)
    network.edge(down, source, cost)
    for reader in sorted(readers):
        network.edge(up, reader, None)
        network.edge(reader, down, None)


class _Network:
    """A flow network; vertices 0 and 1 are the half and the float terminal."""

    def __init__(self) -> None:
        self._count = 2
        self._capacity: dict[tuple[int, int], int | None] = defaultdict(int)

    def vertex(self) -> int:
        self._count += 1
        return self._count - 1

    def edge(self, start: int, end: int, capacity: int | None) -> None:
        """Add capacity between two vertices; None: it is never cut."""
        known = self._capacity[start, end]
        self._capacity[start, end] = None if known is None or capacity is None else known + capacity

    def half_side(self) -> set[int]:
        """Vertices on the half side of the smallest minimum cut."""
        pairs: Sequence[tuple[int, int]] = sorted(self._capacity)
        total = sum(value for value in self._capacity.values() if value is not None)
        scale = max(1, math.ceil(2 * total / _INFINITE))
        data = []
        for pair in pairs:
            value = self._capacity[pair]
            data.append(_INFINITE if value is None else -(-value // scale))
        starts, ends = zip(*pairs, strict=True) if pairs else ((), ())
        shape = (self._count, self._count)
        # Importing it takes a third of a second.
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        matrix = csr_array((np.array(data, np.int32), (np.array(starts), np.array(ends))), shape=shape)
        residual = matrix - maximum_flow(matrix, _HALF, _FLOAT).flow
        residual = csr_array(residual)
        residual.data = np.where(residual.data > 0, residual.data, 0)
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, _HALF, return_predecessors=False)
        return {int(vertex) for vertex in reached}


def _elements(value: ir.Value) -> int:
    """Elements of a value, unknown dimensions taken as 1."""
    if value.shape is None:
        return 1
    return max(1, math.prod(dim for dim in value.shape if isinstance(dim, int)))
