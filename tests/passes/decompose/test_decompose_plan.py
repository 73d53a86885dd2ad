"""Ranks that are given, and ranks that are chosen for the whole model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.data import Array
from greencc.core.describe import describe
from greencc.core.engine import Timing
from greencc.core.errors import UsageError
from greencc.core.pass_list import format_passes, parse_passes
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.core.report import Interval
from greencc.passes import PASSES
from greencc.passes._decompose_allocate import Layer, Point, allocate
from greencc.passes._decompose_family import RankRule
from greencc.passes._decompose_forms import Method
from greencc.passes._decompose_plan import Planned, format_plan, parse_plan
from greencc.passes.decompose import Decompose

Random = Callable[..., Array]
# Of `network`: a 3x3 Conv from 16 to 32 channels, another from 32 to 64, a Gemm from 64 to 20.
FIRST, SECOND, LAST = "Conv_0", "Conv_2", "Gemm_6"


def network(kit: Any) -> ir.Model:
    text = """g (float[N,16,8,8] x) => (float[N,20] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        r = Relu(a)
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w1)
        s = Relu(c)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w2, b2)
    }"""
    generator = np.random.default_rng(4)

    def weight(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return kit.parse(
        text,
        w0=weight(32, 16, 3, 3),
        b0=np.ones(32, np.float32),
        w1=weight(64, 32, 3, 3),
        w2=weight(20, 64),
        b2=np.ones(20, np.float32),
    )


def bytes_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def macs(model: ir.Model) -> int:
    found = describe(model, {"N": 1}).macs
    assert found is not None
    return found


def test_a_plan_is_done_to_the_letter(kit: Any, random: Random) -> None:
    model, feeds = network(kit), {"x": random(16, 16, 8, 8)}
    ranks = (f"{SECOND}=tucker:12x20", f"{FIRST}=channel:7", f"{LAST}=svd:5")
    slow = Timing((1.0, 2.0), (Interval(0.5, 0.4, 0.6),))
    result, outcome, _ = kit.run(model, feeds, ranks=ranks, time=lambda models, feeds: slow, repair=False)
    shapes = {
        str(value.name): tuple(value.shape.numpy())
        for value in result.graph.initializers.values()
        if value.shape
    }
    assert sorted(shape for name, shape in shapes.items() if "factor" in name) == sorted(
        [(7, 16, 3, 3), (32, 7, 1, 1), (12, 32, 1, 1), (20, 12, 3, 3), (64, 20, 1, 1), (5, 64), (20, 5)]
    )
    assert sorted(outcome.chosen["ranks"]) == sorted(ranks)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": RankRule.ENERGY, "energy": 0.7},
        {"rank": RankRule.RATIO, "ratio": 0.4},
        {"rank": RankRule.LAYER_RATIO, "ratio": 0.4},
        {"rank": RankRule.RATIO, "ratio": 0.3, "method": Method.TUCKER},
    ],
)
def test_what_was_chosen_can_be_given_back(kit: Any, random: Random, options: dict[str, Any]) -> None:
    model, feeds = network(kit), {"x": random(64, 16, 8, 8)}
    first, outcome, _ = kit.run(model, feeds, min_elements=256, align=4, **options)
    ranks = outcome.chosen["ranks"]
    assert ranks
    again, repeated, _ = kit.run(model, feeds, min_elements=256, align=4, ranks=ranks, **options)
    assert bytes_of(again) == bytes_of(first)
    assert repeated.chosen == outcome.chosen


def test_a_plan_goes_through_recipes_and_lists() -> None:
    step = Decompose(ranks=("/a:0/conv=svd:16", "b=c=tucker:8x12"))
    assert parse_recipe(dump_recipe([step]), PASSES) == (step,)
    assert parse_passes(format_passes([step]), PASSES) == (step,)
    # A colon before a digit needs no backslash.
    text = "decompose:ranks=/a:0/conv=svd:16+b=c=tucker:8x12:measured=false,prune:0.3"
    first, second = parse_passes(text, PASSES)
    assert first == Decompose(ranks=step.ranks, measured=False)
    assert second.name == "prune"
    assert format_plan(parse_plan(step.ranks, "ranks")) == step.ranks
    with pytest.raises(UsageError, match="no option 'measurd'"):
        parse_passes("decompose:ranks=a=svd:1:measurd=false", PASSES)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("conv", "no layer with its ranks"),
        ("=svd:4", "no layer with its ranks"),
        ("conv=svd", "no layer with its ranks"),
        ("conv=svd:-4", "no layer with its ranks"),
        ("conv=svd:4.5", "no layer with its ranks"),
        ("conv=svdd:4", "did you mean 'svd'"),
        ("conv=auto:4", "unknown form 'auto'"),
        ("conv=svd:4x4", "svd has one rank, not 2"),
        ("conv=tucker:4", "tucker has two ranks, not 1"),
    ],
)
def test_a_malformed_plan_is_refused_at_once(item: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decompose(ranks=(item,))


def test_a_layer_comes_once() -> None:
    with pytest.raises(UsageError, match="'a' comes twice"):
        Decompose(ranks=("a=svd:4", "a=svd:5"))


@pytest.mark.parametrize(
    ("item", "message", "options"),
    [
        ("Conv_1=channel:4", "no node is named 'Conv_1'.*did you mean 'Conv_", {}),
        ("Relu_1=svd:4", "'Relu_1' cannot be factorised: it has no constant weights", {}),
        (f"{LAST}=svd:4", f"'{LAST}' cannot be factorised: it has no constant", {"min_elements": 4000}),
        (f"{LAST}=svd:4", f"'{LAST}' cannot be factorised: .*excluded", {"exclude": (LAST,)}),
        (f"{FIRST}=svd:4", "cannot be svd:4: svd is for products and 1x1", {}),
        (f"{LAST}=tucker:4x4", "cannot be tucker:4x4: tucker is for convolutions", {}),
        (f"{LAST}=svd:0", "a rank is at least 1 .*between 1 and 15", {}),
        (f"{LAST}=svd:21", "its rank is at most 20 .*between 1 and 15", {}),
        (f"{LAST}=svd:20", "saves no work.*between 1 and 15", {}),
        (f"{SECOND}=tucker:33x4", "it reads 32 channels .*between 1 and 32", {}),
        (f"{SECOND}=tucker:0x4", "a rank is at least 1 .*between 1 and 32", {}),
        (f"{SECOND}=tucker:4x0", "a rank is at least 1 .*between 1 and 36", {}),
        (f"{SECOND}=tucker:32x64", "saves no work", {}),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    kit: Any, random: Random, item: str, message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        kit.run(network(kit), {"x": random(4, 16, 8, 8)}, ranks=(item,), **{"min_elements": 256, **options})


@pytest.mark.parametrize("rank", [0, 22, 32, 33, 999])
def test_the_rank_that_is_proposed_is_the_largest_that_works(kit: Any, random: Random, rank: int) -> None:
    model = kit.parse("g (float[N,32] x) => (float[N,64] y) { y = Gemm(x, w) }", w=random(32, 64))
    feeds = {"x": random(64, 32)}
    with pytest.raises(UsageError, match=r"between 1 and 21\b"):
        kit.run(model, feeds, ranks=(f"Gemm_0=svd:{rank}",))
    _, outcome, _ = kit.run(model, feeds, ranks=("Gemm_0=svd:21",))
    assert outcome.chosen == {"ranks": ("Gemm_0=svd:21",)}


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_form_that_never_saves_is_to_be_left_out(kit: Any, random: Random, rank: int) -> None:
    model = kit.parse("g (float[N,2] x) => (float[N,2] y) { y = Gemm(x, w) }", w=random(2, 2))
    with pytest.raises(UsageError, match="leave the layer out"):
        kit.run(model, {"x": random(64, 2)}, ranks=(f"Gemm_0=svd:{rank}",), min_elements=1)


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
def test_the_ratio_is_that_of_the_model(kit: Any, random: Random, ratio: float) -> None:
    model, feeds = network(kit), {"x": random(64, 16, 8, 8)}
    result, outcome, _ = kit.run(
        model, feeds, rank=RankRule.RATIO, ratio=ratio, min_elements=256, align=1, repair=False
    )
    saved = 1 - macs(result) / macs(model)
    assert ratio <= saved < ratio + 0.05
    assert not [item for item in outcome.findings if item.kind == "warning"]
    # The same share of every layer costs the outputs more.
    equal, _, _ = kit.run(
        model, feeds, rank=RankRule.LAYER_RATIO, ratio=ratio, min_elements=256, align=1, repair=False
    )
    assert kit.energy_lost(model, result, feeds) <= 1.05 * kit.energy_lost(model, equal, feeds)


def test_a_ratio_out_of_reach_is_said(kit: Any, random: Random) -> None:
    model, feeds = network(kit), {"x": random(64, 16, 8, 8)}
    result, outcome, _ = kit.run(model, feeds, rank=RankRule.RATIO, ratio=0.95, min_elements=256, align=1)
    (warning,) = [item.message for item in outcome.findings if item.kind == "warning"]
    saved = 1 - macs(result) / macs(model)
    assert f"only {saved:.0%}" in warning


def test_layers_that_are_no_faster_stay(kit: Any, random: Random) -> None:
    model, feeds = network(kit), {"x": random(16, 16, 8, 8)}
    slow = Timing((1.0, 2.0), (Interval(0.5, 0.4, 0.6),))
    options = {"rank": RankRule.RATIO, "ratio": 0.3, "min_elements": 256}
    result, outcome, _ = kit.run(model, feeds, time=lambda models, feeds: slow, **options)
    assert bytes_of(result) == bytes_of(model)
    assert outcome.chosen == {}
    assert "measured 0.50x" in " ".join(item.message for item in outcome.findings)


def fronts() -> st.SearchStrategy[list[Layer]]:
    """Layers with a few candidates that save and lose ever more."""
    steps = st.lists(st.tuples(st.floats(0.05, 0.3), st.floats(0.01, 0.3)), min_size=1, max_size=3)

    def layer(work: float, weight: float, parts: list[tuple[float, float]]) -> Layer:
        sums = np.cumsum(parts, axis=0)
        form = Planned(Method.SVD, (1,))
        return Layer(work, weight, [Point(form, float(saved), float(error)) for saved, error in sums])

    return st.lists(st.builds(layer, st.floats(1.0, 9.0), st.floats(0.1, 3.0), steps), min_size=1, max_size=4)


def _ranked(layers: list[Layer]) -> dict[str, Layer]:
    """The same with ranks that tell the candidates apart."""
    return {
        str(number): Layer(
            layer.work,
            layer.weight,
            [
                Point(Planned(Method.SVD, (place,)), item.saved, item.error)
                for place, item in enumerate(layer.front)
            ],
        )
        for number, layer in enumerate(layers)
    }


@settings(max_examples=60, deadline=None)
@given(fronts(), st.floats(0.05, 0.9))
def test_allocation_is_enough_and_near_the_best(layers: list[Layer], share: float) -> None:
    named = _ranked(layers)
    wanted = share * sum(layer.work * layer.front[-1].saved for layer in layers)
    chosen = allocate(named, wanted)

    def total(places: dict[str, int]) -> tuple[float, float]:
        saved = sum(named[name].work * named[name].front[place].saved for name, place in places.items())
        lost = sum(named[name].weight * named[name].front[place].error for name, place in places.items())
        return saved, lost

    places = {name: planned.ranks[0] for name, planned in chosen.items()}
    saved, lost = total(places)
    assert saved >= wanted * (1 - 1e-6)
    options = [[-1, *range(len(layer.front))] for layer in named.values()]
    best = np.inf
    for combination in product(*options):
        picked = {name: place for name, place in zip(named, combination, strict=True) if place >= 0}
        reached, cost = total(picked)
        if reached >= wanted * (1 - 1e-9):
            best = min(best, cost)
    # Off the best by the last step at most.
    last = max(layer.weight * layer.front[-1].error for layer in layers)
    assert lost <= best + last + 1e-9


def test_a_layer_that_matters_keeps_its_rank() -> None:
    points = [
        Point(Planned(Method.SVD, (rank,)), saved, error)
        for rank, saved, error in [(8, 0.3, 0.1), (4, 0.6, 0.3)]
    ]
    layers = {"dear": Layer(100.0, 10.0, points), "cheap": Layer(100.0, 1.0, points)}
    assert allocate(layers, 55.0) == {"cheap": Planned(Method.SVD, (4,))}
    # The last step is no larger than it must be.
    assert allocate(layers, 25.0) == {"cheap": Planned(Method.SVD, (8,))}
    assert set(allocate(layers, 1e9)) == {"dear", "cheap"}
    assert allocate({}, 10.0) == {}
