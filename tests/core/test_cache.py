"""The result cache: what is kept, what counts as absent, and that it never breaks a compile."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from greencc.core.cache import Cache, cache_key, default_folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_an_entry_comes_back_in_another_process(cache: Cache) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "name": np.array(["x", "yy"])}
    cache.put("statistics", cache_key("k"), arrays)
    found = Cache(cache.folder).get("statistics", cache_key("k"))
    assert found is not None
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["a"], arrays["a"])
    np.testing.assert_array_equal(found["name"], arrays["name"])
    assert cache.get("statistics", cache_key("other")) is None
    assert cache.get("gptq", cache_key("k")) is None


def test_without_a_folder_entries_live_in_memory() -> None:
    cache = Cache()
    cache.put("a", "k", {"x": np.ones(2)})
    assert cache.get("a", "k") is not None
    assert Cache().get("a", "k") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_entry_counts_as_absent(cache: Cache, damage: str) -> None:
    cache.put("a", "k", {"x": np.arange(100)})
    assert cache.folder is not None
    (path,) = cache.folder.glob("a/*.cache")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[:-10]
    elif damage == "flip":
        content[200] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not an entry at all" * 10)
    path.write_bytes(content)
    assert cache.get("a", "k") is None


def test_objects_are_never_unpickled_or_kept(cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject|pickle"):
        cache.put("a", "k", {"x": np.array([{}], dtype=object)})
    assert cache.get("a", "k") is None


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=30_000)
    for index, key in enumerate(("old", "used", "new")):
        cache.put("a", key, {"x": np.arange(1000)})
        os.utime(tmp_path / "a" / f"{key}.cache", (index + 1, index + 1))
    os.utime(tmp_path / "a" / "used.cache", (10, 10))
    cache.put("a", "newest", {"x": np.arange(1000)})
    assert cache.get("a", "old") is None
    assert cache.get("a", "used") is not None
    assert cache.get("a", "newest") is not None


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file")
    cache.put("a", "k", {"x": np.ones(1)})
    assert cache.problem is not None
    assert str(tmp_path) in cache.problem
    assert cache.get("a", "k") is None


def test_keys_tell_things_apart() -> None:
    parts = [
        ("a", "b"), ("ab",), ("a", ["b"]), (1,), ("1",), (1.0,), (True,), (None,), (b"a",), ({"a": 1},), ({"a": 2},),
        (np.zeros(2),), (np.zeros(2, np.float32),), (np.zeros((2, 1)),), (np.array([0.0, 1.0]),),
    ]  # fmt: skip
    keys = [cache_key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        cache_key(object())


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GREENCC_CACHE", "")
    assert default_folder() is None
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("GREENCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "greencc"


def test_hits_are_entries_that_earlier_runs_left(cache: Cache) -> None:
    cache.put("a", "k", {"x": np.ones(2)})
    assert cache.get("a", "k") is not None
    assert cache.hits == 0
    later = Cache(cache.folder)
    for _ in range(3):
        assert later.get("a", "k") is not None
    assert later.get("a", "other") is None
    assert later.hits == 1
