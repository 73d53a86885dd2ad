"""The cost table: what each group takes in float and as integers on this device, measured.

Both artifacts are profiled, and every node of the runtime's graphs is charged to the group it came from: conversions to
integers to the group that reads them, conversions back to the group that wrote them. Millijoules are grade D
estimates from those times and the counted operations (docs/adr/0003-energy.md); they weigh groups against each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.compiler.counts import sum_operations
from greencc.compiler.groups import Group
from greencc.compiler.layers import Origins
from greencc.compiler.profiling import Repeats, merged, quiet_profiles
from greencc.compiler.session import Session
from greencc.core.cache import cache_key
from greencc.core.data import Feeds
from greencc.core.describe import NodeCost, nodes_cost
from greencc.core.engine import Device, NodeTime
from greencc.core.files import sha256_file
from greencc.core.meter import Grade
from greencc.core.report import Interval, LayerChoice
from greencc.core.shapes import bind_dims
from greencc.meters.model import (
    MODEL_BOUNDARY,
    DevicePower,
    Draw,
    Workload,
    central_millijoules,
    device_power,
    load_of,
    over_coefficients,
)
from greencc.targets import format_spec

REPEATS = Repeats(runs=30)
_KIND = "cost"
# Runtimes count in whole microseconds.
_TICK_US = 1.0
_NOISE_SHARE = 0.05


@dataclass(frozen=True)
class EnergyKind:
    """Grade, boundary and method of all the millijoules of a table."""

    grade: str
    boundary: str
    method: str


@dataclass(frozen=True)
class GroupCost:
    """Microseconds and estimated millijoules of one group per inference, in float and as integers.

    Attributes:
        saved: Millijoules that integers save, over the coefficients of the estimate, which both forms share.
        boundary: What the millijoules cover.
        estimated: The microseconds are estimates as well: nothing was timed.
    """

    float_us: float
    int8_us: float
    float_mj: float
    int8_mj: float
    saved: Interval | None = None
    boundary: str = MODEL_BOUNDARY
    estimated: bool = False

    @property
    def saved_us(self) -> float:
        return self.float_us - self.int8_us

    @property
    def slower(self) -> bool:
        """Whether both forms were seen in a profile, and the integer one is slower by more than the noise."""
        return self.int8_us > self.float_us and not _alike(self.float_us, self.int8_us)

    @property
    def saved_mj(self) -> float:
        return self.float_mj - self.int8_mj


def layer_choice(group: Group, cost: GroupCost, kept: str, error: float | None) -> LayerChoice:
    """What the report tells of a group; `kept` is why it stays in float, empty where it does not."""
    low, high = (None, None) if cost.saved is None else (cost.saved.low, cost.saved.high)
    return LayerChoice(
        group.name,
        group.op_type,
        "float" if kept else "int8",
        kept,
        error,
        cost.saved_us,
        cost.saved_mj,
        low,
        high,
        Grade.D.name,
        cost.boundary,
    )


def group_costs(
    session: Session,
    groups: Sequence[Group],
    float_form: tuple[ir.Model, Path],
    int8_form: tuple[ir.Model, Path],
    feeds: Feeds,
) -> dict[str, GroupCost]:
    """Costs by the names of the groups.

    Args:
        session: Target, device and cache. Times are kept per device: a second compile decides on the same ones.
        groups: Of the quantized graph.
        float_form: Graph and artifact before quantization.
        int8_form: The Q/DQ graph and its artifact.
        feeds: One inference.
    """
    times = [profiled(session, artifact, feeds) for _, artifact in (float_form, int8_form)]
    shapes = {name: array.shape for name, array in feeds.items()}
    counted = [_counted(model, shapes) for model, _ in (float_form, int8_form)]
    home = {name: group.name for group in groups for name in group.nodes}
    before = _charge(times[0], Origins(float_form[0]), home, {})
    after = _charge(times[1], Origins(float_form[0]), home, conversions(int8_form[0], home))
    device = session.target.device()
    power, load = device_power(device.facts), load_of(device.facts)
    costs = {}
    for group in groups:
        old, new = before[group.name], after[group.name]
        # Times that differ by no more than their noise, or that a fusion hides, say nothing; the operations still do.
        seconds = [max(us, _TICK_US) / 1e6 for us in (old, old if _alike(old, new) else new)]
        works = [
            Workload(sum_operations(counts[name] for name in group.nodes if name in counts), spent)
            for counts, spent in zip(counted, seconds, strict=True)
        ]
        energies = [central_millijoules(work, power, load) for work in works]
        costs[group.name] = GroupCost(old, new, energies[0], energies[1], _saved(works, power, load))
    return costs


def _saved(works: Sequence[Workload], power: DevicePower, load: float) -> Interval:
    def saved(draw: Draw) -> float:
        return draw.millijoules(works[0], load) - draw.millijoules(works[1], load)

    value, corners = over_coefficients(power, saved)
    return Interval(value, min(value, *corners), max(value, *corners))


def cost_kind(device: Device) -> EnergyKind:
    """What the millijoules of a cost table are."""
    return EnergyKind(
        Grade.D.name,
        MODEL_BOUNDARY,
        f"estimated, gross: profiled time x power at load {load_of(device.facts):.2g} + operations + bytes; intervals "
        f"over the coefficients alone; {device_power(device.facts).source}",
    )


def _alike(first_us: float, second_us: float) -> bool:
    if not (first_us and second_us):
        return True
    return abs(first_us - second_us) <= max(_TICK_US, _NOISE_SHARE * max(first_us, second_us))


def profiled(session: Session, artifact: Path, feeds: Feeds) -> list[NodeTime]:
    """Median times by node of the runtime's graph; measured once per device, artifact and input shape.

    Profiles that other processes slowed down are left out.
    """
    device = session.target.device()
    key = cache_key(
        device.fingerprint,
        session.target.versions(),
        format_spec(session.target),
        sha256_file(artifact),
        {name: str(array.shape) for name, array in feeds.items()},
        repr(REPEATS),
    )
    found = session.cache.get(_KIND, key)
    if found is None:
        target = session.target
        rows = merged(quiet_profiles(lambda: target.profile(artifact, feeds, REPEATS.runs), REPEATS))
        found = {
            "name": np.array([row.name for row in rows], dtype=np.str_),
            "op_type": np.array([row.op_type for row in rows], dtype=np.str_),
            "microseconds": np.array([row.microseconds for row in rows], dtype=np.float64),
        }
        session.cache.put(
            _KIND,
            key,
            found,
            label=f"profile of {len(rows)} kernels",
            device=f"{device.name}, {format_spec(session.target)}",
        )
    return [
        NodeTime(str(name), str(op_type), float(microseconds))
        for name, op_type, microseconds in zip(
            found["name"], found["op_type"], found["microseconds"], strict=True
        )
    ]


def conversions(quantized: ir.Model, home: Mapping[str, str]) -> dict[str, str]:
    """The group that each Q and DQ node of an activation is charged to."""
    owners: dict[str, str] = {}
    for node in quantized.graph:
        if node.op_type == "QuantizeLinear":
            owner = _reader(node, home)
        elif node.op_type == "DequantizeLinear":
            owner = _writer(node, home)
        else:
            continue
        if owner is not None:
            owners[str(node.name)] = owner
    return owners


def _reader(quantize: ir.Node, home: Mapping[str, str]) -> str | None:
    """The group of the first node that reads what is quantized here."""
    for restored in quantize.outputs[0].consumers():
        for reader in restored.outputs[0].consumers():
            if reader.name in home:
                return home[str(reader.name)]
    return None


def _writer(dequantize: ir.Node, home: Mapping[str, str]) -> str | None:
    """The group that the value came from."""
    value: ir.Value | None = dequantize.inputs[0]
    while value is not None:
        producer = value.producer()
        if producer is None:
            return None
        if producer.name in home:
            return home[str(producer.name)]
        value = producer.inputs[0] if producer.inputs else None
    return None


def _charge(
    times: Sequence[NodeTime], origins: Origins, home: Mapping[str, str], owners: Mapping[str, str]
) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for row in times:
        group = owners.get(row.name)
        if group is None and row.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            group = home.get(origins.find(row.name) or "")
        if group is not None:
            spent[group] += row.microseconds
    return spent


def _counted(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NodeCost]:
    return {cost.name: cost for cost in nodes_cost(bind_dims(model, dict(shapes)))}
