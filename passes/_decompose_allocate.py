"""Which ranks every layer gets when the work of the whole model is to fall by a share: the least error for it.

Every layer has a front of candidates, over all forms and ranks: what each saves and what it loses, as a share of the
energy of the layer's outputs. Losses of different layers are compared by what the model's outputs make of them: a
typical candidate of each layer is put in its place, and tells how far the outputs move for the energy that it loses. On
the convex hulls of the fronts the next step is always the one with the least loss per
multiply-accumulate saved, which is the best there is for every amount of work that a step ends at (the Lagrangian
of the problem: Shoham and Gersho 1988); the last step takes of its layer's front the smallest that is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from greencc.passes._decompose_family import Family
from greencc.passes._decompose_forms import Method, families, forms_of
from greencc.passes._decompose_kernels import input_ranks
from greencc.passes._decompose_plan import Planned
from greencc.passes._decompose_problem import Problem
from greencc.passes._rank import aligned_ranks

# Ranks that are looked at where each has to be solved for.
_SOLVED = 4
_ROUNDING = 1e-9
# Share of a layer's energy that is lost where whole models lose a third of their work.
_TYPICAL = 0.05


@dataclass(frozen=True)
class Point:
    """A candidate of a layer.

    Attributes:
        planned: What the layer becomes.
        saved: Share of the layer's work.
        error: Share of its outputs' energy.
    """

    planned: Planned
    saved: float
    error: float


@dataclass(frozen=True)
class Layer:
    """A layer whose rank is to be chosen.

    Attributes:
        work: Its multiply-accumulates.
        weight: What an error of its outputs' whole energy does to the model's outputs.
        front: Its candidates, saving and losing ever more; none dominates another.
    """

    work: float
    weight: float
    front: Sequence[Point]


def front_of(problem: Problem, method: Method, *, align: int, most_lost: float) -> list[Point]:
    """What a layer may become, each with less error or less work than the others.

    Args:
        problem: The layer.
        method: The form, or `auto` for all.
        align: Ranks are multiples of this.
        most_lost: Error above which a candidate is left out.
    """
    points: list[Point] = []
    for form in forms_of(problem, method):
        ranks = aligned_ranks(problem.channels - 1, align) if form is Method.TUCKER else []
        for family in families(problem, form, input_ranks(problem, ranks)):
            points += _points(family, form, align, most_lost)
    points.sort(key=lambda point: (point.error, -point.saved))
    front: list[Point] = []
    for point in points:
        if not front or point.saved > front[-1].saved:
            front.append(point)
    return front


def typical(front: Sequence[Point]) -> Point:
    """The candidate that stands for its layer when it is asked what the model's outputs make of its error."""
    return min(front, key=lambda point: abs(np.log(max(point.error, _ROUNDING) / _TYPICAL)))


def allocate(layers: Mapping[str, Layer], wanted: float) -> dict[str, Planned]:
    """Choose the ranks of layers by name; layers that stay whole are left out.

    Args:
        layers: By name.
        wanted: Multiply-accumulates to save; all that there are, where that is not enough.
    """
    steps = sorted(_steps(layers), key=lambda step: step[0])
    chosen: dict[str, Point] = {}
    saved = 0.0
    for _, name, point in steps:
        if saved >= wanted * (1.0 - _ROUNDING):
            break
        before = chosen[name].saved if name in chosen else 0.0
        if before >= point.saved:
            continue
        layer = layers[name]
        missing = before + (wanted - saved) / layer.work
        enough = (
            other
            for other in layer.front
            if before < other.saved and other.saved >= missing * (1 - _ROUNDING)
        )
        smallest = next(enough, point)
        chosen[name] = smallest if smallest.saved < point.saved else point
        saved += layer.work * (chosen[name].saved - before)
    return {name: chosen[name].planned for name in layers if name in chosen}


def _points(family: Family, form: Method, align: int, most_lost: float) -> Iterator[Point]:
    """The candidates of a family that keep enough, the largest rank first."""
    ranks = family.saving(align)
    if family.errors is None and len(ranks) > _SOLVED:
        ranks = [ranks[place] for place in np.linspace(0, len(ranks) - 1, _SOLVED).round().astype(int)]
    for rank in dict.fromkeys(family.needed(rank) for rank in reversed(ranks)):
        error = family.error(rank)
        if error > most_lost:
            # Smaller ranks lose more still, and some forms are dear to solve.
            return
        saved = 1.0 - family.cost(rank)[0] / family.problem.macs
        yield Point(Planned(form, (*family.fixed, rank)), saved, error)


def _steps(layers: Mapping[str, Layer]) -> Iterator[tuple[float, str, Point]]:
    """The steps along the hulls: loss per work saved, the layer, where the step ends."""
    for name, layer in layers.items():
        if not layer.work > 0.0:
            continue
        place, saved, error = 0, 0.0, 0.0
        while place < len(layer.front):
            slopes = [(point.error - error) / (point.saved - saved) for point in layer.front[place:]]
            # The furthest of equal ones.
            best = len(slopes) - 1 - int(np.argmin(slopes[::-1]))
            point = layer.front[place + best]
            yield layer.weight * slopes[best] / layer.work, name, point
            place, saved, error = place + best + 1, point.saved, point.error
