"""Accuracy is checked against the model a bundle was made from, on samples that its compile has not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from greencc.bundle import Bundle, load, write_bundle
from greencc.calibration import open_data
from greencc.calibration.subsets import sample_keys
from greencc.compiler.check import verify_accuracy
from greencc.core.data import TensorSpec
from greencc.core.errors import InputError
from greencc.core.graph import ensure_names
from greencc.core.model import digest, load_model
from greencc.core.report import (
    Accuracy,
    Budget,
    CompileInfo,
    Figures,
    Interval,
    Latency,
    ModelInfo,
    Ratio,
    Report,
)
from greencc.targets import make_target

# Its nodes have no names, as exporters leave them.
MODEL = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] x) => (float[n, 3] y) { t = %s(x)  y = Neg(t) }'
)
SAMPLES = np.random.default_rng(5).normal(size=(340, 3)).astype(np.float32)


def _report(name: str) -> Report:
    figures = Figures(Latency(1.0, 1.1, 1.2, 10), None, 3, None, None)
    one = Interval(1.0, 1.0, 1.0)
    nothing = (None,) * 6
    return Report(
        greencc="0.1.0",
        created="2025-11-22T04:31:00+00:00",
        verdict="",
        precision="original",
        model=ModelInfo(name, "ab" * 32, 1, None, 17, 2),
        target="cpu",
        device={},
        conditions={},
        versions={},
        baseline=figures,
        artifact=figures,
        ratio=Ratio(one, None, one),
        accuracy=Accuracy("none", *nothing, 0, False, 0.01, 0.95, None, None, None, "not certified: no data"),
        budget=Budget({}, met=None),
        candidates=(),
        passes=(),
        calibration=None,
        layers=(),
        layer_errors=(),
        warnings=(),
        compile=CompileInfo(1.0, None),
    )


def _bundle(folder: Path, *, named: bool = False, seen: bytes = b"") -> Bundle:
    """A bundle of model.onnx itself; `named`: its digest was taken after the nodes were named."""
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(MODEL % "Abs"), path)
    model = load_model(path)
    if named:
        assert ensure_names(model) == 2
    work = folder / "model.greencc"
    (work / "artifact").mkdir(parents=True)
    artifact = work / "artifact" / "model.onnx"
    artifact.write_bytes(path.read_bytes())
    write_bundle(
        work,
        report=_report("model.onnx"),
        recipe="",
        artifact=artifact,
        target=make_target("cpu"),
        model_digest=digest(model),
        seen=seen,
    )
    return load(work)


def _keys(folder: Path, samples: np.ndarray) -> bytes:
    np.savez(folder / "used.npz", x=samples)
    source = open_data(folder / "used.npz", [TensorSpec("x", np.dtype(np.float32), ("n", 3))])
    return sample_keys(source).tobytes()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "eval.npz"
    np.savez(path, x=SAMPLES)
    return path


@pytest.mark.parametrize("named", [False, True])
def test_its_own_model_certifies(tmp_path: Path, data: Path, named: bool) -> None:
    with _bundle(tmp_path, named=named) as bundle:
        found = verify_accuracy(bundle, tmp_path / "model.onnx", data)
    assert found.certified
    assert found.n == 340
    assert "left out" not in found.reason


def test_another_model_is_refused(tmp_path: Path, data: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL % "Relu"), tmp_path / "other.onnx")
    with (
        _bundle(tmp_path) as bundle,
        pytest.raises(InputError, match=r"other\.onnx is not the model that .* was compiled from") as caught,
    ):
        verify_accuracy(bundle, tmp_path / "other.onnx", data)
    assert caught.value.hint == "give model.onnx (sha256 abababababab...)"


def test_used_samples_are_left_out(tmp_path: Path, data: Path) -> None:
    with _bundle(tmp_path, seen=_keys(tmp_path, SAMPLES[10:50])) as bundle:
        found = verify_accuracy(bundle, tmp_path / "model.onnx", data)
    assert found.n == 300
    assert found.certified
    assert found.reason.endswith("; 40 of 340 samples were left out: the compile has used them")


def test_used_samples_certify_nothing(tmp_path: Path, data: Path) -> None:
    with (
        _bundle(tmp_path, seen=_keys(tmp_path, SAMPLES)) as bundle,
        pytest.raises(InputError, match=r"has used all 340 samples of .*eval\.npz") as caught,
    ):
        verify_accuracy(bundle, tmp_path / "model.onnx", data)
    assert "held-out" in (caught.value.hint or "")


def test_samples_beside_the_used_ones_all_count(tmp_path: Path, data: Path) -> None:
    with _bundle(tmp_path, seen=_keys(tmp_path, SAMPLES + 1)) as bundle:
        found = verify_accuracy(bundle, tmp_path / "model.onnx", data)
    assert (found.n, found.certified) == (340, True)
