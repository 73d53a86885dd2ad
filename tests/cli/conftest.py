"""A small real classifier (scikit-learn digits) and its data, as files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


def build_digits(folder: Path) -> None:
    """Train an MLP on the digits and write model.onnx, calibration.npz and eval.npz."""
    digits = load_digits()
    x = (digits.data / 16.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    net = MLPClassifier((48,), max_iter=60, tol=1e-2, n_iter_no_change=60, random_state=0).fit(x[:900], y[:900])
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
