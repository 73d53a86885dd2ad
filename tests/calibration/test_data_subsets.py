"""Splits, selections, overlap and synthetic data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.calibration import (
    Part,
    Source,
    Subset,
    open_data,
    overlap,
    sample_digests,
    split,
    synthetic,
    take,
)
from greencc.calibration.source import Batches, Indices, pick, rebatch
from greencc.core.data import Batch, TensorSpec
from greencc.core.errors import InputError, UsageError

F32 = np.dtype("float32")


class Memory(Source):
    """Values in memory, one a sample; counts how often it is read."""

    def __init__(self, values: Sequence[int], labelled: bool = True) -> None:
        super().__init__("memory", len(values), has_labels=labelled)
        self.values = np.array(values, np.float32)
        self.reads = 0

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        self.reads += 1
        values = self.values if wanted is None else self.values[wanted]
        for at in range(0, len(values), size):
            part = values[at : at + size]
            yield Batch({"x": part[:, None]}, part.astype(np.int64) if self.has_labels else None)


class Foreign:
    """A source that is not one of the package's own."""

    name, count, has_labels, synthetic = "foreign", 10, False, False

    def digest(self) -> str:
        return "0"

    def batches(self, size: int) -> Iterator[Batch]:
        for at in range(0, 10, size):
            yield Batch({"x": np.arange(at, min(at + size, 10))[:, None]})


def values(source: Any, size: int = 3) -> list[int]:
    return [int(v) for batch in source.batches(size) for v in batch.feeds["x"][:, 0]]


@settings(deadline=None)
@given(
    data=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    fractions=st.lists(st.floats(0.05, 0.33), min_size=1, max_size=3),
    seed=st.integers(-(2**40), 2**40),
    size=st.integers(1, 9),
)
def test_parts_are_disjoint_even_in_content(
    data: list[int], fractions: list[float], seed: int, size: int
) -> None:
    source = Memory(data)
    parts = [Part(f"p{i}", fraction=f) for i, f in enumerate(fractions)]
    try:
        subsets = split(source, parts, seed)
    except InputError:
        # Allowed only when there is not enough to go around.
        quotas = [round(f * len(data)) for f in fractions]
        assert min(quotas) < 1 or sum(quotas) > len(data) or len(set(data)) < len(data)
        return
    seen: set[int] = set()
    indices: set[int] = set()
    for part, subset in zip(parts, subsets, strict=True):
        own = values(subset, size)
        assert len(own) == subset.count
        assert own
        assert not seen & set(own)
        assert isinstance(subset, Subset)
        assert [data[i] for i in subset.indices] == own
        assert not indices & set(subset.indices.tolist())
        assert sorted(subset.indices.tolist()) == subset.indices.tolist()
        quota = round((part.fraction or 0) * len(data))
        assert subset.count < quota + max(data.count(v) for v in own) or len(parts) == 1
        seen |= set(own)
        indices |= set(subset.indices.tolist())


def test_parts_have_their_exact_size_without_copies() -> None:
    source = Memory(range(100))
    a, b, c = split(source, [Part("a", count=13), Part("b", fraction=0.25), Part("c", count=62)])
    assert (a.count, b.count, c.count) == (13, 25, 62)
    assert sorted(values(a) + values(b) + values(c)) == list(range(100))
    assert a.name == "memory[a]"


def test_fractions_may_use_everything() -> None:
    a, b = split(Memory(range(5)), [Part("a", fraction=0.5), Part("b", fraction=0.5)])
    assert a.count + b.count <= 5
    a, b = split(Memory(range(7)), [Part("a", fraction=0.5), Part("b", fraction=0.5)])
    assert (a.count, b.count) == (4, 3)


def test_split_follows_the_content_not_the_order() -> None:
    data = list(range(60))
    a, _ = split(Memory(data), [Part("a", count=20), Part("b", count=40)])
    again, _ = split(Memory(data[::-1]), [Part("a", count=20), Part("b", count=40)])
    other, _ = split(Memory(data), [Part("a", count=20), Part("b", count=40)], seed=1)
    assert set(values(a)) == set(values(again)) != set(values(other))
    assert values(a) != list(range(20))


def test_split_and_all_digests_read_the_data_once() -> None:
    source = Memory(range(40))
    a, b = split(source, [Part("a", count=10), Part("b", count=30)])
    digests = {source.digest(), a.digest(), b.digest()}
    assert source.reads == 1
    assert len(digests) == 3
    direct = Memory([int(v) for v in values(a)])
    assert direct.digest() == a.digest()


