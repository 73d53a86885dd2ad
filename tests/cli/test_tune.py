"""`greencc tune` and `greencc compile --tune`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest

from greencc.bundle import load
from greencc.compiler import on_device, tune_job
from greencc.core.errors import ExitCode
from greencc.core.progress import Progress
from greencc.core.report import Interval
from greencc.core.tuning import TuningReport
from greencc.report import parse_report
from greencc.targets import CpuTarget
from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.records import Place, Record


def _record(workload: str, label: str) -> Record:
    return Record(
        workload=workload,
        label=label,
        place=Place("x86_64-linux-gnu", "znver4", ("avx2",), 1, 1, "0.27.0", 22),
        best=Schedule(2, 1, 1, 1),
        default=Schedule(1, 1, 1, 1),
        best_us=Interval(10.0, 9.0, 11.0),
        default_us=Interval(15.0, 14.0, 16.0),
        gain=Interval(1.5, 1.4, 1.6),
        out={Schedule(1, 1, 1, 1): "slower"},
        space=2,
        created=1.0,
    )


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder with two schedules."""
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    path = default_path()
    assert path is not None
    Database(path, pytest.fail).put([_record("conv-1", "conv 8x8 3->4 3x3 float32"), _record("dense-1", "d")])
    return path


@dataclass(frozen=True)
class TunableTarget(CpuTarget):
    """ONNX Runtime, with something to tune."""

    def cannot_tune(self) -> str | None:
        return None

    def check_schedules(self) -> tuple[str, ...]:
        return ("the schedules are odd",)

    def tune(self, model: ir.Model, seconds: float, progress: Progress) -> TuningReport:
        for _ in progress(range(2), label="Tuning", total=2):
            pass
        return TuningReport(
            1.0, model.graph.num_nodes(), 7, 1, 1, 300.0, 200.0, ("conv: it crashed",), ("the file is odd",)
        )


def test_list(kept, greencc):
    shown = greencc("tune", "--list")
    assert shown.code == ExitCode.OK
    assert "znver4 (x86_64-linux-gnu), 1 thread" in shown.out
    assert "conv 8x8 3->4 3x3 float32" in shown.out
    assert "1.50x" in shown.out
    assert "2 of 2" in shown.out
    rows = json.loads(greencc("tune", "--list", "--json").out)
    assert [row["workload"] for row in rows] == ["conv-1", "dense-1"]
    assert rows[0]["best"]["rows"] == 2
    assert rows[0]["complete"] is True


def test_rows_of_one_name_are_told_apart(kept, greencc):
    Database(kept, pytest.fail).put([_record("dense-2", "d")])
    shown = greencc("tune", "--list").out
    assert "d [ense-1]" in shown
    assert "d [ense-2]" in shown
    assert "3x3 float32 [" not in shown


@pytest.mark.parametrize("command", [["tune", "model.onnx", "--time"], ["compile", "model.onnx", "--tune"]])
def test_no_time_is_refused(command, digits, greencc):
    refused = greencc(*command, "0s")
    assert refused.code == ExitCode.USAGE
    assert "the time to tune is 0 s" in refused.err
    assert "more than 0" in refused.err


def test_export_and_import(kept, greencc, tmp_path, monkeypatch):
    file = tmp_path / "file"
    assert greencc("tune", "--export", file).out == f"2 schedules in {file}\n"
    refused = greencc("tune", "--export", file)
    assert refused.code == ExitCode.BAD_INPUT
    assert "already exists" in refused.err
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "other"))
    assert greencc("tune", "--list").out == "no schedules are kept yet\n"
    taken = greencc("tune", "--import", file)
    assert taken.code == ExitCode.OK
    assert taken.out.startswith(f"2 schedules in {file}, 2 of them new, for:\nznver4")
    assert greencc("tune", "--import", file).out.startswith(f"2 schedules in {file}, 0 of them new")
    assert len(json.loads(greencc("tune", "--list", "--json").out)) == 2


