"""Measured times of operations, each signature once per device, kept between compiles.

Signatures are measured many at a time, as branches of one model that is built and profiled as any other: a branch's
time is that of the runtime's nodes that its weighted node became, without the conversions at its ends. The arithmetic
is that of passes which are applied to the model first, each in its quickest form (`Pass.rehearsal`). docs/planner.md
says how well such times agree with those inside real models.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from greencc.compiler.charging import Charged, charge
from greencc.compiler.kernel_grid import grids, interpolate
from greencc.compiler.layers import Origins
from greencc.compiler.micro import BALLAST, MicroModel, ballast, joint_model, split
from greencc.compiler.profiling import Repeats, quiet_profiles
from greencc.compiler.signatures import Signature
from greencc.core.cache import Cache, cache_key
from greencc.core.capabilities import Arithmetic
from greencc.core.data import Array, Feeds
from greencc.core.describe import nodes_cost
from greencc.core.engine import NodeTime, Target
from greencc.core.inside import inside
from greencc.core.passes import Context, Finding, Pass
from greencc.core.progress import Progress, silent
from greencc.core.recipe import dump_recipe
from greencc.core.rehearsal import carry_out
from greencc.core.shapes import bind_dims
from greencc.measure.intervals import mean_interval
from greencc.targets import format_spec

KIND = "kernel-time"
# Of the method: times that were measured in another way are not mixed with these.
_METHOD = 1
# Runtimes count in whole microseconds.
_HALF_TICK_US = 0.5


class Source(Enum):
    """Where a time comes from."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    SHARED = "shared"
    """The profile did not tell: a share of the whole by multiply-accumulates."""


class Order(Enum):
    """How one time compares to another."""

    FASTER = "faster"
    SLOWER = "slower"
    TIE = "tie"


@dataclass(frozen=True)
class KernelTime:
    """Microseconds of one execution.

    Attributes:
        us: Median over the medians of several profiles, less those that other processes slowed down.
        low: Lower end of the 95 % interval over these profiles.
        high: Upper end.
        runs: Runs that it rests on; of an interpolated time 0.
        source: Where it comes from.
        kernels: Operators of the runtime that it is the time of, e.g. "QLinearConv".
        error: Relative error of the interpolation, from points left out; it is in the interval.
    """

    us: float
    low: float
    high: float
    runs: int
    source: Source
    kernels: str = ""
    error: float | None = None


def compare(first: KernelTime, second: KernelTime) -> Order:
    """Whether the first is faster than the second; a tie where their intervals overlap."""
    if first.high < second.low:
        return Order.FASTER
    return Order.SLOWER if first.low > second.high else Order.TIE


@dataclass(frozen=True)
class Sampling:
    """How times are measured.

    Attributes:
        repeats: How often profiles are taken.
        share: Profiles are repeated until half of every interval is below this share of its time, or half a
            microsecond.
        batch_size: Branches of one joint model.
        family: Signatures that differ in channels alone are interpolated when there are more.
        per_axis: Points of the grid that is measured then, along each axis.
    """

    repeats: Repeats = field(default_factory=lambda: Repeats(runs=20))
    share: float = 0.05
    batch_size: int = 128
    family: int = 24
    per_axis: int = 4


