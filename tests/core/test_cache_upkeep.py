"""Listing, verifying and pruning a cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from greencc.core.cache import Cache, cache_key
from greencc.core.cache_upkeep import Limits, State, chosen, remove, stored_entries, verified
from greencc.core.errors import InputError, UsageError

NOW = 1_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six entries of two kinds, used 0 to 50 seconds before NOW, the first one longest ago."""
    cache = Cache(tmp_path)
    for index in range(6):
        kind = "time" if index % 2 else "error"
        cache.put(kind, cache_key(index), {"x": np.arange(100)}, label=f"entry {index}")
        used = NOW - 50 + 10 * index
        os.utime(tmp_path / kind / f"{cache_key(index)}.cache", (used, used))
    return tmp_path


def labels(entries: list) -> list[str]:
    return [entry.header.label for entry in entries]


def test_entries_are_listed_by_kind_and_last_use(folder: Path) -> None:
    entries = stored_entries(folder)
    assert labels(entries) == [f"entry {index}" for index in (0, 2, 4, 1, 3, 5)]
    assert {entry.state for entry in entries} == {State.USABLE}
    assert stored_entries(folder / "missing") == []


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        (Limits(everything=True), {0, 1, 2, 3, 4, 5}),
        (Limits(kind="time"), {1, 3, 5}),
        (Limits(kind="time", everything=True), {1, 3, 5}),
        (Limits(older_than=25.0), {0, 1, 2}),
        (Limits(older_than=25.0, kind="error"), {0, 2}),
        (Limits(older_than=99.0), set()),
        (Limits(larger_than=10**9), set()),
        (Limits(larger_than=0), {0, 1, 2, 3, 4, 5}),
    ],
)
def test_limits_choose_what_goes(folder: Path, limits: Limits, gone: set[int]) -> None:
    found = chosen(stored_entries(folder), limits, NOW)
    assert set(labels(found)) == {f"entry {index}" for index in gone}


def test_the_least_recently_used_go_until_the_rest_fits(folder: Path) -> None:
    entries = stored_entries(folder)
    size = max(entry.size for entry in entries)
    assert labels(chosen(entries, Limits(larger_than=4 * size), NOW)) == ["entry 0", "entry 1"]
    both = Limits(larger_than=4 * size, older_than=25.0)
    assert labels(chosen(entries, both, NOW)) == ["entry 0", "entry 1", "entry 2"]


def test_limits_that_make_no_sense_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing says which"):
        Limits()
    with pytest.raises(UsageError, match="--all"):
        Limits(everything=True, older_than=1.0)
    with pytest.raises(UsageError, match="no entries of kind 'tiem'") as caught:
        chosen(stored_entries(folder), Limits(kind="tiem"), NOW)
    assert "did you mean 'time'" in str(caught.value.hint)


def test_verifying_finds_what_listing_cannot_see(folder: Path) -> None:
    entries = stored_entries(folder)
    content = bytearray(entries[0].path.read_bytes())
    content[-150] ^= 1
    entries[0].path.write_bytes(content)
    entries[1].path.rename(entries[1].path.with_name("elsewhere.cache"))
    entries[2].path.write_bytes(b"")
    entries[3].path.unlink()
    entries[4].path.write_bytes(b"greencc cache 3\nof the future")
    listed = {entry.path: entry.state for entry in stored_entries(folder)}
    assert listed[entries[0].path] is State.USABLE
    assert listed[entries[2].path] is State.DAMAGED
    found = [verified(entry) for entry in stored_entries(folder)]
    states = {entry.path.name: entry.state for entry in found if entry is not None}
    assert states == {
        entries[0].path.name: State.DAMAGED,
        "elsewhere.cache": State.DAMAGED,
        entries[2].path.name: State.DAMAGED,
        entries[4].path.name: State.OTHER_VERSION,
        entries[5].path.name: State.USABLE,
    }
    assert verified(entries[3]) is None, "removed meanwhile"


def test_what_cannot_be_removed_is_named_and_the_rest_goes(folder: Path) -> None:
    entries = stored_entries(folder)
    entries[0].path.unlink()
    entries[0].path.mkdir()
    entries[1].path.unlink()
    with pytest.raises(InputError, match="1 of 6 entries could not be removed") as caught:
        remove(entries)
    assert str(entries[0].path) in caught.value.message
    (left,) = stored_entries(folder)
    assert left.state is State.UNREADABLE
    assert verified(left) == left


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot read the cache"):
        stored_entries(tmp_path / "file")
