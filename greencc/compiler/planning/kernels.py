"""How long each layer takes in every structure and arithmetic that a plan may give it.

Times in place come from profiles of the whole model in float and as INT8 (`greencc.compiler.costs`). What a cut or a
factorisation makes of them is the ratio of measured times of single kernels (`greencc.compiler.kernel_times`): of
sketches, which have the shapes of an option and any weights. All groups are cut to the same level in one sketch and all
layers have their n-th rank in another, so that a dozen sketches show every option; between levels a layer's time is
interpolated over its work.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from greencc.compiler.kernel_times import KernelTime, KernelTimes, Order, Source, compare
from greencc.compiler.planning.space import Kind, Space
from greencc.compiler.signatures import Signature, signatures
from greencc.core.cache import Cache
from greencc.core.data import Feeds
from greencc.core.errors import GreenccError
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Pass, RewriteLog
from greencc.core.progress import silent
from greencc.passes._exclude import origins
from greencc.passes.offers import Offer, sketch, structural_steps

FLOAT: tuple[Pass, ...] = ()
_ROUNDING = 1e-9
# Times closer than this may be a tie.
_TIE = 0.05


@dataclass(frozen=True)
class Structure:
    """What a layer became: the kernels in its place."""

    kernels: tuple[Signature, ...]


@dataclass
class LayerCurve:
    """Relative time of a layer over its relative work, in one arithmetic: 1 at 1, piecewise linear in between."""

    points: list[tuple[float, float]] = field(default_factory=lambda: [(1.0, 1.0)])

    def add(self, work: float, time: float) -> None:
        self.points.append((work, time))
        self.points.sort()

    def at(self, work: float) -> float:
        """Of the nearest points; below the smallest it falls in proportion."""
        works = [point[0] for point in self.points]
        place = bisect_left(works, work)
        if place == len(works):
            return self.points[-1][1]
        high, time = self.points[place]
        if place == 0:
            return time * work / high if high else time
        low, before = self.points[place - 1]
        share = (work - low) / (high - low) if high > low else 1.0
        return before + share * (time - before)


@dataclass(frozen=True)
class LayerTimes:
    """Relative times of the layers; see the module.

    Attributes:
        curves: Over the work that channels leave, by layer and arithmetic.
        ranks: Relative time of a layer at each rank offered, by unit, option and arithmetic.
        sources: ``measured`` or ``interpolated``, by unit and option.
        findings: What could not be measured.
    """

    curves: Mapping[tuple[str, str], LayerCurve]
    ranks: Mapping[tuple[str, str, str], float]
    sources: Mapping[tuple[str, str], str]
    findings: tuple[str, ...]

    def share(self, layer: str, arithmetic: str, work: float) -> float:
        """Time of a layer with so much of its work left, as a share of its whole time."""
        if work >= 1.0 - _ROUNDING:
            return 1.0
        curve = self.curves.get((layer, arithmetic))
        return work if curve is None else curve.at(work)


def sketch_of(model: ir.Model, steps: Sequence[Pass], ctx: Context) -> ir.Model | None:
    """The model with the shapes that steps give it; None where they do not fit together."""
    bare = Context(
        capabilities=ctx.capabilities,
        build=ctx.build,
        samples=ctx.samples,
        rewrites=RewriteLog(),
        progress=silent,
        cache=Cache(),
    )
    found = model.clone()
    try:
        for step in sketch(tuple(steps)):
            step.apply(found, bare)
            infer_shapes(found)
    except GreenccError:
        return None
    return found


def structures(model: ir.Model, layers: Iterable[str], feeds: Feeds) -> dict[str, Structure]:
    """The kernels that each layer of the original has become in a sketch, by its name."""
    wanted = set(layers)
    kernels = signatures(model, feeds)
    found: dict[str, list[Signature]] = defaultdict(list)
    for node in model.graph:
        names = (str(node.name), *origins(node))
        layer = next((name for name in names if name in wanted), None)
        if layer is not None and node.name in kernels:
            found[layer].append(kernels[str(node.name)])
    return {name: Structure(tuple(kernels)) for name, kernels in found.items()}


@dataclass(frozen=True)
class _Sketch:
    """A sketch and the units that it shows at one of their options."""

    layers: dict[str, Structure]
    shown: list[tuple[str, str]]


def measure_layers(
    space: Space,
    model: ir.Model,
    ctx: Context,
    feeds: Feeds,
    times: KernelTimes,
    arithmetics: Mapping[str, tuple[Pass, ...]],
    work_left: Callable[[Mapping[str, str]], Mapping[str, float]],
) -> LayerTimes:
    """Measure the kernels of all sketches.

    Args:
        space: Its structural units.
        model: The cleaned-up model.
        ctx: Of the passes.
        feeds: One inference.
        times: Measures kernels.
        arithmetics: Passes that bring each of them, by name.
        work_left: Share of each layer's work that an assignment of channels leaves.
    """
    whole = structures(model, space.layers, feeds)
    levels = [_sketched(space, model, ctx, feeds, chosen) for chosen in _levels(space, Kind.CHANNELS)]
    ranked = [_sketched(space, model, ctx, feeds, chosen) for chosen in _levels(space, Kind.RANK)]
    needed = {
        kernel
        for found in (whole, *(item.layers for item in (*levels, *ranked) if item is not None))
        for structure in found.values()
        for kernel in structure.kernels
    }
    curves: dict[tuple[str, str], LayerCurve] = {}
    ranks: dict[tuple[str, str, str], float] = {}
    sources: dict[tuple[str, str], str] = {}
    findings: list[str] = []
    if not any(item is not None for item in (*levels, *ranked)):
        return LayerTimes(curves, ranks, sources, ())
    order = sorted(needed, key=repr)
    for arithmetic, steps in arithmetics.items():
        known = times.measure(order, steps)
        for item in levels:
            if item is None:
                continue
            left = work_left(dict(item.shown))
            for layer, structure in item.layers.items():
                share = _share(structure, whole.get(layer), known)
                work = left.get(layer, 1.0)
                if share is not None and work < 1.0 - _ROUNDING:
                    curves.setdefault((layer, arithmetic), LayerCurve()).add(work, min(share, 1.0))
        for item in ranked:
            for name, option in item.shown if item is not None else ():
                layer = space.unit(name).subject
                assert item is not None
                share = _share(item.layers.get(layer), whole.get(layer), known)
                if share is not None:
                    ranks[name, option, arithmetic] = share
                    sources[name, option] = "measured"
    findings += [note.message for note in times.findings]
    return LayerTimes(curves, ranks, sources, tuple(findings))


def _share(
    now: Structure | None, before: Structure | None, known: Mapping[Signature, KernelTime]
) -> float | None:
    """Time of a layer's kernels as a share of that of the whole layer; None where one is not known, 1 at a tie.

    A tie is a difference that is small, and that the intervals do not show.
    """
    if now is None or before is None:
        return None
    sums = [_sum(each, known) for each in (now, before)]
    if sums[0] is None or sums[1] is None or not sums[1].us:
        return None
    share = sums[0].us / sums[1].us
    tie = abs(share - 1.0) < _TIE and compare(sums[0], sums[1]) is Order.TIE
    return 1.0 if tie else share


def _sum(structure: Structure, known: Mapping[Signature, KernelTime]) -> KernelTime | None:
    """Times of kernels that run one after another; None where one is not known."""
    times = [known[kernel] for kernel in structure.kernels if kernel in known]
    if len(times) < len(structure.kernels):
        return None
    low, us, high = (sum(ends) for ends in zip(*((t.low, t.us, t.high) for t in times), strict=True))
    return KernelTime(us, low, high, 0, Source.MEASURED)


def _levels(space: Space, kind: Kind) -> list[dict[str, str]]:
    """Assignments that show every option of a kind once: all units at their first, second, ... option."""
    units = [unit for unit in space.units if unit.kind is kind]
    most = max((len(unit.options) for unit in units), default=1)
    return [
        {unit.name: unit.options[place] for unit in units if place < len(unit.options)}
        for place in range(1, most)
    ]


def _sketched(
    space: Space, model: ir.Model, ctx: Context, feeds: Feeds, shown: Mapping[str, str]
) -> _Sketch | None:
    offers: list[Offer] = [space.offers[pair] for pair in shown.items()]
    made = sketch_of(model, structural_steps(offers), ctx)
    if made is None:
        return None
    return _Sketch(structures(made, space.layers, feeds), list(shown.items()))
