"""Which groups stay in float: the knapsack is exact, the search returns only what was verified."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.compiler.keep_float import Item, best_subset, search
from greencc.compiler.session import Deadline

ITEMS = st.lists(st.tuples(st.floats(0, 10), st.floats(-2, 5)), min_size=1, max_size=7)


@settings(max_examples=60)
@given(ITEMS, st.floats(0, 20))
def test_the_subset_saves_as_much_as_any(pairs: list[tuple[float, float]], allowed: float) -> None:
    items = [Item(str(index), error, saved) for index, (error, saved) in enumerate(pairs)]
    chosen = best_subset(items, allowed)
    assert sum(item.error for item in items if item.name in chosen) <= allowed * (1 + 1e-6) + 1e-6
    found = sum(item.saved_mj for item in items if item.name in chosen)
    best = 0.0
    for size in range(len(items) + 1):
        for some in combinations(items, size):
            if sum(item.error for item in some) <= allowed * (1 - 1e-6):
                best = max(best, sum(item.saved_mj for item in some))
    assert found >= best - 1e-3


class Fake:
    """Accuracy holds while the true errors (not those in the table) stay below a limit."""

    def __init__(self, errors: dict[str, float], limit: float) -> None:
        self.errors, self.limit = errors, limit
        self.built: list[frozenset[str]] = []
        self.open: set[int] = set()

    def build(self, chosen: frozenset[str]) -> tuple[int, frozenset[str]]:
        self.built.append(chosen)
        self.open.add(len(self.built))
        return len(self.built), chosen

    def holds(self, result: tuple[int, frozenset[str]]) -> bool:
        return sum(self.errors[name] for name in result[1]) <= self.limit

    def drop(self, result: tuple[int, frozenset[str]]) -> None:
        self.open.remove(result[0])


def items_of(errors: dict[str, float], saved: dict[str, float]) -> list[Item]:
    return [Item(name, errors[name], saved[name]) for name in errors]


def test_one_culprit_is_all_that_stays_in_float() -> None:
    errors = {f"layer{i}": 0.001 for i in range(30)} | {"head": 50.0}
    fake = Fake(errors, 1.0)
    found = search(
        items_of(errors, dict.fromkeys(errors, 1.0)), fake.build, fake.holds, fake.drop, Deadline(60)
    )
    assert found is not None
    assert found.quantized == frozenset(errors) - {"head"}
    assert fake.open == {found.result[0]}, "what is not returned must be dropped"
    assert len(fake.built) < 12


def test_early_layers_are_tried_together_where_the_table_misleads() -> None:
    """The table blames the late layers; what ruins the model is that the early ones add up."""
    names = [f"layer{i:02d}" for i in range(16)]
    true = {name: 1.0 if index < 6 else 0.001 for index, name in enumerate(names)}
    table = {name: 0.01 * (1 + index) for index, name in enumerate(names)}
    fake = Fake(true, 0.5)
    found = search(
        items_of(table, dict.fromkeys(names, 1.0)), fake.build, fake.holds, fake.drop, Deadline(60)
    )
    assert found is not None
    assert found.quantized == frozenset(names[6:])
    assert fake.open == {found.result[0]}


def test_of_two_ways_the_cheaper_one_in_joules_is_taken() -> None:
    errors = {"big": 1.0, "small": 1.0, "rest": 0.1}
    saved = {"big": 10.0, "small": 1.0, "rest": 1.0}
    fake = Fake(errors, 1.2)
    found = search(items_of(errors, saved), fake.build, fake.holds, fake.drop, Deadline(60))
    assert found is not None
    assert found.quantized == {"big", "rest"}


def test_a_table_that_overrates_errors_is_corrected_by_trying() -> None:
    table = dict.fromkeys("abcdef", 1.0)
    truth = dict.fromkeys("abcdef", 0.1)
    fake = Fake(truth, 0.45)
    found = search(
        items_of(table, dict.fromkeys(table, 1.0)), fake.build, fake.holds, fake.drop, Deadline(60)
    )
    assert found is not None
    assert len(found.quantized) == 4


def test_what_costs_joules_is_never_quantized() -> None:
    errors = {"a": 0.0, "b": 0.0}
    fake = Fake(errors, 1.0)
    found = search(
        [Item("a", 0.1, 1.0), Item("b", 0.0, -1.0)], fake.build, fake.holds, fake.drop, Deadline(60)
    )
    assert found is not None
    assert found.quantized == {"a"}


def test_nothing_verified_means_nothing_returned() -> None:
    errors = {"a": 1.0, "b": 2.0}
    fake = Fake(errors, 0.0)
    assert (
        search(items_of(errors, {"a": 1.0, "b": 1.0}), fake.build, fake.holds, fake.drop, Deadline(60))
        is None
    )
    assert not fake.open


def test_no_build_starts_after_the_deadline() -> None:
    errors = {"a": 1.0, "b": 2.0}
    fake = Fake(errors, 10.0)
    assert (
        search(items_of(errors, {"a": 1.0, "b": 1.0}), fake.build, fake.holds, fake.drop, Deadline(0)) is None
    )
    assert not fake.built


@pytest.mark.parametrize("seed", range(5))
def test_three_hundred_groups_are_solved_exactly_enough(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = [Item(str(i), float(rng.lognormal(0, 2)), float(rng.lognormal(0, 1))) for i in range(300)]
    allowed = 0.1 * sum(item.error for item in items)
    chosen = best_subset(items, allowed)
    greedy, spent = 0.0, 0.0
    for item in sorted(items, key=lambda item: -item.saved_mj / item.error):
        if spent + item.error <= allowed:
            greedy, spent = greedy + item.saved_mj, spent + item.error
    assert sum(item.saved_mj for item in items if item.name in chosen) >= greedy - 1e-6
