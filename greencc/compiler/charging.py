"""Charge the times of a runtime's nodes to the nodes of a graph; what cannot be told apart is shared by work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from greencc.compiler.layers import Origins
from greencc.core.engine import NodeTime
from greencc.core.passes import Finding

# Conversions are named after the values that they convert, and are no work of the nodes that wrote those.
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What runtimes put at the ends of kernels by themselves.
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose", "Cast"})
# A kernel with one of these in its operator may be named after what was fused into it: an activation, a sum.
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_RULE = "kernel-times"


@dataclass(frozen=True)
class Charged:
    """Microseconds by node.

    Attributes:
        times: Of the nodes that were asked for. One that nothing at all can be said of is missing.
        kernels: Operators of the runtime that they are the times of, joined by "+".
        shared: Nodes whose time is a share by multiply-accumulates, not read from the profile.
        findings: A warning where there are such nodes.
    """

    times: dict[str, float]
    kernels: dict[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()


def charge(
    rows: Sequence[NodeTime], origins: Origins, wanted: Sequence[str], macs: Mapping[str, int]
) -> Charged:
    """Charge a profile to nodes.

    Nodes without a row of their own (a runtime that names its kernels by itself, or fuses several nodes into one) share
    what no row was found for, in proportion to their multiply-accumulates; where all rows are taken, they take as long
    per operation as the others.

    Args:
        rows: The profile.
        origins: Of the graph.
        wanted: Names of its nodes.
        macs: Multiply-accumulates by node name.
    """
    names = frozenset(wanted)
    times: dict[str, float] = {}
    kernels: dict[str, list[str]] = {}
    unclaimed = 0.0
    for row in rows:
        if row.op_type in _CONVERSIONS:
            continue
        name = origins.writer(row.name)
        if name is not None and name not in names and any(part in row.op_type for part in _WEIGHTED):
            name = origins.computing(name)
        if name in names:
            assert name is not None
            times[name] = times.get(name, 0.0) + row.microseconds
            kernels.setdefault(name, []).append(row.op_type)
        elif name is None and row.op_type not in _LAYOUT:
            unclaimed += row.microseconds
    joined = {name: "+".join(found) for name, found in kernels.items()}
    missing = [name for name in wanted if name not in times]
    if not missing:
        return Charged(times, joined)
    shares = _shares(missing, times, unclaimed, macs)
    said = f"{len(missing)} of {len(wanted)} nodes (first {missing[0]!r}) have no kernel of their name in the profile"
    how = "their times are shares by multiply-accumulates" if shares else "their times are not known"
    finding = Finding("warning", f"{said}: {how}", missing[0], _RULE)
    return Charged(times | shares, joined, frozenset(shares), (finding,))


def _shares(
    missing: Sequence[str], times: Mapping[str, float], unclaimed: float, macs: Mapping[str, int]
) -> dict[str, float]:
    work = {name: macs.get(name, 0) for name in missing}
    total = sum(work.values())
    if unclaimed > 0.0 and total > 0:
        rate = unclaimed / total
    else:
        known = sum(macs.get(name, 0) for name in times)
        rate = sum(times.values()) / known if known > 0 else 0.0
    return {name: rate * count for name, count in work.items() if rate * count > 0.0}
