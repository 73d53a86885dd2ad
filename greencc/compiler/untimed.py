"""Where times come from for a target that nothing is timed on here (`Target.estimated_on`): a device profile.

Nothing in here was measured, and all that is made of it says so: latencies carry the method of the estimate instead of
runs, energies their grade, and choices that rest on them are called choices by estimate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from greencc.compiler.costs import GroupCost, conversions
from greencc.compiler.groups import Group
from greencc.compiler.layers import Origins
from greencc.core.data import Feeds
from greencc.core.engine import Target
from greencc.core.errors import InputError, UsageError
from greencc.core.kernels import Kernels, kernels_of
from greencc.core.report import Interval
from greencc.core.shapes import bind_dims
from greencc.meters.device import DeviceProfile, PowerMode
from greencc.meters.device_store import find_profile
from greencc.meters.roofline import Estimate, LayerEstimate, estimate
from greencc.meters.side_by_side import SideBySide, side_by_side

BY_ESTIMATE = "by estimate, not measured"


@dataclass(frozen=True)
class Estimator:
    """Estimates on the device of a target.

    Attributes:
        profile: Of the device.
        threads: That the target computes with.
    """

    profile: DeviceProfile
    threads: int | None

    @classmethod
    def of(cls, target: Target) -> Estimator | None:
        """What estimates the times of a target; None: they are measured.

        Raises:
            InputError: The device profile is broken.
            UsageError: There is none of that name.
        """
        name = target.estimated_on()
        if name is None:
            return None
        profile = find_profile(name)
        threads = int(target.device().facts.get("threads", "1"))
        if profile.cores is not None and threads > profile.cores:
            raise UsageError(f"{target.name} has {threads} threads, and {profile.name} {profile.cores} cores")
        return cls(profile, threads if profile.cores is not None else None)

    @property
    def title(self) -> str:
        """What the estimates are of, and how good they are."""
        return f"{self.profile.title}, profile {self.profile.name}, grade {self.profile.grade.name}"

    def compare(self, models: Sequence[ir.Model], feeds: Feeds, mode: PowerMode | None = None) -> SideBySide:
        """Estimates of one inference of each model, and the first beside each of the others.

        Args:
            models: The graphs.
            feeds: One inference.
            mode: Power mode of the device; None: its default one.

        Raises:
            InputError: Nothing is known of the work of a model.
        """
        graphs = [self._kernels(model, feeds) for model in models]
        return side_by_side(graphs, self.profile, mode or self.profile.mode(None), self.threads)

    def in_modes(
        self, model: ir.Model, feeds: Feeds, modes: Sequence[PowerMode], rate: float | None = None
    ) -> tuple[Estimate, ...]:
        """Estimates of one inference in each of some power modes, and of the power at `rate` inferences per second.

        Raises:
            InputError: Nothing is known of the work of the model.
        """
        kernels = self._kernels(model, feeds)
        return tuple(estimate(kernels, self.profile, mode, threads=self.threads, rate=rate) for mode in modes)

    def layers(self, model: ir.Model, feeds: Feeds) -> tuple[LayerEstimate, ...]:
        """What each kernel of a model takes.

        Raises:
            InputError: Nothing is known of the work of the model.
        """
        return estimate(
            self._kernels(model, feeds), self.profile, self.profile.mode(None), threads=self.threads
        ).layers

    def group_costs(
        self, groups: Sequence[Group], float_form: ir.Model, int8_form: ir.Model, feeds: Feeds
    ) -> dict[str, GroupCost]:
        """`greencc.compiler.costs.group_costs` without a profile of what was built.

        Args:
            groups: Of the quantized graph.
            float_form: The graph before quantization.
            int8_form: The Q/DQ graph.
            feeds: One inference.
        """
        home = {name: group.name for group in groups for name in group.nodes}
        origins = Origins(float_form)
        before = _charged(self.layers(float_form, feeds), origins, home, {})
        after = _charged(self.layers(int8_form, feeds), origins, home, conversions(int8_form, home))
        return {group.name: self._cost(before[group.name], after[group.name]) for group in groups}

    def _kernels(self, model: ir.Model, feeds: Feeds) -> Kernels:
        bound = bind_dims(model, {name: array.shape for name, array in feeds.items()})
        kernels = kernels_of(bound, fused_conversions=self.profile.fuses_conversions)
        if not kernels.items:
            raise InputError("the graph has no node whose work is known, so its latency cannot be estimated")
        return kernels

    def _cost(self, old: list[LayerEstimate], new: list[LayerEstimate]) -> GroupCost:
        us = [sum(row.microseconds for row in rows) for rows in (old, new)]
        values, lows, highs = (
            [sum(getattr(row.millijoules, end) for row in rows) for rows in (old, new)]
            for end in ("value", "low", "high")
        )
        saved = Interval(values[0] - values[1], lows[0] - highs[1], highs[0] - lows[1])
        return GroupCost(us[0], us[1], values[0], values[1], saved, self.profile.boundary, estimated=True)


def _charged(
    rows: Sequence[LayerEstimate], origins: Origins, home: Mapping[str, str], owners: Mapping[str, str]
) -> dict[str, list[LayerEstimate]]:
    spent: dict[str, list[LayerEstimate]] = defaultdict(list)
    for row in rows:
        group = owners.get(row.name)
        if group is None and row.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            group = home.get(origins.find(row.name) or "")
        if group is not None:
            spent[group].append(row)
    return spent
