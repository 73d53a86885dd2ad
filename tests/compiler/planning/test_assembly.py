"""The problem's totals against the model of a layer's time that they stand for."""

from __future__ import annotations

import itertools

import pytest

from greencc.compiler.planning.assembly import Corrections, Edge, LayerFacts, Tables, make_problem
from greencc.compiler.planning.kernels import LayerCurve, LayerTimes
from greencc.compiler.planning.space import Kind, PlanUnit, Space
from greencc.passes.offers import Offer, OfferKind
from greencc.planner.problem import Problem, Quantity

ARITHMETIC = PlanUnit(Kind.ARITHMETIC, "conv", ("float", "int8"), ("conv",))
NEXT = PlanUnit(Kind.ARITHMETIC, "next", ("float", "int8"), ("next",))
CHANNELS = PlanUnit(Kind.CHANNELS, "conv", ("whole", "48", "32"), ("conv", "next"))
INPUTS = PlanUnit(Kind.CHANNELS, "before", ("whole", "16"), ("conv",))
RANK = PlanUnit(Kind.RANK, "conv", ("whole", "svd:8"), ("conv",))
BLOCK = PlanUnit(Kind.BLOCK, "add", ("whole", "removed"), ("conv", "next", "add"))
US = {"conv": {"float": 100.0, "int8": 40.0}, "next": {"float": 60.0, "int8": 30.0}}
WORK = {("channels:conv", "48"): 0.75, ("channels:conv", "32"): 0.5, ("channels:before", "16"): 0.5}
RANK_WORK, RANK_TIME = 0.3, {"float": 0.4, "int8": 0.6}


def offer(kind: OfferKind, unit: str, option: str, nodes: tuple[str, ...]) -> Offer:
    return Offer(kind, unit, option, 0.01, nodes, 1.0)


def world(*units: PlanUnit, edges: tuple[Edge, ...] = ()) -> tuple[Space, Tables]:
    offers = {
        (CHANNELS.name, "48"): offer(OfferKind.CHANNELS, "conv", "48", CHANNELS.nodes),
        (CHANNELS.name, "32"): offer(OfferKind.CHANNELS, "conv", "32", CHANNELS.nodes),
        (INPUTS.name, "16"): offer(OfferKind.CHANNELS, "before", "16", INPUTS.nodes),
        (RANK.name, "svd:8"): offer(OfferKind.RANK, "conv", "svd:8", RANK.nodes),
        (BLOCK.name, "removed"): offer(OfferKind.BLOCK, "add", "removed", BLOCK.nodes),
    }
    names = {unit.name for unit in units}
    space = Space(
        units, {pair: item for pair, item in offers.items() if pair[0] in names}, {}, ("conv", "next"), None
    )
    curves = {(layer, number): LayerCurve() for layer in US for number in ("float", "int8")}
    # In float time follows the work, integers save half as much.
    for (_, number), curve in curves.items():
        for work in (0.25, 0.5, 0.75):
            curve.add(work, work if number == "float" else (1.0 + work) / 2.0)
    work = {
        (CHANNELS.name, "48"): {"conv": 0.75, "next": 0.75},
        (CHANNELS.name, "32"): {"conv": 0.5, "next": 0.5},
        (INPUTS.name, "16"): {"conv": 0.5},
        (RANK.name, "svd:8"): {"conv": RANK_WORK},
        (BLOCK.name, "removed"): {"conv": 0.0, "next": 0.0},
    }
    ranks = {(RANK.name, "svd:8", number): time for number, time in RANK_TIME.items()}
    layers = {
        layer: LayerFacts(us, {number: value / 10 for number, value in us.items()}, 1000, 1e6)
        for layer, us in US.items()
    }
    base = {Quantity.LATENCY: 0.2, Quantity.ENERGY: 20.0, Quantity.SIZE: 10_000.0, Quantity.MACS: 2e6}
    tables = Tables(
        layers,
        LayerTimes(curves, ranks, {}, ()),
        {("arithmetic:conv", "int8"): 1e-3},
        work,
        edges,
        base,
        {"float": 4.0, "int8": 1.0},
    )
    return space, tables


def problem_of(*units: PlanUnit, edges: tuple[Edge, ...] = ()) -> Problem:
    return make_problem(*world(*units, edges=edges), Corrections())


def share(number: str, work: float) -> float:
    return work if number == "float" else (1.0 + work) / 2.0


