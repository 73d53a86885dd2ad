"""The file of tuned schedules: kept, merged, shared between processes, and never lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.core.errors import InputError
from greencc.core.report import Interval
from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.records import DamagedRecordError, from_line, merged, to_line

from .tuning_shared import PLACE, nothing_to_warn_of, record, schedule


def _open(path: Path) -> Database:
    return Database(path, nothing_to_warn_of())


def test_a_line_says_all_of_a_record():
    found = record(out={schedule(1): "slower", schedule(3): "it crashed"})
    assert from_line(to_line(found)) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:-1],
        lambda line: line.replace('"threads": 1', '"threads": 2'),
        lambda line: "0" * 16 + line[16:],
        lambda line: "",
        lambda line: "no record",
    ],
)
def test_a_line_that_was_changed_is_refused(change):
    with pytest.raises(DamagedRecordError, match="hash"):
        from_line(change(to_line(record())))


@pytest.mark.parametrize(
    "broken",
    [
        record(gain=1.0, best_us=Interval(3.0, 5.0, 4.0)),
        record(best_us=Interval(-1.0, -1.0, -1.0)),
        record(best=2, out={schedule(2): "slower"}),
        record(space=-1),
        record(best=1 << 30),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_even_with_its_hash(broken):
    with pytest.raises(DamagedRecordError):
        from_line(to_line(broken))


def test_what_was_kept_is_found_again(tmp_path):
    path = tmp_path / "folder" / "schedules"
    _open(path).put([record("a"), record("b")])
    again = _open(path)
    assert again.get("a", PLACE) == record("a")
    assert [item.workload for item in again.records()] == ["a", "b"]
    assert again.get("a", replace(PLACE, threads=2)) is None
    assert again.get("a", replace(PLACE, kernels=2)) is None
    assert again.get("c", PLACE) is None


def test_the_digest_is_that_of_the_best_schedules():
    database = Database(None, nothing_to_warn_of())
    empty = database.digest(PLACE)
    database.put([record("a"), record("b")])
    first = database.digest(PLACE)
    assert first != empty
    # More trials, the same best; and another place.
    database.put([record("a", out={schedule(1): "slower", schedule(3): "slower"}, created=9.0)])
    database.put([record("a", best=4, place=replace(PLACE, threads=2))])
    assert database.digest(PLACE) == first
    database.put([record("a", best=3, gain=2.0)])
    assert database.digest(PLACE) not in (first, empty)


def test_of_two_findings_the_larger_gain_stays_and_all_trials_count():
    first = record(best=2, gain=1.5, out={schedule(1): "slower"})
    second = record(best=3, gain=1.7, out={schedule(1): "slower", schedule(4): "it crashed"})
    for found in (merged(first, second), merged(second, first)):
        assert found.best == schedule(3)
        assert found.gain.value == 1.7
        assert found.out == {schedule(1): "slower", schedule(2): "slower", schedule(4): "it crashed"}
        assert found.complete
    assert merged(second, second) == second
    assert not first.complete


def test_a_default_that_changed_makes_earlier_gains_void():
    old, new = record(gain=3.0, created=1.0), record(default=schedule(4), gain=1.1, created=2.0)
    assert merged(old, new) == new
    assert merged(new, old) == new


def test_memory_only_where_there_is_no_folder(monkeypatch):
    monkeypatch.setenv("GREENCC_CACHE", "")
    database = Database(default_path(), nothing_to_warn_of())
    database.put([record()])
    assert database.get("dense-1", PLACE) == record()
    assert "GREENCC_CACHE" in (database.problem or "")


def test_a_damaged_file_is_set_aside_and_what_can_be_read_is_kept(tmp_path):
    path = tmp_path / "schedules"
    _open(path).put([record("a"), record("b"), record("c")])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    damaged = "".join([*lines[:2], lines[2].replace("slower", "faster"), lines[3]])
    path.write_text(damaged, encoding="utf-8")
    warnings: list[str] = []
    found = Database(path, warnings.append)
    assert [item.workload for item in found.records()] == ["a", "c"]
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert "line 3: its hash does not fit" in warnings[0]
    assert "2 tuned schedules could be read and are kept" in warnings[0]
    assert (tmp_path / "schedules.damaged-1").read_text(encoding="utf-8") == damaged
    assert [item.workload for item in _open(path).records()] == ["a", "c"]
    path.write_bytes(b"\xff\x00 noise")
    Database(path, warnings.append)
    assert (tmp_path / "schedules.damaged-2").read_bytes() == b"\xff\x00 noise"
    assert len(warnings) == 2


@pytest.mark.parametrize("content", ["", "greencc schedules 2\n", "{}\n", "greencc schedules 1"])
def test_a_file_of_another_kind_is_set_aside(tmp_path, content):
    path = tmp_path / "schedules"
    path.write_text(content, encoding="utf-8")
    warnings: list[str] = []
    database = Database(path, warnings.append)
    assert database.records() == []
    assert len(warnings) == 1
    assert (tmp_path / "schedules.damaged-1").read_text(encoding="utf-8") == content
    database.put([record()])
    assert _open(path).records() == [record()]


def test_a_file_that_cannot_be_read_costs_a_warning(tmp_path):
    path = tmp_path / "schedules"
    path.mkdir()
    warnings: list[str] = []
    database = Database(path, warnings.append)
    database.put([record()])
    assert database.get("dense-1", PLACE) == record()
    assert len(warnings) == 1
    assert str(path) in warnings[0]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    warnings: list[str] = []
    database = Database(blocked / "schedules", warnings.append)
    database.put([record()])
    database.put([record("b")])
    assert len(warnings) == 1
    assert len(database.records()) == 2
    assert database.problem is not None


def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path):
    good = Database(tmp_path / "folder" / "file", pytest.fail)
    good.check()
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["file.lock"]
    (tmp_path / "wall").write_text("a file", encoding="utf-8")
    problems: list[str] = []
    with pytest.raises(InputError, match="could not be kept") as refused:
        Database(tmp_path / "wall" / "file", problems.append).check()
    assert "GREENCC_CACHE" in (refused.value.hint or "")


def test_export_and_import(tmp_path):
    here, there = _open(tmp_path / "here"), _open(tmp_path / "there")
    here.put([record("a", best=3, gain=2.0), record("b")])
    there.put([record("a", best=2, gain=1.5), record("c")])
    assert here.export(tmp_path / "file") == 2
    taken, new = there.take(tmp_path / "file")
    assert {item.workload for item in taken} == {"a", "b"}
    assert new == 2
    assert there.take(tmp_path / "file")[1] == 0
    found = _open(tmp_path / "there")
    assert [item.workload for item in found.records()] == ["a", "b", "c"]
    best = found.get("a", PLACE)
    assert best is not None
    assert best.best == schedule(3)


def test_nothing_is_taken_from_a_file_that_is_damaged(tmp_path):
    _open(tmp_path / "here").put([record("a"), record("b")])
    text = (tmp_path / "here").read_text(encoding="utf-8")
    (tmp_path / "file").write_text(text[:-20], encoding="utf-8")
    there = _open(tmp_path / "there")
    with pytest.raises(InputError, match="line 3"):
        there.take(tmp_path / "file")
    with pytest.raises(InputError, match="is not a file"):
        there.take(tmp_path / "none")
    assert there.records() == []


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tuning_shared import nothing_to_warn_of, record
from greencc.targets._tvm.database import Database
name, count = sys.argv[2], int(sys.argv[4])
database = Database(Path(sys.argv[1]), nothing_to_warn_of())
print("ready", flush=True)
sys.stdin.readline()
number = 0
while number < count or count == 0:
    database.put([record(f"{name}-{number % 40}", created=float(number))])
    number += 1
"""


def _writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(path), name, str(Path(__file__).parent), str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "schedules"
    writers = [_writer(path, name, 30) for name in ("a", "b")]
    for process in writers:
        _go(process)
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(_open(path).records()) == 60


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "schedules"
    _open(path).put([record("first")])
    moments = random.Random(7)
    for _ in range(2):
        process = _writer(path, "a", 0)
        _go(process)
        time.sleep(moments.uniform(0.02, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert _open(path).get("first", PLACE) == record("first")
    # What a killed writer left half-written goes with the next write.
    (tmp_path / ".schedules.x1y2.part").write_text("greencc sch", encoding="utf-8")
    _open(path).put([record("last")])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["schedules", "schedules.lock"]
    assert _open(path).get("last", PLACE) == record("last")
