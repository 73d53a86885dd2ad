"""Test campaigns: each cell once, whatever kills the run; one run at a time; only results that belong together."""

from __future__ import annotations

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greencc.core.errors import InputError, UnavailableError
from greencc.lab.campaign_record import BLOCK_COLUMNS
from greencc.lab.campaign_run import RunCallbacks, plan_run, run_test_campaign
from greencc.lab.campaign_store import open_store, read_records
from tests.lab.campaign_fakes import TEXT, FakeBench, make_spec

ROOT = Path(__file__).parents[2]
RESULTS = {
    "blocks.csv",
    "cells.jsonl",
    "index.html",
    "state.json",
    "summary.json",
    "summary.md",
    "bundles",
    ".lock",
}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "blocks.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_a_campaign_measures_every_cell_in_order_and_builds_first(tmp_path: Path) -> None:
    spec, bench, folder = make_spec(tmp_path), FakeBench(), tmp_path / "out"
    heard: list[tuple[str, int, int]] = []
    callbacks = RunCallbacks(
        finished=lambda record, number, total: heard.append((str(record.cell), number, total))
    )
    summary = run_test_campaign(spec, folder, bench, callbacks=callbacks)
    assert tuple(bench.cells) == spec.cells()
    assert {cell.variant for cell in bench.built} == {"original", "small"}
    assert len(bench.built) == 2
    assert heard == [(str(cell), number, 6) for number, cell in enumerate(spec.cells(), 1)]
    assert (summary.cells, summary.cells_measured, summary.complete) == (6, 6, True)
    assert {path.name for path in folder.iterdir()} == RESULTS
    found = rows(folder)
    assert tuple(found[0]) == BLOCK_COLUMNS
    assert len(found) == 24
    assert found[0]["campaign"] == "fake"
    assert found[0]["note"] == "two lines"
    assert len((folder / "blocks.csv").read_text().splitlines()) == 25


def test_a_finished_campaign_measures_nothing_again(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench())
    cells, blocks = (folder / "cells.jsonl").read_bytes(), (folder / "blocks.csv").read_bytes()
    again = FakeBench()
    summary = run_test_campaign(spec, folder, again)
    assert (again.cells, again.built, summary.cells_measured) == ([], [], 6)
    assert (folder / "cells.jsonl").read_bytes() == cells
    assert (folder / "blocks.csv").read_bytes() == blocks


def test_an_interrupt_says_how_far_it_came_and_the_next_run_goes_on(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        run_test_campaign(spec, folder, FakeBench(interrupt_after=2))
    (note,) = caught.value.__notes__
    assert note.startswith("2 of 6 measurements are kept")
    assert json.loads((folder / "summary.json").read_text())["cells_measured"] == 2
    bench = FakeBench()
    assert plan_run(spec, folder, bench).done == frozenset(spec.cells()[:2])
    run_test_campaign(spec, folder, bench)
    assert tuple(bench.cells) == spec.cells()[2:]
    assert len(rows(folder)) == 24


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    spec, folder, log = make_spec(tmp_path), tmp_path / "out", tmp_path / "log.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.campaign_fakes", str(tmp_path), "0.3"], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 60.0
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"another run uses .* \\(process {process.pid}\\)"):
            run_test_campaign(spec, folder, FakeBench())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    begun = log.read_text().splitlines()
    finished = [str(record.cell) for record in read_records(folder)]
    assert finished == begun[: len(finished)]
    assert len(begun) - len(finished) <= 1
    bench = FakeBench()
    run_test_campaign(spec, folder, bench)
    assert [str(cell) for cell in bench.cells] == [str(cell) for cell in spec.cells()[len(finished) :]]
    found = rows(folder)
    assert len(found) == 24
    assert all(row[key] for row in found for key in ("campaign", "repetition", "role", "seconds"))


def test_torn_lines_and_blocks_without_a_cell_are_dropped(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_test_campaign(spec, folder, FakeBench(interrupt_after=3))
    cells, blocks = (folder / "cells.jsonl"), (folder / "blocks.csv")
    lines = cells.read_text().splitlines(keepends=True)
    cells.write_text("".join(lines[:2]) + lines[2][:50])
    with blocks.open("a") as stream:
        stream.write("fake,net,small,here,3,arti")
    bench = FakeBench()
    run_test_campaign(spec, folder, bench)
    assert tuple(bench.cells) == spec.cells()[2:]
    assert len(read_records(folder)) == 6
    assert len(rows(folder)) == 24


def test_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench())
    cells = folder / "cells.jsonl"
    lines = cells.read_text().splitlines()
    for damage in (
        "{",
        json.dumps({**json.loads(lines[1]), "seconds": "x"}),
        lines[1].replace('"measured"', '"failed"'),
    ):
        cells.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        with pytest.raises(InputError, match="line 2") as caught:
            run_test_campaign(spec, folder, FakeBench())
        assert "--fresh" in (caught.value.hint or "")


