"""One model for several targets: what is shared, what a failure leaves, and the same file under other arithmetics."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import greencc
from greencc.bundle import Bundle, load
from greencc.compiler import (
    CompileOptions,
    Effort,
    Matrix,
    Precision,
    compile_matrix,
    compile_model,
    cross_check,
)
from greencc.compiler import matrix as module
from greencc.compiler.cross_check import Arithmetic, why_not
from greencc.compiler.session import Shared
from greencc.core.data import Feeds
from greencc.core.errors import ExitCode, InputError, LimitError, UnavailableError, UsageError
from greencc.core.model import load_model
from greencc.report.matrix import load_matrix
from greencc.verify.integer_engine import IntegerEngine
from tests.cli.conftest import Outcome, build_digits, measure_briefly
from tests.cli.conftest import greencc as greencc_command

TARGETS = ("cpu:threads=1,backend=onnxruntime", "cpu:threads=1,optimization=basic")
FIRST = "model.cpu-threads-1-backend-onnxruntime.greencc"
SECOND = "model.cpu-threads-1-optimization-basic.greencc"
REPORTS = {"matrix.json", "matrix.html", "matrix.md"}

terminal = greencc_command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_digits(folder)
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """A real matrix, alone in a folder but for its cache."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        patch.chdir(folder)
        patch.setenv("GREENCC_CACHE", str(folder / "cache"))
        found = compile_matrix(data / "model.onnx", TARGETS, options(data))
    return replace(found, path=folder / found.path)