def test_copies_are_never_torn_apart() -> None:
    with pytest.raises(InputError, match="1 distinct samples among 50: none are left for 'b'"):
        split(Memory([7] * 50), [Part("a", fraction=0.5), Part("b", fraction=0.5)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, "at least one part"),
        (lambda: [Part("a", count=1), Part("a", count=2)], "the same name"),
        (lambda: [Part("a", count=6), Part("b", count=5)], "has 10 samples, the parts need more"),
        (lambda: [Part("a", fraction=0.7), Part("b", fraction=0.7)], "the parts need more"),
        (lambda: [Part("a")], "either a fraction or a count"),
        (lambda: [Part("a", fraction=0.1, count=3)], "either a fraction or a count"),
        (lambda: [Part("a", fraction=1.5)], "not in"),
        (lambda: [Part("a", count=0)], "not positive"),
        (lambda: [Part("a", fraction=0.01)], "none for 'a'"),
    ],
)
def test_bad_splits(make: Any, message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        split(Memory(range(10)), make())


def test_overlap_finds_copies_whatever_the_labels() -> None:
    a = Memory([5, 1, 9, 1])
    b = Memory([2, 9, 9, 3, 5], labelled=False)
    assert overlap(a, b).tolist() == [1, 2, 4]
    assert overlap(b, a).tolist() == [0, 2]
    assert overlap(Memory([1]), Memory([2])).tolist() == []
    digests = list(sample_digests(a))
    assert [len(d) for d in digests] == [16] * 4
    assert digests[1] == digests[3] != digests[0]


def test_sources_from_elsewhere_can_be_split() -> None:
    a, b = split(Foreign(), [Part("a", count=4), Part("b", count=6)])
    assert sorted(values(a) + values(b)) == list(range(10))
    assert a.digest() != b.digest()
    assert values(take(Foreign(), 10)) == list(range(10))
    assert len(values(take(a, 2))) == 2


@settings(deadline=None)
@given(count=st.integers(1, 200), n=st.integers(1, 200), seed=st.integers(0, 99))
def test_take_spreads_evenly(count: int, n: int, seed: int) -> None:
    got = values(take(Memory(range(count)), n, seed))
    assert len(got) == min(n, count)
    if n < count:
        for i, v in enumerate(got):
            assert i * count // n <= v < (i + 1) * count // n


def test_take_refuses_nothing() -> None:
    with pytest.raises(UsageError, match="limit of 0"):
        take(Memory([1]), 0)


@given(
    sizes=st.lists(st.integers(0, 9), max_size=12),
    size=st.integers(1, 10),
    data=st.data(),
)
def test_rebatch_and_pick_keep_order_and_size(sizes: list[int], size: int, data: st.DataObject) -> None:
    total = sum(sizes)
    borders = np.cumsum([0, *sizes])
    pieces = [Batch({"x": np.arange(a, b)}, np.arange(a, b)) for a, b in itertools.pairwise(borders)]
    batches = list(rebatch(pieces, size))
    assert [v for b in batches for v in b.feeds["x"]] == list(range(total))
    assert all(b.count == size for b in batches[:-1])
    wanted = np.array(
        sorted(data.draw(st.sets(st.integers(0, total - 1)) if total else st.just(set()))), np.int64
    )
    assert [v for b in pick(pieces, wanted) for v in b.feeds["x"]] == wanted.tolist()


MIXED = [
    TensorSpec("ids", np.dtype("int64"), ("N", "T")),
    TensorSpec("attention_mask", np.dtype("int64"), ("N", "T")),
    TensorSpec("image", np.dtype("uint8"), (1, None, 5)),
    TensorSpec("flag", np.dtype("bool"), ("N", 3)),
    TensorSpec("x", np.dtype("float16"), ("N", 4)),
]


def test_synthetic_samples_are_plausible_and_reproducible() -> None:
    source = synthetic(MIXED, 10, dims={"T": 6})
    (batch,) = source.batches(10)
    assert source.synthetic
    assert "nothing can be certified" in source.notes[0]
    assert {n: (a.shape, a.dtype.name) for n, a in batch.feeds.items()} == {
        "ids": ((10, 6), "int64"),
        "attention_mask": ((10, 6), "int64"),
        "image": ((10, 64, 5), "uint8"),
        "flag": ((10, 3), "bool"),
        "x": ((10, 4), "float16"),
    }
    assert set(np.unique(batch.feeds["ids"])) == {0, 1}
    assert batch.feeds["attention_mask"].all()
    assert batch.feeds["image"].max() > 200
    assert 0.5 < batch.feeds["x"].std() < 1.5
    singly = [b.feeds["x"][0] for b in synthetic(MIXED, 4, dims={"T": 6}).batches(1)]
    np.testing.assert_array_equal(np.stack(singly), batch.feeds["x"][:4])
    assert (
        synthetic(MIXED, 3).digest() == synthetic(MIXED, 3).digest() != synthetic(MIXED, 3, seed=1).digest()
    )


def test_synthetic_as_named_on_the_command_line() -> None:
    assert open_data("synthetic", MIXED).count == 64
    assert open_data("synthetic:5", MIXED).count == 5
    assert open_data("synthetic:500", MIXED, limit=7).count == 7
    a, b = split(open_data("synthetic:9", MIXED), [Part("a", count=4), Part("b", count=5)])
    assert a.synthetic
    assert len(overlap(a, b)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: synthetic([TensorSpec("x", F32, None)]), "unknown rank"),
        (lambda: synthetic([TensorSpec("x", F32, ())]), "is a scalar"),
        (lambda: synthetic([TensorSpec("x", np.dtype(object), (1, 2))]), "only numbers"),
        (lambda: synthetic(MIXED, 0), "not positive"),
        (lambda: synthetic(MIXED, 1, dims={"T": 0}), "T=0 is not positive"),
        (lambda: open_data("synthetic:0", MIXED), "not positive"),
        (lambda: open_data("synthetic:x", MIXED), "synthetic:x names no number of samples"),
    ],
)
def test_synthetic_refusals(make: Any, message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        make()
