"""How many channels go, and what that saves: the estimate against the cut model, the choice against every other."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from greencc.core.describe import nodes_cost
from greencc.core.graph import ensure_names
from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes
from greencc.passes._prune_allocate import allocate, steps_of
from greencc.passes._prune_costs import work_model

SIZE = 6


def net(widths: tuple[int, ...], *, depthwise: bool = False) -> ir.Model:
    """A chain of 3x3 convolutions with Relu, and one class per output of the last."""
    rng = np.random.default_rng(0)
    nodes, weights, value, channels = [], [], "image", 3
    for index, width in enumerate((*widths, 2)):
        shape = (width, channels, 3, 3)
        weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{index}"))
        weights.append(numpy_helper.from_array(np.zeros(width, np.float32), f"b{index}"))
        nodes += [
            helper.make_node(
                "Conv", [value, f"w{index}", f"b{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"),
        ]
        value, channels = f"r{index}", width
        if depthwise and index < len(widths):
            kernel = rng.standard_normal((width, 1, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(kernel, f"d{index}"))
            nodes.append(
                helper.make_node(
                    "Conv", [value, f"d{index}"], [f"e{index}"], f"depth{index}", pads=[1] * 4, group=width
                )
            )
            value = f"e{index}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 2, SIZE, SIZE])],
        weights,
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    onnx.checker.check_model(ir.to_proto(model))
    ensure_names(model)
    infer_shapes(model)
    return model


def macs(model: ir.Model) -> int:
    return sum(cost.macs or 0 for cost in nodes_cost(model))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_a_cut_saves_is_what_the_cut_model_does_less(data: st.DataObject) -> None:
    widths = tuple(data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=4)))
    model = net(widths, depthwise=data.draw(st.booleans()))
    structure = analyse(model)
    work = work_model(model, structure.prunable, [])
    before = macs(model)
    assert work.whole == before
    removed = {}
    saved = 0.0
    for group in structure.prunable:
        count = data.draw(st.integers(0, group.size - 1))
        if count:
            removed[group.name] = list(range(count))
            promised = work.saved(group.name, count)
            assert work.remove(group.name, count) == promised
            saved += promised
    cut(model, structure, removed)
    infer_shapes(model)
    assert macs(model) == pytest.approx(before - saved)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=6, max_size=6), st.floats(0.05, 0.5))
def test_the_least_needed_channels_go_until_enough_is_saved(values: list[float], ratio: float) -> None:
    model = net((6,))
    (group,) = analyse(model).prunable
    scores = {group.name: np.array(values)}
    work = work_model(model, [group], [])
    found = allocate([group], scores, work, ratio=ratio, limit=0.99, align=1, whole=False)
    gone = found.removed.get(group.name, [])
    assert gone == sorted(gone)
    kept = [value for index, value in enumerate(values) if index not in gone]
    assert all(values[index] <= min(kept) for index in gone)
    per_channel = 1 / 6
    assert found.saved == pytest.approx(per_channel * len(gone))
    assert len(gone) == min(5, int(np.ceil(ratio / per_channel - 1e-9)))


def test_the_choice_over_groups_is_as_good_as_any() -> None:
    """Against every other choice that saves as much; steps of one channel, groups that do not touch."""
    model = net((4, 64, 4))
    groups = [group for group in analyse(model).prunable if group.size == 4]
    assert len(groups) == 2
    rng = np.random.default_rng(3)
    scores = {group.name: rng.uniform(0.1, 1.0, 4) for group in groups}
    found = allocate(
        groups, scores, work_model(model, groups, []), ratio=0.3, limit=0.99, align=1, whole=False
    )
    harm = sum(scores[name][channels].sum() for name, channels in found.removed.items())
    for counts in product(range(4), repeat=2):
        work = work_model(model, groups, [])
        saved = sum(work.remove(group.name, count) for group, count in zip(groups, counts, strict=True))
        if saved / work.whole >= found.saved - 1e-9:
            other = sum(
                np.sort(scores[group.name])[:count].sum() for group, count in zip(groups, counts, strict=True)
            )
            assert harm <= other + 1e-9


def test_no_group_loses_more_than_the_limit() -> None:
    model = net((8, 8))
    groups = analyse(model).prunable
    scores = {group.name: np.ones(group.size) for group in groups}
    found = allocate(
        groups, scores, work_model(model, groups, []), ratio=0.95, limit=0.5, align=1, whole=False
    )
    assert {name: len(channels) for name, channels in found.removed.items()} == {"conv0": 4, "conv1": 4}
    assert found.saved < 0.95


@pytest.mark.parametrize(
    ("size", "align", "limit", "expected"),
    [
        (64, 16, 0.7, [16, 32]),
        (64, 16, 0.9, [16, 32, 48]),
        (40, 16, 0.99, [8, 24]),
        (17, 16, 0.7, [1]),
        (6, 1, 0.5, [1, 2, 3]),
        # No multiple below the size: an eighth of it at once, or one channel.
        (16, 16, 0.3, [2, 4]),
        (12, 8, 0.2, [4]),
        (7, 8, 0.5, [1, 2, 3]),
    ],
)
def test_steps_leave_whole_blocks_of_the_kernels(
    size: int, align: int, limit: float, expected: list[int]
) -> None:
    (group,) = analyse(net((size,))).prunable
    steps, found = steps_of(group, align, limit, whole=True), [0]
    while (ahead := steps.after(found[-1])) is not None:
        found.append(ahead)
    # A step larger than the limit allows leaves the group as it is.
    assert found[1:] == [number for number in expected if number <= limit * size]


@pytest.mark.parametrize(
    ("size", "align", "expected"), [(64, 16, 8), (128, 16, 16), (16, 16, 2), (12, 8, 1), (7, 8, 1)]
)
def test_in_float_small_groups_are_cut_in_finer_steps(size: int, align: int, expected: int) -> None:
    (group,) = analyse(net((size,))).prunable
    steps = steps_of(group, align, 0.9, whole=False)
    assert (steps.unit, steps.narrow, steps.after(0)) == (expected, False, expected)


def test_narrow_groups_stay_whole_while_the_wide_ones_give_enough() -> None:
    model = net((16, 32, 64))
    groups = analyse(model).prunable
    # The narrow group is the cheapest by far.
    scores = {group.name: np.full(group.size, 1e-6 if group.size == 16 else 1.0) for group in groups}
    found = allocate(
        groups, scores, work_model(model, groups, []), ratio=0.4, limit=0.7, align=16, whole=True
    )
    sizes = {group.name: group.size - len(found.removed.get(group.name, ())) for group in groups}
    assert set(sizes.values()) <= {16, 32, 48, 64}
    assert sizes["conv0"] == 16
    assert found.saved >= 0.4
    more = allocate(
        groups, scores, work_model(model, groups, []), ratio=0.95, limit=0.7, align=16, whole=True
    )
    assert len(more.removed["conv0"]) == 10


class Fixed:
    """Work that goes with the channels of each group, whatever the others do."""

    whole = 100.0
    each: ClassVar[dict[str, float]] = {"conv0": 40 / 16, "conv1": 10 / 16}

    def saved(self, group: str, channels: int) -> float:
        return self.each[group] * channels

    remove = saved


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, {"conv1": 16}), (0.4, {"conv0": 16})])
def test_work_that_is_not_wanted_is_worth_nothing(ratio: float, expected: dict[str, int]) -> None:
    """A step of 40 % is the cheaper one per work, but not where a tenth is all that is still to go."""
    groups = [group for group in analyse(net((64, 32))).prunable if group.name in Fixed.each]
    scores = {"conv0": np.full(64, 40 / 16), "conv1": np.full(32, 15 / 16)}
    found = allocate(groups, scores, Fixed(), ratio=ratio, limit=0.7, align=16, whole=True)  # type: ignore[arg-type]
    assert {name: len(channels) for name, channels in found.removed.items()} == expected


def test_nothing_to_save_nothing_to_cut() -> None:
    model = net((4,))
    (group,) = analyse(model).prunable
    work = work_model(model, [group], [])
    work.macs = {}
    found = allocate([group], {group.name: np.ones(4)}, work, ratio=0.5, limit=0.9, align=1, whole=False)
    assert found.removed == {}
