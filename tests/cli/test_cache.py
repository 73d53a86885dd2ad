"""`greencc cache` from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from greencc.core.cache import Cache, cache_key
from greencc.core.errors import ExitCode

from .conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four measured times and a large entry of statistics, which is two days old."""
    found = tmp_path / "kept"
    monkeypatch.setenv("GREENCC_CACHE", str(found))
    monkeypatch.setenv("COLUMNS", "120")
    cache = Cache(found)
    for index in range(4):
        cache.put("kernel-time", cache_key(index), {"x": np.ones(3)}, label=f"Conv {index}", device="a board")
    cache.put("statistics", cache_key("s"), {"x": np.arange(5000)})
    path = found / "statistics" / f"{cache_key('s')}.cache"
    two_days_ago = path.stat().st_mtime - 2 * 86400
    os.utime(path, (two_days_ago, two_days_ago))
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-150] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/*.cache")}


def test_list_shows_kinds_with_their_origin(greencc: Run, folder: Path) -> None:
    outcome = greencc("cache", "list")
    assert outcome.code == ExitCode.OK
    rows = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert "a board; greencc" in rows["kernel-time"]
    assert rows["kernel-time"].split()[1] == "4"
    assert "40." in rows["statistics"]
    assert "kB" in rows["statistics"]
    assert "2 d" in rows["statistics"]
    assert str(folder) in outcome.out


def test_list_as_json_has_every_entry(greencc: Run, folder: Path) -> None:
    found = json.loads(greencc("cache", "list", "--json").out)
    assert [kind["kind"] for kind in found["kinds"]] == ["kernel-time", "statistics"]
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*/*.cache"))
    assert {entry["label"] for entry in found["entries"]} == {"", "Conv 0", "Conv 1", "Conv 2", "Conv 3"}
    assert {entry["state"] for entry in found["entries"]} == {"usable"}


def test_verify_exits_with_4_until_the_damaged_are_removed(greencc: Run, folder: Path) -> None:
    assert "5 entries checked: all whole" in greencc("cache", "verify").out
    (path,) = (folder / "statistics").glob("*.cache")
    flip(path)
    outcome = greencc("cache", "verify")
    assert outcome.code == ExitCode.BAD_INPUT
    assert f"damaged: {path}" in outcome.out
    found = greencc("cache", "verify", "--json")
    assert found.code == ExitCode.BAD_INPUT
    assert [entry["path"] for entry in json.loads(found.out)["bad"]] == [str(path)]
    outcome = greencc("cache", "verify", "--remove")
    assert outcome.code == ExitCode.OK
    assert "1 damaged or unreadable, removed" in outcome.out
    assert not path.exists()
    assert greencc("cache", "verify").code == ExitCode.OK


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "1d"], {"kernel-time"}),
        (["--older-than", "3d"], {"kernel-time", "statistics"}),
        (["--larger-than", "20kB"], {"kernel-time"}),
        (["--larger-than", "1GB"], {"kernel-time", "statistics"}),
        (["--kind", "kernel-time"], {"statistics"}),
        (["--kind", "kernel-time", "--older-than", "1h"], {"kernel-time", "statistics"}),
        (["--all"], set()),
    ],
)
def test_prune_removes_what_it_was_told(
    greencc: Run, folder: Path, options: list[str], left: set[str]
) -> None:
    before = files(folder)
    said = greencc("cache", "prune", *options, "--dry-run")
    assert said.code == ExitCode.OK
    assert "would be removed" in said.out
    assert files(folder) == before
    promised = json.loads(greencc("cache", "prune", *options, "--dry-run", "--json").out)
    assert {entry["kind"] for entry in promised["removed"]} == before - left
    assert greencc("cache", "prune", *options).code == ExitCode.OK
    assert files(folder) == left


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ([], "nothing says which entries to remove", "--older-than 30d"),
        (["--all", "--older-than", "1d"], "--all", ""),
        (["--older-than", "soon"], "not a duration", "30d"),
        (["--larger-than", "5 pounds"], "is no size", "500MB"),
        (["--larger-than", "-5MB"], "is no size", "500MB"),
        (["--kind", "kernel-tme"], "no entries of kind", "did you mean 'kernel-time'"),
    ],
)
def test_prune_refuses_what_it_cannot_do(
    greencc: Run, folder: Path, options: list[str], message: str, hint: str
) -> None:
    outcome = greencc("cache", "prune", *options)
    assert outcome.code == ExitCode.USAGE
    assert message in outcome.err
    assert hint in outcome.err
    assert outcome.out == ""
    assert files(folder) == {"kernel-time", "statistics"}


@pytest.mark.parametrize("action", [["list"], ["verify"], ["prune", "--all"]])
def test_an_empty_missing_or_refused_cache_is_told_of(
    greencc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: list[str]
) -> None:
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "none"))
    outcome = greencc("cache", *action)
    assert (outcome.code, outcome.out) == (0, f"nothing is kept in {tmp_path / 'none'} yet\n")
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("GREENCC_CACHE", "")
    outcome = greencc("cache", *action)
    assert outcome.code == 0
    assert "set to nothing" in outcome.out
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "file"))
    outcome = greencc("cache", *action)
    assert outcome.code == ExitCode.BAD_INPUT
    assert "cannot read the cache" in outcome.err


def test_what_cannot_be_removed_exits_with_4(greencc: Run, folder: Path) -> None:
    (path,) = (folder / "statistics").glob("*.cache")
    path.unlink()
    path.mkdir()
    outcome = greencc("cache", "prune", "--all")
    assert outcome.code == ExitCode.BAD_INPUT
    assert "1 of 5 entries could not be removed" in outcome.err
    assert "Traceback" not in outcome.err
