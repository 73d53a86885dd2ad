"""The scheduler alone, and on a simulated clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.execution.schedule import Demand, Place, Scheduler
from greencc.execution.simulate import Faults, Simulation, lower_bound, simulate

NAMES = ("jetson", "pixel", "pi")
demands = st.lists(
    st.builds(
        Demand,
        cost=st.integers(0, 20).map(float),
        devices=st.lists(st.sampled_from(NAMES), unique=True, max_size=3).map(tuple),
        affinity=st.sampled_from([None, "a", "b"]),
    ),
    max_size=25,
)
faults = st.builds(
    Faults,
    probability=st.sampled_from([0.0, 0.3, 0.8]),
    repair=st.sampled_from([0.0, 5.0]),
    retries=st.integers(0, 3),
    seed=st.integers(0, 5),
)


def overlaps(found: Simulation) -> bool:
    """Whether a place had two tasks at a time."""
    at: defaultdict[Place, list[tuple[float, float]]] = defaultdict(list)
    for span in found.spans:
        at[span.place].append((span.start, span.end))
    return any(
        later[0] < earlier[1]
        for spans in at.values()
        for earlier, later in zip(sorted(spans), sorted(spans)[1:], strict=False)
    )


@given(demands, st.integers(1, 4), faults)
def test_every_task_runs_once_where_it_may_and_nothing_shares_a_place(
    wanted: Sequence[Demand], workers: int, broken: Faults
) -> None:
    found = simulate(wanted, workers, broken)
    finished = [span.index for span in found.spans if not span.lost]
    assert sorted([*finished, *found.failed]) == list(range(len(wanted)))
    assert not overlaps(found)
    for span in found.spans:
        devices = wanted[span.index].devices
        assert span.place.device in (devices or (None,))
    assert len({span.place for span in found.spans if span.place.device is None}) <= workers
    if not broken.probability:
        assert found.makespan >= found.bound - 1e-9
        assert not found.failed


@given(demands, st.integers(1, 4), faults)
def test_a_lost_task_is_tried_again_as_often_as_allowed(
    wanted: Sequence[Demand], workers: int, broken: Faults
) -> None:
    found = simulate(wanted, workers, broken)
    for index in range(len(wanted)):
        attempts = [span for span in found.spans if span.index == index]
        assert len(attempts) <= broken.retries + 1
        assert all(span.lost for span in attempts[:-1])
        assert (index in found.failed) == (attempts[-1].lost)


@given(st.lists(st.integers(1, 50).map(float), min_size=1, max_size=30), st.integers(1, 6))
def test_equal_workers_stay_within_grahams_bound(costs: list[float], workers: int) -> None:
    found = simulate([Demand(cost) for cost in costs], workers)
    # Longest first is within 4/3 of the best; of the bound, which may be below the best, within 2 - 1/m.
    assert found.makespan <= (2.0 - 1.0 / workers) * found.bound + 1e-9


@given(demands, st.integers(1, 4), faults)
def test_the_same_input_gives_the_same_schedule(
    wanted: Sequence[Demand], workers: int, broken: Faults
) -> None:
    assert simulate(wanted, workers, broken) == simulate(wanted, workers, broken)


def test_longest_first_then_the_place_that_knows_the_files_then_the_first() -> None:
    wanted = [Demand(1.0, affinity="a"), Demand(1.0, affinity="b"), Demand(1.0, affinity="b"), Demand(3.0)]
    scheduler = Scheduler(wanted, 1)
    order = []
    while (start := scheduler.next()) is not None:
        order.append(start.index)
        scheduler.done(start.place)
        if start.index == 3:
            # As if the place had just run a task of this kind.
            scheduler._last[start.place] = "b"
    assert order == [3, 1, 2, 0]


def test_several_devices_run_at_once_and_the_less_wanted_one_first() -> None:
    wanted = [Demand(devices=("a", "b")), Demand(devices=("a",)), Demand(devices=("a", "b"))]
    scheduler = Scheduler(wanted, 1)
    starts = [scheduler.next(), scheduler.next(), scheduler.next()]
    assert [(start.index, start.place.device) for start in starts if start is not None] == [
        (0, "b"),
        (1, "a"),
    ]
    assert starts[2] is None
    assert scheduler.waiting == 1
    first = starts[0]
    assert first is not None
    scheduler.done(first.place)
    again = scheduler.next()
    assert again is not None
    assert (again.index, again.place.device) == (2, "b")


def test_a_place_under_repair_gets_nothing() -> None:
    scheduler = Scheduler([Demand(), Demand()], 1)
    start = scheduler.next()
    assert start is not None
    assert scheduler.lost(start.place, usable=False) == start.index
    assert scheduler.next() is None
    scheduler.restore(start.place)
    assert scheduler.next() is not None


def test_what_was_given_up_does_not_start() -> None:
    scheduler = Scheduler([Demand(), Demand()], 1)
    start = scheduler.next()
    assert start is not None
    scheduler.give_up()
    scheduler.done(start.place)
    assert scheduler.next() is None
    assert not scheduler.busy


def test_the_bound_counts_every_set_of_devices() -> None:
    wanted = [Demand(2.0, ("a",)), Demand(2.0, ("a",)), Demand(4.0, ("a", "b")), Demand(4.0, ("a", "b"))]
    assert lower_bound(wanted, 1) == 6.0
    assert lower_bound([], 1) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Demand(-1.0),
        lambda: Demand(float("nan")),
        lambda: Scheduler([], 0),
        lambda: Faults(probability=1.0),
        lambda: Faults(repair=-1.0),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(ValueError):
        make()  # type: ignore[operator]


def test_a_thousand_devices_stay_busy() -> None:
    """Ten thousand tasks, a device in a hundred attempts lost: all done, and close to the bound."""
    kinds = [tuple(f"board {kind}.{number}" for number in range(50)) for kind in range(20)]
    wanted = [Demand(1.0 + index % 7, kinds[index % 20]) for index in range(10_000)]
    found = simulate(wanted, faults=Faults(0.01, repair=10.0, retries=5))
    assert not found.failed
    assert found.lost > 50
    assert len({span.place for span in found.spans}) == 1000
    assert found.makespan < 1.5 * found.bound
