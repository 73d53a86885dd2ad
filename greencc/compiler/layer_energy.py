"""Energy by layer: the energy of an inference, shared out by profiled times, counted operations and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from greencc.compiler.counts import sum_operations
from greencc.compiler.layers import Origins, layer_of
from greencc.compiler.measurement import Measurement
from greencc.core.data import Feeds
from greencc.core.describe import NodeCost, nodes_cost
from greencc.core.engine import Device
from greencc.core.errors import InputError
from greencc.core.meter import Grade
from greencc.core.report import (
    REST,
    Energy,
    Figures,
    LayerEnergies,
    LayerEnergy,
    LayerShare,
    LayerTime,
)
from greencc.core.shapes import bind_dims
from greencc.meters.attribution import layer_shares, share_out
from greencc.meters.model import OperationCounts, Workload, device_power, load_of

# How far before a node that was fused away the one may lie that it was fused into.
_MAX_WALK = 16
_NOTHING = OperationCounts({}, 0.0)


@dataclass(frozen=True)
class Side:
    """One variant: its figures, the graph that was built, and microseconds by layer (`LayerTime.name`)."""

    figures: Figures
    model: ir.Model | None
    times: Mapping[str, float]


def layer_energies(
    source: ir.Model,
    times: Sequence[LayerTime],
    models: tuple[ir.Model | None, ir.Model | None],
    measured: Measurement,
    feeds: Feeds,
    device: Device,
) -> LayerEnergies | None:
    """Share the energy of both variants out to the layers.

    Args:
        source: The model as given, whose nodes name the layers.
        times: Of its layers before and after, from `layer_times`.
        models: The graphs that were built: the baseline's and the artifact's; None where nothing can be counted.
        measured: Totals and latencies.
        feeds: One inference.
        device: What ran it.

    Returns:
        None where there are no times, or no energy above 0 to share out.
    """
    totals = _totals(measured.baseline.energy_mj, measured.artifact.energy_mj)
    if totals is None or not times:
        return None
    if measured.artifact is measured.baseline:
        # The artifact is the original: what differs between the two profiles is noise.
        times = [replace(row, artifact_us=row.baseline_us) for row in times]
        models = (models[0], models[0])
    columns = [
        {row.name: us for row in times if (us := getattr(row, f"{side}_us")) is not None}
        for side in ("baseline", "artifact")
    ]
    sides = [
        Side(figures, model, column)
        for figures, model, column in zip(
            (measured.baseline, measured.artifact), models, columns, strict=True
        )
    ]
    counted = [_counts(source, side, feeds) for side in sides]
    if any(counts is None for counts in counted):
        # Both sides by the same rule, or they could not be compared.
        counted = [None, None]
    shared = [
        _shared(total, side, counts, device)
        for total, side, counts in zip(totals, sides, counted, strict=True)
    ]
    kinds = {row.name: row.op_type for row in times}
    rows = tuple(
        LayerEnergy(name, kinds.get(name, ""), shared[0].get(name), shared[1].get(name))
        for name in (*kinds, REST)
    )
    return LayerEnergies(
        baseline_mj=totals[0].interval(),
        artifact_mj=totals[1].interval(),
        grade=max(total.grade for total in totals),
        boundary="; ".join(dict.fromkeys(total.boundary for total in totals)),
        method=_method(totals, measured, by_work=counted[0] is not None),
        rows=rows,
    )


def _totals(baseline: Energy | None, artifact: Energy | None) -> tuple[Energy, Energy] | None:
    """What is shared out: net energy where both are net and above 0, else gross energy, else nothing."""
    if baseline is None or artifact is None:
        return None
    if baseline.value <= 0.0 or artifact.value <= 0.0 or baseline.net != artifact.net:
        baseline, artifact = _gross(baseline), _gross(artifact)
    if baseline.value <= 0.0 or artifact.value <= 0.0:
        return None
    return baseline, artifact


def _gross(energy: Energy) -> Energy:
    """The same with the idle power in it."""
    found = energy.gross_interval()
    return replace(
        energy,
        value=found.value,
        low=found.low,
        high=found.high,
        gross=None,
        gross_low=None,
        gross_high=None,
    )


def _method(totals: tuple[Energy, Energy], measured: Measurement, *, by_work: bool) -> str:
    words = {"measured" if Grade[total.grade].measured else "estimated" for total in totals}
    clean = measured.conditions.get("clean") is not False
    net = "net of the idle power" if totals[0].net else "gross"
    return (
        "attributed by model from profiled times"
        + (", counted operations and bytes" if by_work else " alone: the operations could not be counted")
        + f"; the totals are {' and '.join(sorted(words))}, {net}"
        + ("" if clean else "; other processes were busy: waiting for them lies between the layers")
    )


def _shared(
    total: Energy, side: Side, counts: Mapping[str, OperationCounts] | None, device: Device
) -> dict[str, LayerShare]:
    seconds = side.figures.latency_ms.median / 1e3
    profiled = sum(side.times.values()) / 1e6
    # Profiling costs time too: layers never take longer than the inference did without it.
    scale = min(1.0, seconds / profiled) if profiled > 0.0 else 1.0
    known = counts or {}
    parts = [Workload(known.get(name, _NOTHING), us / 1e6 * scale) for name, us in side.times.items()]
    parts.append(Workload(known.get(REST, _NOTHING), max(0.0, seconds - profiled * scale)))
    shares = layer_shares(parts, device_power(device.facts), load_of(device.facts), net=total.net)
    return dict(zip((*side.times, REST), share_out(total, shares), strict=True))


def _counts(source: ir.Model, side: Side, feeds: Feeds) -> dict[str, OperationCounts] | None:
    """Work by layer. A node without a time of its own was fused into one before it, and counts there.

    What leads to no layer in the profile counts to the rest.
    """
    if side.model is None:
        return None
    try:
        costs = nodes_cost(bind_dims(side.model, {name: array.shape for name, array in feeds.items()}))
    except InputError:
        return None
    origins = Origins(source)
    nodes = {str(node.name): node for node in side.model.graph}
    found: dict[str, list[NodeCost]] = defaultdict(list)
    for cost in costs:
        home = _home(origins, nodes.get(cost.name), side.times)
        if home is None:
            named = layer_of(origins, cost.name, cost.op_type.rpartition("::")[2])
            home = named if named in side.times else REST
        found[home].append(cost)
    return {name: sum_operations(items) for name, items in found.items()}


def _home(origins: Origins, node: ir.Node | None, times: Mapping[str, float]) -> str | None:
    for _ in range(_MAX_WALK):
        if node is None:
            return None
        name = layer_of(origins, str(node.name), node.op_type)
        if name in times:
            return name
        producers = (value.producer() for value in node.inputs if value is not None)
        node = next((producer for producer in producers if producer is not None), None)
    return None