@dataclass
class KernelTimes:
    """Measures signatures on a target; asks the cache first.

    Attributes:
        target: What runs them.
        cache: Keeps them, one entry each.
        working_set: Bytes of the network that the operations are of (`greencc.compiler.micro.working_set`): how much of
            an operation's operands is still in the caches depends on it.
        progress: Where it reports how far it is.
        sampling: How.
        findings: What went wrong so far.
    """

    target: Target
    cache: Cache
    working_set: int = 1 << 20
    progress: Progress = silent
    sampling: Sampling = field(default_factory=Sampling)
    findings: list[Finding] = field(default_factory=list)

    def measure(
        self, signatures: Sequence[Signature], arithmetic: Sequence[Pass] = ()
    ) -> dict[Signature, KernelTime]:
        """Times of signatures.

        Args:
            signatures: Equal ones are measured once.
            arithmetic: Passes that are applied first: none for float, INT8, dynamic INT8, weights alone, ...

        Returns:
            In the order of the signatures. One that a profile says nothing of, not even by its work, is missing, and a
            finding says so.

        Raises:
            GreenccError: The target cannot build or profile the operations.
        """
        capabilities = self.target.capabilities()
        steps = tuple(_quickest(step, capabilities) for step in arithmetic)
        kinds = [step.arithmetic for step in steps if step.arithmetic is not None]
        alignment = max(1, capabilities.alignment(kinds[-1] if kinds else Arithmetic.FLOAT))
        wanted = list(dict.fromkeys(signatures))
        families = grids(wanted, alignment, self.sampling.family, self.sampling.per_axis)
        between = {signature for grid in families for signature in grid.between}
        points = [point for grid in families for point in grid.points()]
        direct = [signature for signature in wanted if signature not in between]
        times = self._measured(list(dict.fromkeys((*direct, *points))), steps)
        for grid in families:
            needed = [*grid.points(), *grid.checks]
            known = {point: times[point] for point in needed if point in times}
            if len(known) < len(needed):
                # The finding about these points says why.
                times |= self._measured(grid.between, steps)
                continue
            ends = {point: (time.low, time.us, time.high) for point, time in known.items()}
            kernels = "|".join(sorted({time.kernels for time in known.values()}))
            for signature, guess in interpolate(grid, ends).items():
                times[signature] = KernelTime(
                    guess.middle, guess.low, guess.high, 0, Source.INTERPOLATED, kernels, guess.error
                )
        return {signature: times[signature] for signature in wanted if signature in times}

    def _measured(
        self, signatures: Sequence[Signature], steps: tuple[Pass, ...]
    ) -> dict[Signature, KernelTime]:
        """From the cache or a profile."""
        keys = {signature: self._key(signature, steps) for signature in signatures}
        found: dict[Signature, KernelTime] = {}
        for signature, key in keys.items():
            time = _restored(self.cache.get(KIND, key))
            if time is not None:
                found[signature] = time
        missing = [signature for signature in signatures if signature not in found]
        batches = split(missing, self.working_set, self.sampling.batch_size)
        for batch in self.progress(batches, label="Timing kernels", total=len(batches)):
            for signature, (time, medians) in self._batch(batch, steps).items():
                found[signature] = time
                if time.source is Source.MEASURED:
                    self._keep(keys[signature], signature, steps, time, medians)
        return found

    def _batch(
        self, batch: Sequence[Signature], steps: tuple[Pass, ...], weighed: bool = True
    ) -> dict[Signature, tuple[KernelTime, list[float]]]:
        """Build the joint model once, and profile it until the times are known."""
        micro = joint_model(batch)
        context = Context(
            capabilities=self.target.capabilities(),
            build=self.target.reference,
            samples=[micro.feeds],
            observe=self.target.calibration_engine,
        )
        model, _ = carry_out(steps, micro.model, [micro.feeds], context)
        feeds = dict(inside([model], [micro.feeds])[0])
        added = ballast(model, micro, self.working_set) if weighed else None
        if added is not None:
            feeds[added[0]] = added[1]
        folder = Path(tempfile.mkdtemp(prefix="greencc-kernels-"))
        try:
            artifact = self.target.build(self.target.lower(model), folder)
            found = self._profiled(micro, artifact, feeds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if added is not None and any(time.source is Source.SHARED for time, _ in found.values()):
            # The ballast's time would be shared as well.
            return self._batch(batch, steps, weighed=False)
        return found

    def _profiled(
        self, micro: MicroModel, artifact: Path, feeds: Feeds
    ) -> dict[Signature, tuple[KernelTime, list[float]]]:
        origins = Origins(micro.model)
        shapes = {name: array.shape for name, array in micro.feeds.items()}
        macs = {cost.name: cost.macs or 0 for cost in nodes_cost(bind_dims(micro.model, shapes))}

        def charged(rows: Sequence[NodeTime]) -> Charged:
            known = [row for row in rows if not row.name.startswith(BALLAST)]
            return charge(known, origins, list(micro.nodes.values()), macs)

        def medians(profiles: Sequence[list[NodeTime]]) -> dict[str, list[float]]:
            found: dict[str, list[float]] = {}
            for rows in profiles:
                for name, microseconds in charged(rows).times.items():
                    found.setdefault(name, []).append(microseconds)
            return found

        profiles = quiet_profiles(
            lambda: self.target.profile(artifact, feeds, self.sampling.repeats.runs),
            self.sampling.repeats,
            lambda rows: all(map(self._settled, medians(rows).values())),
        )
        first, times = charged(profiles[0]), medians(profiles)
        self._note(first.findings, micro)
        found = {}
        for signature, name in micro.nodes.items():
            if values := times.get(name):
                runs = self.sampling.repeats.runs * len(values)
                source = Source.SHARED if name in first.shared else Source.MEASURED
                found[signature] = summary(values, runs, source, first.kernels.get(name, "")), values
        return found

    def _settled(self, values: Sequence[float]) -> bool:
        half = mean_interval(values).high - statistics.fmean(values)
        return half <= max(self.sampling.share * statistics.median(values), _HALF_TICK_US)

    def _note(self, findings: Sequence[Finding], micro: MicroModel) -> None:
        """Findings in words of signatures: nobody knows the names of the joint model."""
        labels = {name: signature.label for signature, name in micro.nodes.items()}
        for finding in findings:
            label = labels.get(finding.node or "", "")
            message = finding.message.replace(repr(finding.node), repr(label))
            if all(message != known.message for known in self.findings):
                self.findings.append(replace(finding, message=message, node=None))

    def _key(self, signature: Signature, steps: tuple[Pass, ...]) -> str:
        return cache_key(
            _METHOD,
            self.target.device().fingerprint,
            format_spec(self.target),
            self.target.versions(),
            self.working_set,
            signature.text,
            dump_recipe(steps),
        )

    def _keep(
        self,
        key: str,
        signature: Signature,
        steps: tuple[Pass, ...],
        time: KernelTime,
        medians: Sequence[float],
    ) -> None:
        arrays: dict[str, Array] = {
            "us": np.array(medians, np.float64),
            "runs": np.array(time.runs),
            "kernels": np.array(time.kernels, np.str_),
        }
        names = "+".join(step.name for step in steps) or "float"
        device = f"{self.target.device().name}, {format_spec(self.target)}"
        self.cache.put(KIND, key, arrays, label=f"{signature.label}, {names}", device=device)


def summary(medians: Sequence[float], runs: int, source: Source, kernels: str) -> KernelTime:
    """A time from the medians of several profiles, with Student's t-interval, no finer than the runtime's clock."""
    middle = statistics.median(medians)
    interval = mean_interval(medians)
    half = max(interval.high - interval.value, _HALF_TICK_US)
    return KernelTime(middle, max(0.0, middle - half), middle + half, runs, source, kernels)


def _restored(entry: Mapping[str, Array] | None) -> KernelTime | None:
    if entry is None or not {"us", "runs", "kernels"} <= set(entry) or not entry["us"].size:
        return None
    return summary(entry["us"].tolist(), int(entry["runs"]), Source.MEASURED, str(entry["kernels"]))


def _quickest(step: Pass, capabilities: Any) -> Pass:
    """The quickest pass with the same kernels, without names of nodes that no joint model has."""
    quick = step.rehearsal(capabilities) or step
    named = {option.name: () for option in fields(quick) if option.name == "exclude"}
    return replace(quick, **named)