def test_what_has_changed_is_named_and_fresh_begins_anew(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench())
    with pytest.raises(InputError, match="version of greencc") as caught:
        run_test_campaign(spec, folder, FakeBench(version="2"))
    assert "--fresh" in (caught.value.hint or "")
    with pytest.raises(InputError, match="version of greencc"):
        plan_run(spec, folder, FakeBench(version="2"))
    bench = FakeBench(version="2")
    assert plan_run(spec, folder, bench, fresh=True).done == frozenset()
    run_test_campaign(spec, folder, bench, fresh=True)
    assert len(bench.cells) == 6
    assert len(read_records(folder)) == 6
    assert len(rows(folder)) == 24


def test_one_run_at_a_time(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench())
    with (folder / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run uses"):
            run_test_campaign(spec, folder, FakeBench(), fresh=True)
    assert len(read_records(folder)) == 6


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(InputError, match="no campaign's folder"):
            run_test_campaign(spec, other, FakeBench(), fresh=fresh)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is not a folder"):
        run_test_campaign(spec, other / "thesis.tex", FakeBench())


def test_a_device_that_cannot_be_used_is_a_row_with_the_reason_and_tried_again(tmp_path: Path) -> None:
    text = TEXT.replace("[protocol]", '[[device]]\nname = "board"\nmeter = "jetson"\n[protocol]')
    spec, folder = make_spec(tmp_path, text), tmp_path / "out"
    bench = FakeBench(problems={"board": "the meter jetson gives no reading: no rails"})
    summary = run_test_campaign(spec, folder, bench)
    assert {cell.device for cell in bench.cells} == {"here"}
    assert (summary.cells, summary.cells_measured) == (12, 6)
    (row,) = [row for row in summary.rows if row.device == "board" and row.variant == "small"]
    assert (row.measured, row.latency, row.energy) == (0, None, None)
    assert row.reasons == ("the meter jetson gives no reading: no rails",)
    page = (folder / "index.html").read_text()
    assert "gives no reading: no rails" in page
    assert "gives no reading: no rails" in (folder / "summary.md").read_text()
    later = FakeBench()
    summary = run_test_campaign(spec, folder, later)
    assert {cell.device for cell in later.cells} == {"board"}
    assert summary.complete
    assert "no rails" not in (folder / "index.html").read_text()


def test_a_meter_that_fails_makes_a_cell_partial_and_it_is_measured_again(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    summary = run_test_campaign(spec, folder, FakeBench(meter_fails_in=(2,)))
    assert (summary.cells, summary.cells_measured, summary.cells_partial, summary.complete) == (
        6,
        4,
        2,
        False,
    )
    (row,) = [row for row in summary.rows if row.variant == "small"]
    assert (row.measured, row.partial) == (2, 1)
    assert row.latency is not None
    assert row.reasons == ("the plug failed 3 times in a row: no answer",)
    for name in ("index.html", "summary.md"):
        text = (folder / name).read_text()
        assert "2 of 3, 1 partial: the meter failed" in text, name
        assert "the plug failed 3 times in a row" in text, name
    assert [record.status for record in read_records(folder)].count("partial") == 2
    assert len(rows(folder)) == 24
    # Killed before it measures anything again: what there is stays.
    with pytest.raises(KeyboardInterrupt):
        run_test_campaign(spec, folder, FakeBench(interrupt_after=0))
    assert len(rows(folder)) == 24
    again = FakeBench()
    summary = run_test_campaign(spec, folder, again)
    assert [cell.repetition for cell in again.cells] == [2, 2]
    assert summary.complete
    assert summary.cells_partial == 0
    assert len(rows(folder)) == 24
    assert "the plug failed" not in (folder / "index.html").read_text()


def test_a_partial_cell_that_fails_the_next_time_takes_its_blocks_with_it(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench(meter_fails_in=(2,)))
    run_test_campaign(spec, folder, FakeBench(problems={"here": "unplugged"}))
    assert {row["repetition"] for row in rows(folder)} == {"1", "3"}


def test_damaged_blocks_are_an_error(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    run_test_campaign(spec, folder, FakeBench())
    with (folder / "blocks.csv").open("a") as stream:
        stream.write("x" * (csv.field_size_limit() + 1) + "\n")
    with pytest.raises(InputError, match="is damaged: field larger than") as caught:
        run_test_campaign(spec, folder, FakeBench())
    assert "--fresh" in (caught.value.hint or "")


def test_a_variant_that_cannot_be_built_does_not_stop_the_others(tmp_path: Path) -> None:
    spec, folder = make_spec(tmp_path), tmp_path / "out"
    bench = FakeBench(
        failures={"small": InputError("no such layer", hint="look"), "original": UnavailableError("gone")}
    )
    summary = run_test_campaign(spec, folder, bench)
    assert bench.cells == []
    assert len(bench.built) == 2
    statuses = {record.variant: (record.status, record.reason) for record in read_records(folder)}
    assert statuses == {
        "small": ("failed", "not built: no such layer (look)"),
        "original": ("unavailable", "not built: gone"),
    }
    assert summary.cells_measured == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match="cannot write"),
        open_store(tmp_path / "file" / "out", {"campaign": "x"}),
    ):
        pass
