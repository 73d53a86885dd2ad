"""`greencc lab run`: exit codes, what is printed, real builds and measurements of a small model."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from greencc.bundle import load
from greencc.compiler import campaign
from greencc.core.errors import ExitCode, UnavailableError
from greencc.core.meter import Grade, Reading
from greencc.lab import campaign_bench
from greencc.lab.campaign_bench import LabBench
from greencc.lab.campaign_file import read_campaign
from greencc.lab.campaign_store import read_records
from greencc.measure import protocols
from greencc.meters import opening
from tests.lab.campaign_fakes import FakeBench, make_spec

Run = Callable[..., Any]

DIGITS = """
schema = "greencc.campaign/1"
name = "digits"
[[model]]
name = "digits"
path = "model.onnx"
calibration = "calibration.npz"
eval = "eval.npz"
[[variant]]
name = "original"
original = true
[[variant]]
name = "int8"
precision = "int8"
max_drop = "5%"
effort = "quick"
[[device]]
name = "here"
[protocol]
name = "quick"
repetitions = 1
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, digits: Path) -> FakeBench:
    bench = FakeBench()
    monkeypatch.setattr(campaign_bench, "LabBench", lambda spec, progress: bench)
    make_spec(digits)
    return bench


def test_a_campaign_prints_a_table_and_where_the_page_is(fake: FakeBench, greencc: Run) -> None:
    done = greencc("lab", "run", "campaign.toml")
    assert done.code == ExitCode.OK, done.err
    assert "Summary: fake.campaign/index.html" in done.out
    assert "Energy: measured, grade B, test rail." in done.out
    assert "[1/6] net, " in done.err
    assert len(fake.cells) == 6
    again = greencc("lab", "run", "campaign.toml", "--resume", "--json")
    assert json.loads(again.out)["schema"] == "greencc.campaign-summary/1"
    assert len(fake.cells) == 6
    assert greencc("lab", "run", "campaign.toml", "--fresh").code == ExitCode.OK
    assert len(fake.cells) == 12


def test_a_dry_run_writes_nothing(fake: FakeBench, digits: Path, greencc: Run) -> None:
    before = sorted(digits.rglob("*"))
    done = greencc("lab", "run", "campaign.toml", "--dry-run")
    assert done.code == ExitCode.OK
    assert "6 of 6 measurements to do" in done.out
    assert sorted(digits.rglob("*")) == before
    assert fake.cells == fake.built == []


def test_an_interrupt_exits_with_130_and_says_how_to_go_on(fake: FakeBench, greencc: Run) -> None:
    fake.interrupt_after = 2
    done = greencc("lab", "run", "campaign.toml")
    assert done.code == ExitCode.INTERRUPTED
    assert "2 of 6 measurements are kept in fake.campaign; the same command goes on from there" in done.err
    fake.interrupt_after = None
    assert greencc("lab", "run", "campaign.toml").code == ExitCode.OK
    assert len(fake.cells) == 6


def test_what_could_not_be_measured_exits_with_5(fake: FakeBench, greencc: Run) -> None:
    fake.problems = {"here": "no such board"}
    done = greencc("lab", "run", "campaign.toml")
    assert done.code == ExitCode.UNAVAILABLE
    assert "no such board" in done.err


def test_bad_campaigns_are_refused_and_leave_nothing(digits: Path, refused: Run) -> None:
    refused(("lab", "run", "none.toml"), ExitCode.BAD_INPUT, "cannot read the campaign")
    (digits / "bad.toml").write_text(DIGITS.replace('"int8"\nmax', '"int7"\nmax'))
    refused(("lab", "run", "bad.toml"), ExitCode.BAD_INPUT, "precision is 'int7'", "did you mean 'int8'")
    (digits / "meter.toml").write_text(DIGITS.replace("[protocol]", 'meter = "jetsn"\n[protocol]'))
    refused(("lab", "run", "meter.toml"), ExitCode.USAGE, "no meter 'jetsn'", "jetson")
    (digits / "model.onnx").write_bytes(b"no model")
    (digits / "good.toml").write_text(DIGITS)
    refused(("lab", "run", "good.toml"), ExitCode.BAD_INPUT, "model.onnx")


