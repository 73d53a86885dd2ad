"""Calibration on workers equals that of one process to the last bit; real runtime, real data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.calibration import open_data, take
from greencc.compiler.options import CompileOptions
from greencc.compiler.session import Session
from greencc.compiler.shards import WorkerShards
from greencc.compiler.variants import variants
from greencc.core.cache import Cache
from greencc.core.data import Array, DataSource
from greencc.core.describe import input_specs
from greencc.core.errors import InputError
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.passes import Context
from greencc.execution import Executor, InProcess, make_executor
from greencc.passes._calibrate import observe_statistics
from greencc.passes._statistics_arrays import pack
from greencc.targets import CpuTarget

from .conftest import Bench, detector
from .shared import ENGINES, Watched

SAMPLES = 75
TRANSFORMER = """
<ir_version: 8, opset_import: ["" : 17]>
t (int64[n, 6] ids) => (float[n, 4] scores) {
    x = Gather (table, ids)
    mean = ReduceMean <axes = [-1]> (x)
    shifted = Sub (x, mean)
    squares = Mul (shifted, shifted)
    variance = ReduceMean <axes = [-1]> (squares)
    deviation = Sqrt (variance)
    normal = Div (shifted, deviation)
    q = MatMul (normal, wq)
    k = MatMul (normal, wk)
    v = MatMul (normal, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    raw = MatMul (q, kt)
    weights = Softmax <axis = -1> (raw)
    mixed = MatMul (weights, v)
    added = Add (mixed, x)
    hidden = MatMul (added, w1)
    bent = Tanh (hidden)
    back = MatMul (bent, w2)
    joined = Add (back, added)
    pooled = ReduceMean <axes = [1], keepdims = 0> (joined)
    scores = MatMul (pooled, w3)
}
"""


def transformer(folder: Path) -> tuple[Path, Path]:
    """A one-layer encoder, and token ids for it."""
    rng = np.random.default_rng(2)
    model = ir.from_onnx_text(TRANSFORMER)
    shapes = {"table": (50, 16), "w1": (16, 32), "w2": (32, 16), "w3": (16, 4)}
    for name in ("table", "wq", "wk", "wv", "w1", "w2", "w3"):
        value = next(
            item for node in model.graph for item in node.inputs if item is not None and item.name == name
        )
        array = rng.standard_normal(shapes.get(name, (16, 16))).astype(np.float32)
        value.const_value = ir.Tensor(array, name=name)
        model.graph.register_initializer(value)
    path = folder / "transformer.onnx"
    ir.save(model, path)
    np.savez(folder / "ids.npz", ids=rng.integers(0, 50, (SAMPLES, 6)))
    return path, folder / "ids.npz"


def convolutional(folder: Path) -> tuple[Path, Path]:
    path = detector(folder)
    rng = np.random.default_rng(3)
    np.savez(folder / "images.npz", image=rng.standard_normal((SAMPLES, 3, 12, 12)).astype(np.float32))
    return path, folder / "images.npz"


class Calibration:
    """A model with its data, and sessions to observe it in."""

    def __init__(self, path: Path, data: Path, scratch: Path) -> None:
        self.model = load_model(path)
        ensure_names(self.model)
        self.source: DataSource = open_data(str(data), input_specs(self.model), role="calibration")
        self.names = [
            str(value.name)
            for node in self.model.graph
            for value in node.outputs
            if value.dtype in (None, ir.DataType.FLOAT)
        ]
        self.target = CpuTarget(threads=2)
        self.scratch = scratch

    def observe(
        self, executor: Executor | None, cache: Cache | None = None, *, histograms: bool = True
    ) -> dict[str, Array]:
        session = Session(CompileOptions(), self.target, self.scratch)
        session.cache = cache or Cache()
        session._executor = executor
        ctx = Context(
            capabilities=self.target.capabilities(),
            build=self.target.reference,
            samples=[],
            calibration=self.source,
            observe=self.target.calibration_engine,
            observe_shards=None if executor is None else WorkerShards(session),
            cache=session.cache,
        )
        return pack(observe_statistics(self.model, self.names, ctx, batch=4, histograms=histograms))


@pytest.fixture(params=[convolutional, transformer])
def calibration(request: pytest.FixtureRequest, tmp_path: Path) -> Calibration:
    scratch = tmp_path / "shards"
    scratch.mkdir()
    return Calibration(*request.param(tmp_path), scratch)


@pytest.fixture(scope="module", params=ENGINES)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(*request.param)
    yield made
    made.close()


def same(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), f"{name}: not to the last bit"


@pytest.mark.parametrize("histograms", [True, False])
def test_statistics_are_the_same_wherever_they_are_computed(
    calibration: Calibration, executor: Executor, histograms: bool
) -> None:
    wanted = calibration.observe(None, histograms=histograms)
    assert len(np.unique(wanted["ends"])) > 4 * len(calibration.names) // 2, "all sorts of values"
    same(calibration.observe(executor, histograms=histograms), wanted)
    assert not list(calibration.scratch.iterdir()), "files on their way to workers are left"


def test_what_was_finished_before_the_driver_ended_is_not_run_again(
    calibration: Calibration, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "kept")
    every = Watched(InProcess(1))
    wanted = calibration.observe(every)
    assert every.ran == 5, "19 runs, 4 a shard"
    with pytest.raises(KeyboardInterrupt):
        calibration.observe(Watched(InProcess(1), stop_after=3), cache)
    again = Watched(InProcess(1))
    same(calibration.observe(again, Cache(tmp_path / "kept")), wanted)
    assert again.ran == 2
    assert [path.name for path in (tmp_path / "kept").iterdir() if any(path.iterdir())] == ["statistics"], (
        "parts are forgotten once they are put together"
    )


def test_few_samples_and_busy_workers_are_for_this_process(calibration: Calibration) -> None:
    wanted = calibration.observe(None)
    workers = Watched(InProcess(1))
    workers.busy = True
    same(calibration.observe(workers), wanted)
    calibration.source = take(calibration.source, 16)
    workers.busy = False
    calibration.observe(workers)
    assert workers.ran == 0


@pytest.mark.parametrize("executor", [("local", 2)], indirect=True)
@pytest.mark.parametrize("histograms", [True, False])
def test_a_value_that_is_not_finite_is_refused_as_here(
    tmp_path: Path, executor: Executor, histograms: bool
) -> None:
    path, data = convolutional(tmp_path)
    with np.load(data) as archive:
        images = archive["image"]
    images[50] = 3e38
    np.savez(data, image=images)
    calibration = Calibration(path, data, tmp_path)
    with pytest.raises(InputError) as here:
        calibration.observe(None, histograms=histograms)
    with pytest.raises(InputError) as there:
        calibration.observe(executor, histograms=histograms)
    assert str(there.value) == str(here.value)
    assert not executor.busy
    same(calibration_of_clean(tmp_path, executor), calibration_of_clean(tmp_path, None))


def calibration_of_clean(folder: Path, executor: Executor | None) -> dict[str, Array]:
    """Workers are as good as new after data that were refused."""
    (folder / "clean").mkdir(exist_ok=True)
    path, data = convolutional(folder / "clean")
    return Calibration(path, data, folder).observe(executor)


def test_a_compile_with_workers_builds_the_same_artifact(bench: Bench) -> None:
    model = bench.builder.cleaned().model
    variant = next(variants(bench.session.options.effort, bench.builder.context.capabilities, model))
    assert bench.session.free_workers == 0
    wanted = bench.builder.static("here", (), variant.plain)
    workers = Watched(InProcess(1))
    bench.session._executor = workers
    bench.session.cache = Cache()
    bench.builder.context = replace(bench.builder.context, cache=bench.session.cache)
    found = bench.builder.static("workers", (), variant.plain)
    assert workers.ran == 2, "64 samples in runs of 8, 4 runs a shard"
    assert found.artifact.read_bytes() == wanted.artifact.read_bytes()
