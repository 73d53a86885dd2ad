"""Judging with workers gives the very accuracy that it gives without; real runtime, real data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.calibration import open_data
from greencc.compiler.contender import judge
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions
from greencc.compiler.session import Session
from greencc.core.cache import Cache
from greencc.core.data import Array, DataSource, TensorSpec
from greencc.core.errors import InputError
from greencc.core.report import Accuracy
from greencc.execution import Executor, InProcess, make_executor
from greencc.targets import CpuTarget

from .shared import ENGINES, Watched

SAMPLES, FEATURES, CLASSES = 301, 24, 5
HEADER = """<ir_version: 8, opset_import: ["" : 17]> """
MODELS = {
    "dynamic": "t (float[n, 24] x) => (float[n, 5] y) { h = MatMul (x, w) t = Tanh (h) y = MatMul (t, v) }",
    "fixed": "t (float[7, 24] x) => (float[7, 5] y) { h = MatMul (x, w) t = Tanh (h) y = MatMul (t, v) }",
    # A batch that is dynamic in name only.
    "named": """t (float[n, 24] x) => (float[n, 5] y)
        { r = Reshape (x, one) h = MatMul (r, w) t = Tanh (h) y = MatMul (t, v) }""",
    # As many rows as there are detections.
    "detections": """t (float[n, 24] x) => (float[m, 5] y)
        { h = MatMul (x, w) t = Tanh (h) a = MatMul (t, v) y = Concat <axis = 0> (a, a) }""",
}


def save(text: str, path: Path, noise: float = 0.0) -> Path:
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(HEADER + text)
    arrays = {
        "w": rng.standard_normal((FEATURES, 48)).astype(np.float32),
        "v": rng.standard_normal((48, CLASSES)).astype(np.float32),
    }
    constants: dict[str, Array] = {
        name: value + np.float32(noise) * value**2 for name, value in arrays.items()
    }
    constants["one"] = np.array([1, FEATURES], np.int64)
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name in constants and value.const_value is None:
                value.const_value = ir.Tensor(constants[value.name], name=value.name)
                model.graph.register_initializer(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path)
    return path


class Case:
    """An original and a worse artifact, with labelled samples that the original is mostly right about."""

    def __init__(self, kind: str, folder: Path, options: CompileOptions | None = None) -> None:
        self.folder = folder
        self.options = options or CompileOptions(max_drop=0.1)
        self.target = CpuTarget(threads=2)
        self.original = save(MODELS[kind], folder / "original" / "model.onnx")
        self.artifact = save(MODELS[kind], folder / "scratch" / "artifact" / "model.onnx", noise=0.04)
        rng = np.random.default_rng(1)
        x = rng.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
        dynamic = self.target.open(save(MODELS["dynamic"], folder / "plain" / "model.onnx"))
        labels = dynamic.run({"x": x})["y"].argmax(axis=1)
        labels[::9] = (labels[::9] + 1) % CLASSES
        np.savez(folder / "eval.npz", x=x, labels=labels)
        self.data = self.open(labelled=kind != "detections")

    def open(self, *, labelled: bool) -> DataSource:
        specs = [TensorSpec("x", np.dtype(np.float32), ("n", FEATURES))]
        with np.load(self.folder / "eval.npz") as archive:
            np.savez(self.folder / "x.npz", x=archive["x"])
        labels = self.folder / "eval.npz" if labelled else None
        return open_data(str(self.folder / "x.npz"), specs, labels=labels, role="evaluation")

    def judge(self, executor: Executor, cache: Cache | None = None) -> Accuracy:
        session = Session(self.options, self.target, self.folder / "scratch", source="digest")
        session.cache = cache or Cache()
        session._executor = executor
        baseline = MemoEngine(self.target.open(self.original))
        engine = self.target.open(self.artifact)
        try:
            return judge(session, baseline, engine, self.data, self.artifact)
        finally:
            baseline.close()
            engine.close()


@pytest.fixture(scope="module", params=ENGINES)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(*request.param)
    yield made
    made.close()


@pytest.mark.parametrize("kind", MODELS)
def test_the_accuracy_is_the_same_wherever_outputs_are_computed(
    kind: str, tmp_path: Path, executor: Executor
) -> None:
    case = Case(kind, tmp_path)
    wanted = case.judge(InProcess(1))
    assert wanted.n == SAMPLES
    assert wanted.outputs[0].sqnr_db is not None, "the two differ"
    assert case.judge(executor) == wanted
    assert not executor.busy
    assert [path.name for path in case.artifact.parent.parent.iterdir()] == ["artifact"], "files are left"


@pytest.mark.parametrize("kind", MODELS)
def test_workers_run_all_but_the_first_batch(kind: str, tmp_path: Path) -> None:
    case = Case(kind, tmp_path)
    workers = Watched(InProcess(1))
    assert case.judge(workers) == case.judge(InProcess(1))
    # Batches of 32, 7 and 1 sample; up to 64 samples a shard.
    assert workers.ran == 5


def test_a_metric_of_the_users_stays_in_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n\npids = set()\n\n\ndef score(outputs, labels, feeds):\n"
        "    pids.add(os.getpid())\n    return (outputs['y'].argmax(1) == labels).astype(float)\n",
        encoding="utf-8",
    )
    case = Case("dynamic", tmp_path, CompileOptions(metric=f"{tmp_path / 'mine.py'}:score"))
    workers = Watched(InProcess(1))
    assert case.judge(workers) == case.judge(InProcess(1))
    assert workers.ran == 5


def test_what_was_finished_before_the_driver_ended_is_not_run_again(tmp_path: Path) -> None:
    case = Case("dynamic", tmp_path)
    kept = tmp_path / "kept"
    wanted = case.judge(InProcess(1))
    with pytest.raises(KeyboardInterrupt):
        case.judge(Watched(InProcess(1), stop_after=2), Cache(kept))
    again = Watched(InProcess(1))
    assert case.judge(again, Cache(kept)) == wanted
    assert again.ran == 3
    assert [path.name for path in kept.iterdir() if any(path.iterdir())] == ["accuracy"], (
        "outputs are forgotten once they are judged"
    )
    known = Watched(InProcess(1))
    assert case.judge(known, Cache(kept)).n == SAMPLES
    assert known.ran == 0


@pytest.mark.parametrize("executor", [("local", 2)], indirect=True)
def test_an_artifact_that_fails_on_some_samples_is_one_clear_error(
    tmp_path: Path, executor: Executor
) -> None:
    case = Case("dynamic", tmp_path)
    text = """t (float[n, 24] x) => (float[n, 5] y)
        { s = ReduceMax <keepdims = 0> (x) i = Cast <to = 7> (s) z = Gather (w, i) h = MatMul (x, w) a = Add (h, z)
          t = Tanh (a) y = MatMul (t, v) }"""
    save(text, case.artifact)
    with np.load(tmp_path / "eval.npz") as archive:
        x, labels = archive["x"], archive["labels"]
    x[200] = 1000.0
    np.savez(tmp_path / "eval.npz", x=x, labels=labels)
    case.data = case.open(labelled=True)
    with pytest.raises(InputError) as here:
        case.judge(InProcess(1))
    with pytest.raises(InputError) as there:
        case.judge(executor)
    assert str(there.value) == str(here.value)
    assert not executor.busy