@pytest.fixture
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data, with an empty folder to work in, a cache elsewhere, and measuring that takes no time."""
    measure_briefly(monkeypatch)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    return data


@pytest.fixture
def ready(here: Path, made: Matrix, monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """Compiles take a bundle that is there, or end in the error that is put in here for their target."""
    errors: dict[str, BaseException] = {}

    def compile_one(
        model: Path, asked: CompileOptions, *, output: Path, progress: object, shared: Shared
    ) -> Bundle:
        if asked.target in errors:
            raise errors[asked.target]
        shared.models[model] = load_model(model)
        shutil.copytree(made.path / FIRST, output)
        return load(output)

    monkeypatch.setattr(module, "compile_model", compile_one)
    return errors


def options(data: Path, **changes: object) -> CompileOptions:
    made = CompileOptions(
        calibration=data / "calibration.npz",
        evaluation=data / "eval.npz",
        precision=Precision.INT8,
        effort=Effort.QUICK,
        max_drop=0.05,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_bundle_for_each_target_and_one_report(made: Matrix) -> None:
    assert made.path.name == "model.matrix"
    assert {item.name for item in made.path.iterdir()} == {
        FIRST, SECOND, "matrix.json", "matrix.html", "matrix.md",
    }  # fmt: skip
    assert sorted(item.name for item in made.path.parent.iterdir()) == ["cache", "model.matrix"]
    report = made.report
    assert [row.target for row in report.rows] == list(TARGETS)
    assert report.exit_code == 0
    for row in report.rows:
        assert row.result is not None
        with made.bundle(row.target) as bundle:
            assert bundle.report.precision == row.result.precision == "int8"
            assert bundle.report.accuracy == row.result.accuracy
            outputs = bundle.run({"pixels": np.zeros((1, 64), np.float32)})
            assert outputs["logits"].shape == (1, 10)
    with pytest.raises(UsageError, match="no bundle for 'tvm-arm'"):
        made.bundle("tvm-arm")


def test_the_report_reads_back(made: Matrix, tmp_path: Path) -> None:
    again = load_matrix(made.path / "matrix.json")
    assert [row.target for row in again.rows] == list(TARGETS)
    assert again.cross[0].results[0].arithmetic == Arithmetic.OWN.value
    assert again.rows[0].result is not None
    assert again.rows[0].result.artifact.latency_ms.samples == ()
    for text, message in (('{"schema": "other"}', "schema 'other'"), ("no JSON", "cannot read the matrix")):
        (tmp_path / "matrix.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_matrix(tmp_path / "matrix.json")


def test_later_targets_use_what_earlier_ones_found(made: Matrix) -> None:
    first, second = made.report.rows
    assert (first.reused, first.saved_seconds) == (0, 0.0)
    assert second.reused >= 1, "at least the calibration statistics do not depend on the target"
    assert second.saved_seconds > 0.0


def test_sharing_changes_nothing_in_the_artifacts(made: Matrix, here: Path) -> None:
    alone = compile_model(
        here / "model.onnx", options(here, target=TARGETS[1], cache=False), output=Path("alone.greencc")
    )
    assert alone.artifact.read_bytes() == (made.path / SECOND / "artifact/model.onnx").read_bytes()


def test_the_same_file_under_every_arithmetic(made: Matrix) -> None:
    for row in made.report.cross:
        assert [result.arithmetic for result in row.results] == [item.value for item in Arithmetic]
        assert row.n == 512
        own, exact, _, floats = row.results
        assert not own.simulated
        assert exact.simulated
        # ONNX Runtime rounds as the reference does; a float sum may round another way now and then.
        assert floats.changed <= 0.01
        assert abs(exact.loss - floats.loss) <= 0.01


class _Wrong(IntegerEngine):
    """A machine whose sums come out wrong."""

    def run(self, feeds: Feeds, outputs: object = None) -> dict[str, np.ndarray]:
        return {name: -array for name, array in super().run(feeds).items()}


def test_a_file_that_is_worse_elsewhere_is_warned_of(
    here: Path, ready: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = dict(cross_check._KINDS)
    kinds[Arithmetic.PAIRS] = dataclasses.replace(kinds[Arithmetic.PAIRS], make=_Wrong)
    monkeypatch.setattr(cross_check, "_KINDS", kinds)
    found = compile_matrix(here / "model.onnx", TARGETS[:1], options(here))
    (row,) = found.report.cross
    (warning,) = row.warnings
    assert warning in found.report.warnings
    assert "with 16-bit pairs (x86 without VNNI" in warning
    assert "beyond the limit" in (found.path / "matrix.html").read_text()
    assert "1 file" not in (found.path / "matrix.md").read_text()
    assert "one file loses more than the limit" in (found.path / "matrix.md").read_text()


def test_what_there_is_nothing_to_compare_for(data: Path) -> None:
    model = load_model(data / "model.onnx")
    assert "activations are floats" in (why_not(model) or "")
    model.graph.append(ir.Node("", "QLinearMatMul", inputs=[], num_outputs=1))
    assert "have no reference" in (why_not(model) or "")


def test_without_real_samples(here: Path, ready: object) -> None:
    no_data = options(here, calibration=None, evaluation=None, precision=Precision.FP32)
    (row,) = compile_matrix(here / "model.onnx", TARGETS[:1], no_data).report.cross
    assert (row.results, row.note) == ((), "no real samples are left to compare on")


def test_a_failing_target_leaves_the_others(here: Path, ready: dict[str, BaseException]) -> None:
    ready[TARGETS[0]] = LimitError("it loses too much", hint="raise --max-drop")
    found = compile_matrix(here / "model.onnx", TARGETS, options(here))
    first, second = found.report.rows
    assert first.result is None
    assert first.failure is not None
    assert (first.failure.message, first.failure.hint) == ("it loses too much", "raise --max-drop")
    assert second.result is not None
    assert found.report.exit_code == ExitCode.LIMIT
    assert found.report.warnings[0] == f"no bundle for {TARGETS[0]}: it loses too much"
    assert {item.name for item in found.path.iterdir()} == {SECOND, "matrix.json", "matrix.html", "matrix.md"}
    assert "it loses too much" in (found.path / "matrix.html").read_text()


def test_the_exit_code_is_that_of_the_worst_failure(
    here: Path, ready: dict[str, BaseException], terminal: Callable[..., Outcome]
) -> None:
    other = "cpu:threads=2"
    ready |= {TARGETS[0]: LimitError("too lossy"), other: UnavailableError("not here")}
    outcome = terminal(
        "compile", here / "model.onnx", "-t", ",".join((*TARGETS, other)), "-c", here / "calibration.npz",
        "--eval", here / "eval.npz", "--effort", "quick", "--precision", "int8", "--max-drop", "5%", "--json",
    )  # fmt: skip
    assert outcome.code == ExitCode.UNAVAILABLE
    data = json.loads(outcome.out)
    assert [row["failure"] and row["failure"]["exit_code"] for row in data["rows"]] == [3, None, 5]
    assert Path("model.matrix/matrix.html").is_file()


def test_nothing_is_written_when_every_target_fails(here: Path, ready: dict[str, BaseException]) -> None:
    ready |= {TARGETS[0]: LimitError("too lossy"), TARGETS[1]: InputError("bad data")}
    with pytest.raises(InputError, match="bad data"):
        compile_matrix(here / "model.onnx", TARGETS, options(here))
    assert list(Path().iterdir()) == []


def test_ctrl_c_leaves_nothing_half_written_and_says_how_to_go_on(
    here: Path, ready: dict[str, BaseException], terminal: Callable[..., Outcome]
) -> None:
    ready[TARGETS[1]] = KeyboardInterrupt()
    outcome = terminal("compile", here / "model.onnx", "-t", ",".join(TARGETS), "--precision", "fp32")
    assert outcome.code == ExitCode.INTERRUPTED
    assert "the same command goes on from there" in outcome.err
    assert list(Path().iterdir()) == []


def test_from_python(here: Path, ready: object) -> None:
    found = greencc.compile_matrix(
        here / "model.onnx", ",".join(TARGETS), options(here, precision=Precision.FP32), output="out.matrix"
    )
    assert isinstance(found, greencc.Matrix)
    assert [row.target for row in found.report.rows] == list(TARGETS)


def test_on_the_terminal(here: Path, ready: object, terminal: Callable[..., Outcome]) -> None:
    arguments = (
        "compile",
        here / "model.onnx",
        "-t",
        ",".join(TARGETS),
        "--precision",
        "fp32",
        "--effort",
        "quick",
    )
    outcome = terminal(*arguments)
    assert outcome.code == ExitCode.OK
    assert "All 2 targets have a bundle" in outcome.out
    assert "matrix.html" in outcome.out
    again = terminal(*arguments)
    assert again.code == ExitCode.BAD_INPUT
    assert "model.matrix already exists" in again.err
    assert terminal(*arguments, "--force").code == ExitCode.OK


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((), "there is no target"),
        (("cpu", "gpu"), "unknown target 'gpu'"),
        (("cpu", "cpu:thread=1"), "no option 'thread'"),
        (("cpu:threads=2", "openvino", "cpu:threads=2"), "given twice"),
    ],
)
def test_targets_are_checked_before_the_work(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_matrix(Path("nothing.onnx"), targets)


def test_force_replaces_a_matrix_only(here: Path) -> None:
    Path("model.matrix").mkdir()
    (Path("model.matrix") / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no matrix"):
        compile_matrix(here / "model.onnx", TARGETS, options(here), force=True)
    assert (Path("model.matrix") / "thesis.tex").read_text() == "years of work"