def test_no_password_gets_into_the_results(
    digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digits / "meter.toml").write_text(
        DIGITS.replace("[protocol]", 'meter = "shelly:http://admin:hunter2@127.0.0.1:9"\n[protocol]')
    )
    refused = greencc("lab", "run", "meter.toml", "-o", "out")
    assert refused.code == ExitCode.BAD_INPUT
    assert "GREENCC_METER_PASSWORD" in refused.err
    assert "hunter2" not in refused.out + refused.err
    assert not (digits / "out").exists()
    (digits / "meter.toml").write_text(
        DIGITS.replace("[protocol]", 'meter = "shelly:http://127.0.0.1:9?timeout=0.2"\n[protocol]')
    )
    monkeypatch.setenv("GREENCC_METER_PASSWORD", "hunter2")
    done = greencc("lab", "run", "meter.toml", "-o", "out")
    assert done.code == ExitCode.UNAVAILABLE
    written = [path for path in (digits / "out").rglob("*") if path.is_file()]
    assert {"summary.json", "index.html", "summary.md", "cells.jsonl"} <= {path.name for path in written}
    assert "127.0.0.1:9" in (digits / "out" / "summary.json").read_text()
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in done.out + done.err


@pytest.fixture
def short(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load of a moment, too."""
    monkeypatch.setattr(
        campaign, "QUICK_PROFILE", replace(campaign.QUICK_PROFILE, seconds=0.2, rounds=4, min_rounds=4)
    )


@dataclass
class DyingMeter:
    """Counts 5 W for a while."""

    dies_after: float
    began: float | None = None
    name: str = "plug"
    grade: Grade = Grade.A
    boundary: str = "wall"
    period_s: float = 0.001
    uncertainty: float | None = 0.01

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        now = time.monotonic()
        self.began = self.began or now
        if now - self.began > self.dies_after:
            raise UnavailableError("no answer")
        return Reading(now, {"wall": 5.0 * now})


def test_a_named_meter_that_dies_is_said_and_nothing_takes_its_place(
    short: None, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [replace(each, idle_seconds=0.2, block_seconds=0.1, periods=10) for each in protocols.PROTOCOLS]
    monkeypatch.setattr(protocols, "PROTOCOLS", tuple(replace(each, warm_up_seconds=0.0) for each in made))
    monkeypatch.setattr(opening, "open_meter", lambda spec: DyingMeter(0.1))
    text = DIGITS.replace(
        '[[variant]]\nname = "int8"\nprecision = "int8"\nmax_drop = "5%"\neffort = "quick"\n', ""
    )
    (digits / "dying.toml").write_text(text.replace("[protocol]", 'meter = "shelly:http://plug"\n[protocol]'))
    done = greencc("lab", "run", "dying.toml", "-o", "out")
    assert done.code == ExitCode.UNAVAILABLE, done.err
    (record,) = read_records(digits / "out")
    assert record.status == "partial"
    assert "plug failed 3 times in a row: no answer" in (record.problem or "")
    assert record.figures is not None
    assert record.figures.baseline.energy is record.figures.artifact.energy is record.figures.energy is None
    assert "failed 3 times in a row" in (digits / "out" / "index.html").read_text()
    assert "failed 3 times in a row" in done.err
    assert "grade D" not in done.out
    assert "1 of 1 measurements to do" in greencc("lab", "run", "dying.toml", "-o", "out", "--dry-run").out


def test_a_recording_that_only_estimates_is_no_meter(digits: Path, greencc: Run) -> None:
    (digits / "power.csv").write_text("seconds,watts\n0,5\n0.01,5\n")
    (digits / "replay.toml").write_text(DIGITS.replace("[protocol]", 'meter = "csv:power.csv"\n[protocol]'))
    done = greencc("lab", "run", "replay.toml", "-o", "out")
    assert done.code == ExitCode.USAGE
    assert "csv (grade D) estimates" in done.err
    assert "csv:FILE?grade=A" in done.err
    assert not read_records(digits / "out")


def test_a_real_model_is_built_once_and_measured(
    short: None, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digits / "digits.toml").write_text(DIGITS)
    done = greencc("lab", "run", "digits.toml", "-o", "out")
    assert done.code == ExitCode.OK, done.err
    (bundle,) = (digits / "out" / "bundles").iterdir()
    assert bundle.name.startswith("digits-int8-")
    assert load(bundle).report.precision == "int8"
    original, int8 = sorted(read_records(digits / "out"), key=lambda record: record.variant == "int8")
    assert original.made is not None
    assert int8.made is not None
    assert int8.figures is not None
    assert (original.made.form, original.made.accuracy) == ("original", None)
    assert int8.made.bundle == f"bundles/{bundle.name}"
    assert int8.made.accuracy is not None
    assert int8.made.accuracy.n > 0
    assert int8.figures.artifact.size_bytes < int8.figures.baseline.size_bytes
    assert int8.figures.artifact.energy is not None
    assert int8.figures.artifact.energy.grade == "D"
    with (digits / "out" / "blocks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["role"] for row in rows} == {"baseline", "artifact"}
    assert all(int(row["inferences"]) > 0 and row["joules"] == row["grade"] == "" for row in rows)

    def compiled(*args: Any, **options: Any) -> None:
        raise AssertionError("the bundle was built again")

    monkeypatch.setattr(campaign_bench, "compile_model", compiled)
    assert greencc("lab", "run", "digits.toml", "-o", "out", "--fresh").code == ExitCode.OK


def test_other_options_or_data_make_another_bundle(digits: Path) -> None:
    def name(text: str) -> str:
        (digits / "digits.toml").write_text(text)
        spec = read_campaign(digits / "digits.toml")
        cell = next(cell for cell in spec.cells() if cell.variant == "int8")
        path = LabBench(spec).bundle_path(cell, digits / "bundles")
        assert path is not None
        return path.name

    first = name(DIGITS)
    assert name(f"# a comment\n{DIGITS}".replace("repetitions = 1", "repetitions = 4")) == first
    changed = {
        name(DIGITS.replace("5%", "4%")),
        name(DIGITS.replace('"quick"\n[[device]]', '"standard"\n[[device]]')),
        name(DIGITS.replace("[protocol]", "threads = 1\n[protocol]")),
    }
    shutil.copy(digits / "eval.npz", digits / "calibration.npz")
    changed.add(name(DIGITS))
    assert len(changed - {first}) == 4


def test_bundles_that_exist_are_measured_or_refused_with_the_reason(
    short: None, bundle: Path, digits: Path, greencc: Run
) -> None:
    text = DIGITS.replace(
        'precision = "int8"\nmax_drop = "5%"\neffort = "quick"', f'bundles = {{ digits = "{bundle}" }}'
    )
    text = text.replace(
        "[protocol]", '[[device]]\nname = "one"\ntarget = "cpu:optimization=basic"\n[protocol]'
    )
    (digits / "given.toml").write_text(text)
    done = greencc("lab", "run", "given.toml", "-o", "out")
    assert done.code == ExitCode.UNAVAILABLE
    records = {(record.variant, record.device): record for record in read_records(digits / "out")}
    here, one = records["int8", "here"], records["int8", "one"]
    assert here.made is not None
    assert (here.status, here.made.form) == ("measured", "int8")
    assert here.made.accuracy is not None
    assert "left out" in here.made.accuracy.reason
    assert one.status == "failed"
    assert "was made for cpu, and the device is cpu:optimization=basic" in (one.reason or "")


@pytest.mark.full
def test_the_example_runs_from_end_to_end(tmp_path: Path, greencc: Run) -> None:
    example = Path(__file__).parents[2] / "examples/campaign/campaign.toml"
    done = greencc("lab", "run", example, "-o", tmp_path / "out")
    assert done.code == ExitCode.OK, done.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cells_measured"] == 6
    rows = {row["variant"]: row for row in summary["rows"]}
    assert rows["int8"]["form"] == "int8"
    assert rows["int8"]["accuracy"]["certified"]
    assert rows["int8"]["baseline_bytes"] > 3 * rows["int8"]["size_bytes"]
    assert rows["original"]["accuracy"] is None
    assert all(row["latency"]["ratio"]["repetitions"] == 2 for row in rows.values())
    assert all(row["energy"]["grade"] and row["energy"]["boundary"] for row in rows.values())
    assert protocols.QUICK.title == summary["protocol"]
