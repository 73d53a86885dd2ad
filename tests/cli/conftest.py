"""A small real classifier (scikit-learn digits) and its data, as files; the command line, run in this process."""

from __future__ import annotations

import functools
import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from greencc.bundle import load
from greencc.compiler import CompileOptions, Effort, Precision, compile_model
from greencc.core.errors import ExitCode
from greencc.measure.profiles import QUICK
from tests.entry import Outcome, entry_point


def build_digits(folder: Path) -> None:
    """Train an MLP on the digits and write model.onnx, calibration.npz and eval.npz."""
    digits = load_digits()
    x = (digits.data / 16.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    with warnings.catch_warnings():
        # Sixty rounds are enough for 95 %.
        warnings.simplefilter("ignore", ConvergenceWarning)
        net = MLPClassifier((48,), max_iter=60, random_state=0).fit(x[:900], y[:900])
    weights = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in (
            ("w0", net.coefs_[0]), ("b0", net.intercepts_[0]), ("w1", net.coefs_[1]), ("b1", net.intercepts_[1]),
        )
    ]  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["pixels", "w0", "b0"], ["h"], name="hidden"),
            helper.make_node("Relu", ["h"], ["a"], name="relu"),
            helper.make_node("Gemm", ["a", "w1", "b1"], ["logits"], name="head"),
        ],
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    np.savez_compressed(folder / "calibration.npz", pixels=x[900:1100])
    np.savez_compressed(folder / "eval.npz", pixels=x[1100:], labels=y[1100:])


@pytest.fixture(scope="session")
def digits_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_digits(folder)
    return folder


@pytest.fixture
def digits(digits_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the files in the current folder."""
    for file in digits_files.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def bundle_files(digits_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of the digits model, compiled once for all tests and measured for real."""
    options = CompileOptions(
        calibration=digits_files / "calibration.npz",
        evaluation=digits_files / "eval.npz",
        precision=Precision.INT8,
        effort=Effort.QUICK,
    )
    output = tmp_path_factory.mktemp("bundle") / "digits.greencc"
    return compile_model(digits_files / "model.onnx", options, output=output).path


@pytest.fixture
def bundle(bundle_files: Path, digits: Path) -> Path:
    """A fresh copy of the bundle beside the digits files, relative to the current folder."""
    shutil.copytree(bundle_files, digits / "digits.greencc")
    load(digits / "digits.greencc")
    return Path("digits.greencc")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a moment only, and neither memory nor energy: for tests that are not about the figures."""
    measure_briefly(monkeypatch)


def measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `brief` does, until `monkeypatch` is undone."""
    from greencc.compiler import campaign, energies, measurement, run_times, select
    from greencc.measure.memory import PeakMemory

    short = replace(QUICK, seconds=0.05, rounds=4, min_rounds=4, min_runs=2, warm_up_seconds=0.01)
    for effort in (Effort.QUICK, Effort.STANDARD):
        monkeypatch.setitem(measurement.PROFILES, effort, short)
    monkeypatch.setattr(campaign, "QUICK_PROFILE", short)
    monkeypatch.setattr(energies, "available_meters", lambda *processor: ())
    monkeypatch.setattr(measurement, "peak_memory", lambda *args, **kwargs: PeakMemory(None, "a test"))
    monkeypatch.setattr(select, "quick_compare", functools.partial(select.quick_compare, profile=short))
    for name in ("GLANCE", "QUICK"):
        monkeypatch.setattr(run_times, name, short)


@pytest.fixture
def greencc(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """The real entry point, in this process."""
    with entry_point(capsys) as call:
        yield call


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder, hidden ones too, with a hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in name:
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    return found


@pytest.fixture
def refused(digits: Path, greencc: Callable[..., Outcome]) -> Callable[..., None]:
    """Expect a call to be refused: exit code, part of the message and of the hint, nothing on standard output.

    The folder must be as it was before, hidden files included.
    """

    def check(arguments: Sequence[str], code: ExitCode, message: str, hint: str = "") -> None:
        before = listing(digits)
        outcome = greencc(*arguments)
        assert outcome.code == code, outcome.err
        # click ends the line that the terminal shows ^C in.
        first, *rest = outcome.err.lstrip("\n").splitlines()
        assert first.startswith("greencc: ")
        assert message in first
        assert hint in "\n".join(rest)
        assert "Traceback" not in outcome.err
        assert "internal error" not in outcome.err
        assert outcome.out == ""
        assert listing(digits) == before

    return check