def test_a_file_that_is_damaged_or_missing_is_refused(kept, greencc, tmp_path):
    file = tmp_path / "file"
    file.write_text(kept.read_text(encoding="utf-8").replace("slower", "faster"), encoding="utf-8")
    for path, words in ((file, "line 2: its hash does not fit"), (tmp_path / "none", "is not a file")):
        refused = greencc("tune", "--import", path)
        assert refused.code == ExitCode.BAD_INPUT
        assert words in refused.err
        assert str(path) in refused.err


def test_a_damaged_database_is_one_warning(kept, greencc):
    kept.write_text("noise", encoding="utf-8")
    shown = greencc("tune", "--list")
    assert (shown.code, shown.out) == (ExitCode.OK, "no schedules are kept yet\n")
    assert shown.err.count("\n") == 1
    assert str(kept) in shown.err
    assert greencc("tune", "--list").err == ""


@pytest.mark.parametrize("arguments", [[], ["model.onnx", "--list"], ["--list", "--export", "file"]])
def test_one_thing_at_a_time(arguments, greencc):
    refused = greencc("tune", *arguments)
    assert refused.code == ExitCode.USAGE
    assert "one of MODEL, --list, --export and --import" in refused.err


def test_nothing_is_kept_without_a_cache(greencc, monkeypatch):
    monkeypatch.setenv("GREENCC_CACHE", "")
    refused = greencc("tune", "--list")
    assert refused.code == ExitCode.USAGE
    assert "GREENCC_CACHE" in refused.err


@pytest.mark.parametrize(
    "command", [["tune", "model.onnx", "-t", "cpu"], ["compile", "model.onnx", "--tune", "1m"]]
)
def test_targets_with_kernels_of_their_own_are_refused(command, digits, greencc):
    refused = greencc(*command)
    assert refused.code == ExitCode.UNAVAILABLE
    assert "'cpu' has nothing to tune" in refused.err
    assert not (digits / "model.greencc").exists()


def test_a_model_is_tuned(digits, greencc, monkeypatch):
    monkeypatch.setattr(tune_job, "available_target", lambda spec: TunableTarget())
    told = greencc("tune", "model.onnx", "--time", "5s")
    assert told.code == ExitCode.OK
    assert "3 kernels, 7 schedules tried in 1 s" in told.out
    assert "0.3 ms before, 0.2 ms now (1.50x)" in told.out
    assert "2 kernels have schedules left to try" in told.out
    assert "not used: conv: it crashed" in told.out
    assert "greencc: the file is odd" in told.err
    found = json.loads(greencc("tune", "model.onnx", "--json").out)
    assert (found["trials"], found["gain"]) == (7, 1.5)


@pytest.mark.usefixtures("brief")
def test_a_compile_tunes_what_it_builds_and_says_so(digits, greencc, monkeypatch):
    monkeypatch.setenv("GREENCC_CACHE", str(digits / "cache"))
    target = TunableTarget()
    monkeypatch.setattr(on_device, "available_target", lambda spec: target)
    done = greencc(
        *("compile", "model.onnx", "-c", "calibration.npz", "--eval", "eval.npz"),
        *("--effort", "quick", "--precision", "int8", "--tune", "30s"),
    )
    assert done.code == ExitCode.OK, done.err
    path = digits / "model.greencc"
    report = load(path).report
    names = [each.name for each in report.compile.tuning]
    assert names[0] == "original"
    assert any("int8" in name for name in names)
    assert report.compile.tuning[0].trials == 7
    assert report.compile.phases["tuning"] >= 0.0
    assert any("conv: it crashed" in warning for warning in report.warnings)
    assert "the schedules are odd" in report.warnings
    assert parse_report((path / "report.json").read_text(encoding="utf-8")) == report
    shown = greencc("report", "model.greencc", "--format", "md")
    assert "Tuning of original: 7 schedules tried" in shown.out
    assert "Tuning of original" in (path / "report.html").read_text(encoding="utf-8")
