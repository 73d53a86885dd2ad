"""The result cache: what is kept, what counts as absent, and that it never breaks a compile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from greencc.core import cache as cache_module
from greencc.core import cache_entries
from greencc.core.cache import Cache, cache_key, default_folder
from greencc.core.cache_upkeep import State, stored_entries, verified
from greencc.core.version import __version__


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


@pytest.mark.parametrize("kept", ["folder", "memory"])
def test_an_entry_of_no_more_use_is_removed(kept: str, tmp_path: Path) -> None:
    found = Cache(tmp_path if kept == "folder" else None)
    for key in ("first", "second"):
        found.put("parts", key, {"a": np.ones(2)})
    for _ in range(2):
        found.remove("parts", "first")
        assert found.get("parts", "first") is None
        assert found.keys("parts") == ["second"]


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


def only_file(cache: Cache) -> Path:
    assert cache.folder is not None
    (path,) = cache.folder.glob("*/*.cache")
    return path


def test_a_damaged_entry_is_counted_and_replaced(cache: Cache) -> None:
    cache.put("a", "k", {"x": np.arange(100)})
    path = only_file(cache)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    later = Cache(cache.folder)
    assert later.get("a", "k") is None
    assert (later.damaged, later.other_versions, later.hits) == (1, 0, 0)
    later.put("a", "k", {"x": np.arange(3)})
    assert later.get("a", "k") is not None


def test_what_another_version_wrote_is_ignored_and_counted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in (cache_module, cache_entries):
            patch.setattr(module, "__version__", "0.0.9")
        cache.put("a", "k", {"x": np.arange(100)})
        assert cache.get("a", "k") is not None
    later = Cache(cache.folder)
    assert later.get("a", "k") is None
    assert (later.damaged, later.other_versions) == (0, 1)


@pytest.mark.parametrize("age", ["hash and archive", "a newer format"])
def test_other_formats_are_ignored_and_counted(cache: Cache, age: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(3))
    payload = buffer.getvalue()
    older = hashlib.sha256(payload).digest() + payload
    assert cache.folder is not None
    (cache.folder / "a").mkdir(parents=True)
    (cache.folder / "a" / "k.cache").write_bytes(
        older if age.startswith("hash") else b"greencc cache 37\nsomething"
    )
    assert cache.get("a", "k") is None
    assert (cache.damaged, cache.other_versions) == (0, 1)


def test_a_renamed_entry_answers_to_no_other_key(cache: Cache) -> None:
    cache.put("a", "k", {"x": np.ones(1)})
    only_file(cache).rename(only_file(cache).with_name("other.cache"))
    assert cache.get("a", "other") is None
    assert cache.damaged == 1


def test_an_entry_tells_what_it_is_for(cache: Cache) -> None:
    cache.put("a", "k", {"x": np.ones(1)}, label="Conv 3x3", device="a board")
    header = cache_entries.read_header(only_file(cache))
    assert (header.kind, header.key, header.version) == ("a", "k", __version__)
    assert (header.label, header.device) == ("Conv 3x3", "a board")


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_no_cut_of_a_file_is_read(cache: Cache, cut: int) -> None:
    cache.put("a", "k", {"x": np.ones(1)})
    path = only_file(cache)
    path.write_bytes(path.read_bytes()[:cut])
    assert cache.get("a", "k") is None
    with contextlib.suppress(cache_entries.DamagedEntryError, cache_entries.OtherVersionError):
        cache_entries.read_header(path)


def test_no_flipped_byte_goes_unnoticed(cache: Cache) -> None:
    cache.put("a", "k", {"x": np.ones(1)}, label="what")
    path = only_file(cache)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        assert cache.get("a", "k") is None
    assert cache.damaged + cache.other_versions == len(content)


def test_what_killed_processes_left_goes_with_the_next_trim(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=640)
    (tmp_path / "a").mkdir()
    old, new = (tmp_path / "a" / f".k.cache.{word}.part" for word in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    cache.put("a", "k", {"x": np.arange(100)})
    assert not old.exists()
    assert new.exists()


_BUSY = """
import sys
from pathlib import Path
import numpy as np
from greencc.core.cache import Cache, cache_key

cache, seed = Cache(Path(sys.argv[1]), limit=60_000), int(sys.argv[2])
rng = np.random.default_rng(seed)
found = 0
for _ in range(400):
    number = int(rng.integers(40))
    key = cache_key(number)
    arrays = cache.get("shared", key)
    if arrays is None:
        cache.put("shared", key, {"x": np.full(500, number)})
    else:
        assert (arrays["x"] == number).all()
        found += 1
assert cache.problem is None, cache.problem
assert cache.damaged == 0
print(found)
"""


def test_two_processes_share_a_folder_that_both_trim(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _BUSY, str(tmp_path / "cache")]
    running = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) > 0
    entries = stored_entries(tmp_path / "cache")
    assert entries
    assert sum(entry.size for entry in entries) < 40 * 4000, "they were trimmed"
    checked = [verified(entry) for entry in entries]
    assert {entry.state for entry in checked if entry is not None} == {State.USABLE}
    assert not list((tmp_path / "cache").rglob("*.part"))