@pytest.mark.parametrize(
    ("number", "channels", "rank"),
    list(itertools.product(("float", "int8"), ("whole", "48"), ("whole", "svd:8"))),
)
def test_times_multiply(number: str, channels: str, rank: str) -> None:
    """Exact for one structural option; for two the pair is that of the arithmetic that layers mostly have."""
    problem = problem_of(ARITHMETIC, CHANNELS, RANK)
    totals = problem.totals({ARITHMETIC.name: number, CHANNELS.name: channels, RANK.name: rank})
    cut = 1.0 if channels == "whole" else 0.75
    low = 1.0 if rank == "whole" else RANK_TIME[number]
    conv = US["conv"][number] * share(number, cut) * low
    following = US["next"]["float"] * cut
    rest = 200.0 - 160.0
    if number == "int8" or channels == "whole" or rank == "whole":
        assert totals[Quantity.LATENCY] == pytest.approx((conv + following + rest) / 1e3)


def test_sizes_of_cut_layers_in_integers() -> None:
    problem = problem_of(ARITHMETIC, CHANNELS)
    totals = problem.totals({ARITHMETIC.name: "int8", CHANNELS.name: "48"})
    # 750 weights of a byte instead of 1000 of four, and 750 floats instead of 1000.
    assert totals[Quantity.SIZE] == pytest.approx(10_000 - (4_000 - 750) - 1_000)


def test_cuts_on_both_sides_of_a_layer_are_not_counted_twice() -> None:
    problem = problem_of(CHANNELS, INPUTS)
    totals = problem.totals({CHANNELS.name: "32", INPUTS.name: "16"})
    assert totals[Quantity.MACS] == pytest.approx(2e6 - 0.75e6 - 0.5e6)
    assert totals[Quantity.LATENCY] == pytest.approx((40.0 + 25.0 + 30.0) / 1e3)


def test_a_removed_block_takes_its_layers_time_in_any_arithmetic() -> None:
    problem = problem_of(ARITHMETIC, BLOCK)
    for number in ("float", "int8"):
        totals = problem.totals({ARITHMETIC.name: number, BLOCK.name: "removed"})
        assert totals[Quantity.LATENCY] == pytest.approx(0.04)


def test_nothing_is_decided_inside_a_removed_block() -> None:
    problem = problem_of(BLOCK, CHANNELS, RANK)
    assert not problem.allows({BLOCK.name: "removed", CHANNELS.name: "48", RANK.name: "whole"}, ())
    assert not problem.allows({BLOCK.name: "removed", CHANNELS.name: "whole", RANK.name: "svd:8"}, ())
    assert problem.allows({BLOCK.name: "removed", CHANNELS.name: "whole", RANK.name: "whole"}, ())


def test_a_rank_that_saves_nothing_of_what_channels_leave_is_not_chosen_with_them() -> None:
    space, tables = world(CHANNELS, RANK)
    tables.work[RANK.name, "svd:8"]["conv"] = 0.6  # type: ignore[index]
    problem = make_problem(space, tables, Corrections())
    assert not problem.allows({CHANNELS.name: "32", RANK.name: "svd:8"}, ())
    assert problem.allows({CHANNELS.name: "48", RANK.name: "svd:8"}, ())


def test_neighbours_of_different_arithmetic_pay_for_conversions() -> None:
    problem = problem_of(ARITHMETIC, NEXT, edges=(Edge("conv", "next", 5.0, 0.5),))
    both = problem.totals({ARITHMETIC.name: "int8", NEXT.name: "int8"})[Quantity.LATENCY]
    one = problem.totals({ARITHMETIC.name: "int8", NEXT.name: "float"})[Quantity.LATENCY]
    assert one - both == pytest.approx((60.0 - 30.0 + 5.0) / 1e3)


def test_corrections_scale_errors_and_savings() -> None:
    space, tables = world(ARITHMETIC, CHANNELS)
    corrections = Corrections({Kind.ARITHMETIC: 3.0}, {Kind.ARITHMETIC: 0.5})
    problem = make_problem(space, tables, corrections)
    totals = problem.totals({ARITHMETIC.name: "int8", CHANNELS.name: "whole"})
    assert totals[Quantity.ERROR] == pytest.approx(3e-3)
    assert totals[Quantity.LATENCY] == pytest.approx((200.0 - 30.0) / 1e3)


def test_a_curve_is_linear_between_its_points_and_proportional_below() -> None:
    curve = LayerCurve()
    curve.add(0.5, 0.8)
    assert curve.at(1.0) == 1.0
    assert curve.at(0.75) == pytest.approx(0.9)
    assert curve.at(0.25) == pytest.approx(0.4)
