"""How far each layer is from what the machine can do: its measured time by the least time that its work takes.

The roofline model (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009): a layer takes at least its
operations by the peak of its arithmetic, and at least its bytes by the bandwidth of the memory that holds them. Both
are measured (`benchmarks.peaks`), on one core. Work and bytes are those of the graph's node (weights, inputs and output
once each); what a run time fused into it has its time in it, and no work of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from benchmarks.peaks import Peaks
from greencc.compiler.layers import Origins, layer_of
from greencc.core.data import Feeds
from greencc.core.describe import NodeCost, nodes_cost
from greencc.core.engine import NodeTime

ARITHMETIC, BANDWIDTH = "arithmetic", "bandwidth"
_INTEGERS = frozenset({"INT8", "UINT8"})


@dataclass(frozen=True)
class Layer:
    """One layer of an artifact.

    Attributes:
        name: Of the graph's node; of the operator, for what a run time inserted.
        op_type: Of the graph's node.
        microseconds: Measured, of one inference on one core.
        integers: Whether the graph says that it computes in INT8.
        macs: Multiply-accumulates; None: unknown, or no layer of the graph.
        bytes: Read and written; None as for `macs`.
        bound_us: Least time; None where it is unknown.
        limit: What the least time comes from.
    """

    name: str
    op_type: str
    microseconds: float
    integers: bool = False
    macs: int | None = None
    bytes: int | None = None
    bound_us: float | None = None
    limit: str | None = None

    @property
    def distance(self) -> float | None:
        """Measured time by the least time; 1 is the roof."""
        return None if not self.bound_us else self.microseconds / self.bound_us


def layers_of(model: ir.Model, feeds: Feeds, times: Sequence[NodeTime], peaks: Peaks) -> list[Layer]:
    """The layers of an artifact, the slowest first.

    Args:
        model: The graph that it was built from, its nodes named.
        feeds: What was run: its sizes are those of dynamic dimensions.
        times: Its profile.
        peaks: Of the machine.
    """
    origins = Origins(model)
    found: defaultdict[str, float] = defaultdict(float)
    kinds: dict[str, str] = {}
    for row in times:
        name = layer_of(origins, row.name, row.op_type)
        found[name] += row.microseconds
        kinds.setdefault(name, row.op_type)
    costs = {cost.name: cost for cost in nodes_cost(model, sizes_of(model, feeds))}
    layers = [_layer(name, kinds[name], taken, costs.get(name), peaks) for name, taken in found.items()]
    return sorted(layers, key=lambda layer: -layer.microseconds)


def sizes_of(model: ir.Model, feeds: Feeds) -> Mapping[str, int]:
    """Sizes of named dynamic dimensions, from what is fed."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.name not in feeds:
            continue
        for dim, size in zip(value.shape, feeds[value.name].shape, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                sizes.setdefault(dim.value, int(size))
    return sizes


def _layer(name: str, kind: str, taken: float, cost: NodeCost | None, peaks: Peaks) -> Layer:
    if cost is None:
        return Layer(name, kind, taken)
    integers = cost.dtype in _INTEGERS
    moved = None if cost.activation_bytes is None else cost.activation_bytes + cost.weight_bytes
    bound, limit = bound_of(cost.macs, moved, integers, peaks)
    return Layer(name, cost.op_type, taken, integers, cost.macs, moved, bound, limit)


def bound_of(
    macs: int | None, moved: int | None, integers: bool, peaks: Peaks
) -> tuple[float | None, str | None]:
    """Least microseconds for so much work and so many bytes, and what they come from; None where that is unknown."""
    rate = peaks.ops(integers)
    if macs is None or moved is None or (macs and rate is None):
        return None, None
    computing = 1e6 * 2.0 * macs / rate if rate else 0.0
    moving = 1e6 * moved / peaks.read_rate(moved)
    if not computing and not moving:
        return None, None
    return (computing, ARITHMETIC) if computing >= moving else (moving, BANDWIDTH)
