"""Offers: what is offered, how near the predicted errors are to the real ones, and the steps that carry them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from greencc.calibration import Source, open_data
from greencc.core.cache import Cache
from greencc.core.describe import describe, input_specs
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import ensure_names
from greencc.core.groups import analyse
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Pass, RewriteLog
from greencc.core.shapes import bind_dims
from greencc.passes import _offer_channels, _offer_ranks
from greencc.passes._decompose_allocate import Point
from greencc.passes._decompose_forms import Method
from greencc.passes._decompose_plan import Planned
from greencc.passes._repair_gate import divergence
from greencc.passes._repair_split import Chosen
from greencc.passes.decompose import Decompose
from greencc.passes.drop_blocks import DropBlocks
from greencc.passes.offers import (
    Offer,
    OfferKind,
    block_offers,
    channel_offers,
    rank_offers,
    sketch,
    structural_steps,
)
from greencc.passes.prune import Prune
from greencc.targets import CpuTarget

WIDTH, SIZE, SAMPLES, SEEN = 16, 8, 128, 96
Find = Callable[..., list[Offer]]
FINDERS: tuple[Find, ...] = (channel_offers, rank_offers, block_offers)


def network() -> ir.Model:
    """A stem, two residual blocks of which one does little, and a classifier; inner layers are nearly of low rank."""
    text = f"""g (float[n,3,{SIZE},{SIZE}] x) => (float[n,5] y) {{
        s = Conv<pads=[1,1,1,1]>(x, ws, bs)
        r = Relu(s)
        a = Conv<pads=[1,1,1,1]>(r, wa)
        ar = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ar, wb)
        t = Add(r, b)
        tr = Relu(t)
        c = Conv<pads=[1,1,1,1]>(tr, wc)
        cr = Relu(c)
        d = Conv<pads=[1,1,1,1]>(cr, wd)
        u = Add(tr, d)
        ur = Relu(u)
        p = GlobalAveragePool(ur)
        f = Flatten(p)
        y = Gemm<transB=1>(f, wy, by)
    }}"""
    rng = np.random.default_rng(3)

    def weight(scale: float, *shape: int) -> np.ndarray[Any, Any]:
        # Energies of the output channels fall, so that some are needed less.
        fall = np.exp(-np.arange(shape[0]) / 6).reshape(-1, *[1] * (len(shape) - 1))
        values = fall * rng.standard_normal(shape) * scale / np.sqrt(np.prod(shape[1:]))
        return values.astype(np.float32)

    weights = {
        "ws": weight(1.5, WIDTH, 3, 3, 3),
        "bs": np.full(WIDTH, 0.1, np.float32),
        "wa": weight(1.5, WIDTH, WIDTH, 3, 3),
        "wb": weight(1.5, WIDTH, WIDTH, 3, 3),
        "wc": weight(1.5, WIDTH, WIDTH, 3, 3),
        "wd": weight(0.3, WIDTH, WIDTH, 3, 3),
        "wy": rng.standard_normal((5, WIDTH)).astype(np.float32),
        "by": np.zeros(5, np.float32),
    }
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    ensure_names(model)
    infer_shapes(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offers")
    images = np.random.default_rng(1).standard_normal((SAMPLES, 3, SIZE, SIZE)).astype(np.float32)
    # Smooth images: neighbours are alike, as in photographs.
    images = (images + np.roll(images, 1, 2) + np.roll(images, 1, 3)).astype(np.float32)
    np.savez(path / "seen.npz", x=images[:SEEN])
    np.savez(path / "unseen.npz", x=images[SEEN:])
    return path


def context(model: ir.Model, path: Path | None, cache: Cache | None = None) -> Context:
    target = CpuTarget(threads=1)
    source = None if path is None else open_data(path, input_specs(model))
    assert source is None or isinstance(source, Source)
    return Context(
        capabilities=replace(target.capabilities(), channel_alignment=1),
        build=target.reference,
        samples=[{"x": np.zeros((1, 3, SIZE, SIZE), np.float32)}],
        calibration=source,
        cache=cache or Cache(),
    )


@pytest.fixture(scope="module")
def ctx(folder: Path) -> Context:
    return context(network(), folder / "seen.npz")


def real(offers: list[Offer], model: ir.Model, folder: Path) -> list[float]:
    """The divergences on other data when each is carried out."""
    results = []
    for offer in offers:
        changed = model.clone()
        for step in structural_steps([offer]):
            assert step.apply(changed, context(model, folder / "seen.npz")).changed
            infer_shapes(changed)
        results.append(changed)
    other = context(model, folder / "unseen.npz")
    assert other.calibration is not None
    return divergence(model, results, Chosen(other.calibration, np.arange(other.calibration.count)), other)


def macs(model: ir.Model) -> int:
    found = describe(bind_dims(model, {"x": (1, 3, SIZE, SIZE)})).macs
    assert found is not None
    return found


@pytest.mark.parametrize("find", FINDERS)
def test_predicted_errors_are_near_the_real_ones(find: Find, ctx: Context, folder: Path) -> None:
    """Over a range of errors of more than ten, most are within a factor of three, and the order is kept."""
    model = network()
    offers = find(model, ctx)
    chosen = offers[:: max(1, len(offers) // 8)]
    predicted, found = np.array([offer.error for offer in chosen]), np.array(real(chosen, model, folder))
    ratios = predicted / np.maximum(found, 1e-9)
    assert 1 / 2.5 < np.median(ratios) < 2.5
    assert np.mean((ratios > 1 / 4) & (ratios < 4)) >= 0.75
    if len(chosen) > 3:
        ranks = [np.argsort(np.argsort(values)) for values in (predicted, found)]
        assert np.corrcoef(*ranks)[0, 1] > 0.7


def test_cuts_are_those_that_prune_can_make(ctx: Context) -> None:
    model = network()
    offers = channel_offers(model, ctx, levels=(0.75, 0.5), align=1)
    sizes = {group.name: group.size for group in analyse(model).prunable}
    assert {offer.unit for offer in offers} == set(sizes) == {"n_s", "n_a", "n_c"}
    assert [offer.option for offer in offers if offer.unit == "n_a"] == ["12", "8"]
    for offer in offers:
        changed = model.clone()
        Prune(channels=(f"{offer.unit}={offer.option}",), repair=False).apply(changed, ctx)
        assert offer.saved_macs == pytest.approx(macs(model) - macs(changed))
        assert offer.kind is OfferKind.CHANNELS
    inner = next(offer for offer in offers if offer.unit == "n_a")
    assert inner.nodes == ("n_a", "n_ar", "n_b")
    stream = next(offer for offer in offers if offer.unit == "n_s")
    assert set(stream.nodes) >= {"n_s", "n_r", "n_a", "n_b", "n_t", "n_tr", "n_d", "n_u", "n_p", "n_y"}
    assert "n_cr" not in stream.nodes
    more = [offer.error for offer in offers if offer.unit == "n_s"]
    assert 0.0 < more[0] < more[1]


def test_cuts_take_steps_of_the_kernels(ctx: Context) -> None:
    offers = channel_offers(network(), ctx, align=8)
    # A group of 16 is cut in finer steps in float: it would have one step only.
    assert {int(offer.option) for offer in offers} == {14, 12, 10, 8, 6}
    with pytest.raises(UsageError, match="levels"):
        channel_offers(network(), ctx, levels=(1.0,))
    with pytest.raises(UsageError, match="align"):
        channel_offers(network(), ctx, align=-1)


def test_ranks_are_a_front_of_each_layer(ctx: Context) -> None:
    model = network()
    offers = rank_offers(model, ctx, most=4)
    by_layer: dict[str, list[Offer]] = {}
    for offer in offers:
        by_layer.setdefault(offer.unit, []).append(offer)
    assert set(by_layer) == {"n_a", "n_b", "n_c", "n_d"}
    for layer, those in by_layer.items():
        assert 1 < len(those) <= 4
        assert all(offer.nodes == (layer,) for offer in those)
        for less, more in pairwise(those):
            assert less.saved_macs < more.saved_macs
            assert less.error < more.error
        changed = model.clone()
        Decompose(ranks=(f"{layer}={those[0].option}",), repair=False).apply(changed, ctx)
        infer_shapes(changed)
        assert those[0].saved_macs == pytest.approx(macs(model) - macs(changed))
    with pytest.raises(UsageError, match="most"):
        rank_offers(model, ctx, most=0)


def test_a_front_is_thinned_evenly() -> None:
    front = [
        Point(Planned(Method.SVD, (rank,)), saved, saved**2)
        for rank, saved in enumerate(np.arange(0.1, 0.9, 0.01))
    ]
    thin = _offer_ranks.spread_over(front, 5)
    assert [round(point.saved, 2) for point in thin] == [0.1, 0.3, 0.49, 0.69, 0.89]
    assert _offer_ranks.spread_over(front[:3], 5) == front[:3]


def test_blocks_that_do_little_are_cheap(ctx: Context) -> None:
    model = network()
    first, second = block_offers(model, ctx)
    assert (first.unit, second.unit) == ("n_t", "n_u")
    assert second.nodes == ("n_c", "n_cr", "n_d", "n_u")
    assert second.error < 0.5 * first.error
    changed = model.clone()
    DropBlocks(blocks=("n_u",), repair=False).apply(changed, ctx)
    assert second.saved_macs == pytest.approx(macs(model) - macs(changed))
    with pytest.raises(UsageError, match="samples"):
        block_offers(model, ctx, samples=0)


def test_the_model_is_left_as_it_is(ctx: Context) -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    for find in FINDERS:
        find(model, replace(ctx, cache=Cache()))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("find", FINDERS)
def test_a_second_call_costs_nothing(find: Find, folder: Path, tmp_path: Path) -> None:
    """Not even an engine, and from another process."""

    def forbidden(*args: Any, **more: Any) -> Any:
        raise AssertionError("an engine was built")

    model = network()
    once = context(model, folder / "seen.npz", Cache(tmp_path))
    offers = find(model, once)
    again = replace(once, cache=Cache(tmp_path), build=forbidden)
    assert offers
    assert find(network(), again) == offers
    # Other data or another model are another question.
    other = context(model, folder / "unseen.npz", Cache(tmp_path))
    with pytest.raises(AssertionError, match="engine"):
        find(model, replace(other, build=forbidden))
    changed = network()
    Prune(channels=("n_a=15",), repair=False).apply(changed, once)
    with pytest.raises(AssertionError, match="engine"):
        find(changed, again)


@pytest.mark.parametrize("find", FINDERS)
def test_when_the_time_is_over_what_was_found_is_all_and_is_not_kept(find: Find, folder: Path) -> None:
    model = network()
    ctx = context(model, folder / "seen.npz")
    everything = find(model, context(model, folder / "seen.npz"))
    assert find(model, ctx, over=lambda: True) == []
    asked = []

    def over() -> bool:
        asked.append(1)
        # Some look once more before they begin.
        return len(asked) > 3

    part = find(model, ctx, over=over)
    assert (
        len({offer.unit for offer in part}) < len({offer.unit for offer in everything})
        or find is block_offers
    )
    assert set(part) <= set(everything)
    assert find(model, ctx) == everything


@pytest.mark.parametrize("find", FINDERS)
def test_offers_need_data(find: Find) -> None:
    with pytest.raises(InputError, match="calibration data"):
        find(network(), context(network(), None))


def test_steps_do_what_was_chosen_and_their_sketch_has_the_same_shapes(ctx: Context) -> None:
    model = network()
    everything = [offer for find in FINDERS for offer in find(model, ctx)]

    def pick(kind: OfferKind, unit: str) -> Offer:
        return next(offer for offer in reversed(everything) if (offer.kind, offer.unit) == (kind, unit))

    chosen = [pick(OfferKind.RANK, "n_b"), pick(OfferKind.CHANNELS, "n_s"), pick(OfferKind.BLOCK, "n_u")]
    steps = structural_steps(chosen)
    assert [step.name for step in steps] == ["drop-blocks", "prune", "decompose"]
    assert structural_steps(chosen[:1]) == (
        Decompose(ranks=(f"n_b={chosen[0].option}",), measured=False, min_elements=0),
    )
    assert structural_steps([]) == ()

    def shapes(those: tuple[Pass, ...], used: Context) -> dict[str, object]:
        changed = model.clone()
        for step in those:
            step.apply(changed, replace(used, rewrites=RewriteLog()))
            infer_shapes(changed)
        check_model(changed)
        return {
            name: tuple(value.shape.numpy()) if value.shape is not None else None
            for name, value in changed.graph.initializers.items()
            # A repair may give a layer a bias.
            if value.shape is None or len(value.shape) > 1
        }

    built = shapes(steps, ctx)
    quick = shapes(sketch(steps), context(model, None))
    assert sorted(map(str, built.values())) == sorted(map(str, quick.values()))
    with pytest.raises(UsageError, match="no sketch"):
        sketch([Prune(), *_other()])


def _other() -> list[Pass]:
    from greencc.passes.quantize_weights import QuantizeWeights

    return [QuantizeWeights()]


def test_what_is_in_a_block_that_goes_is_left_out() -> None:
    def offer(kind: OfferKind, unit: str, option: str, *nodes: str) -> Offer:
        return Offer(kind, unit, option, 0.1, nodes, 1.0)

    block = offer(OfferKind.BLOCK, "outer", "removed", "a", "b", "inner", "outer")
    inside = offer(OfferKind.BLOCK, "inner", "removed", "b", "inner")
    group, layer = offer(OfferKind.CHANNELS, "a#1", "4", "a"), offer(OfferKind.RANK, "b", "svd:4", "b")
    other = offer(OfferKind.RANK, "c", "tucker:4x8", "c")
    assert structural_steps([other, group, inside, layer, block]) == (
        DropBlocks(blocks=("outer",)),
        Decompose(ranks=("c=tucker:4x8",), measured=False, min_elements=0),
    )
    with pytest.raises(UsageError, match="two options of rank were chosen for 'b'"):
        structural_steps([layer, replace(layer, option="svd:8")])


def test_groups_that_cannot_be_estimated_are_judged_by_noise(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set off against the others' noise; where no group can be estimated, noise alone tells more harm."""
    model = network()
    expected = {(offer.unit, offer.option): offer.error for offer in channel_offers(model, ctx)}
    plain = _offer_channels._Moments.has

    def ratios(hidden: set[str]) -> dict[str, float]:
        def has(moments: Any, readers: Any) -> bool:
            return plain(moments, readers) and not any(reader.node in hidden for reader in readers)

        monkeypatch.setattr(_offer_channels._Moments, "has", has)
        found = channel_offers(model, replace(ctx, cache=Cache()))
        assert [(offer.unit, offer.option) for offer in found] == list(expected)
        return {offer.unit: offer.error / expected[offer.unit, offer.option] for offer in found}

    one = ratios({"n_b"})
    assert one["n_s"] == 1.0
    assert 1 / 8 < one["n_a"] < 8
    assert one["n_a"] != 1.0
    assert min(ratios({"n_a", "n_b", "n_d"}).values()) > 8
