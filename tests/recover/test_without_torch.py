"""What needs no PyTorch: options, the missing extra, samples, the teacher, checkpoints, energy, the evaluator."""

from __future__ import annotations

import gc
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.calibration import open_data
from greencc.cli.commands.recover import OPTIMIZERS
from greencc.cli.main import _run
from greencc.compiler.options import CompileOptions
from greencc.core.cache import Cache
from greencc.core.describe import input_specs
from greencc.core.errors import ExitCode, InputError, LimitError, UnavailableError, UsageError
from greencc.core.meter import Grade, PowerSample, Reading
from greencc.core.model import load_model
from greencc.core.report import Accuracy
from greencc.meters.model import OperationCounts, device_power
from greencc.meters.window import Window
from greencc.recover import Optimizer, RecoverOptions
from greencc.recover import _checkpoint as checkpoint
from greencc.recover._judged import Judged, refuse_result
from greencc.recover._samples import steps_per_epoch, training_batches
from greencc.recover._teacher import matching, open_teacher, shared_values
from greencc.recover._work import training_work
from greencc.recover.evaluator import Evaluator
from greencc.targets import CpuTarget
from greencc.torch_graph import require_torch


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"temperature": -1.0},
        {"alpha": 1.5},
        {"int8_share": -0.1},
        {"shift": -1},
        {"group_sparsity": float("inf")},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RecoverOptions(**wrong)  # type: ignore[arg-type]


def test_the_command_line_knows_every_optimizer() -> None:
    assert tuple(item.value for item in Optimizer) == OPTIMIZERS


def test_a_missing_extra_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError):
        require_torch("fine-tuning")
    code = _run(["recover", "no.greencc", "--model", "m.onnx", "--data", "d.npz"])
    assert code == ExitCode.UNAVAILABLE
    text = capsys.readouterr().err
    assert "needs PyTorch" in text
    assert "greencc[finetune]" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_scores_from_gradients_name_the_missing_extra(
    float_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    score: str,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    files = ["-c", str(float_files / "train.npz"), "--eval", str(float_files / "eval.npz")]
    passes = ["--passes", f"prune:score={score}:measured=false", "-o", str(tmp_path / "out.greencc")]
    code = _run(["compile", str(float_files / "model.onnx"), "--effort", "quick", *files, *passes])
    assert code == ExitCode.UNAVAILABLE
    text = capsys.readouterr().err
    (line,) = [line for line in text.splitlines() if "PyTorch" in line]
    assert "taking gradients needs PyTorch, which is not installed" in line
    assert "pip install 'greencc[finetune]', or take score=second-order" in text
    assert not (tmp_path / "out.greencc").exists()


def source(folder: Path, name: str = "train.npz"):  # type: ignore[no-untyped-def]
    return open_data(str(folder / name), input_specs(load_model(folder / "model.onnx")))


def rows(batches) -> list[bytes]:  # type: ignore[no-untyped-def]
    return [row.tobytes() for item in batches for row in item.feeds["x"]]


def test_an_epoch_has_every_sample_once_in_another_order(float_files: Path) -> None:
    data, options = source(float_files), RecoverOptions(seed=3)
    plain = [row.tobytes() for item in data.batches(50) for row in item.feeds["x"]]
    first, again, second = (rows(training_batches(data, 64, epoch, options)) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert first != plain
    assert sorted(first) == sorted(plain)
    whole = rows(training_batches(data, 64, 0, options, whole=True))
    assert len(whole) == 64 * steps_per_epoch(data, 64, whole=True) == 960


def test_chunks_of_any_size_lose_nothing(float_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greencc.recover._samples.CHUNK_BYTES", 1)
    data = source(float_files)
    found = [len(item.feeds["x"]) for item in training_batches(data, 70, 0, RecoverOptions())]
    assert sum(found) == 1000
    assert set(found[:-1]) == {70}


def test_mixed_samples_lie_between_two_others(float_files: Path) -> None:
    for item in training_batches(source(float_files), 100, 0, RecoverOptions(mixup=True)):
        assert 0.5 <= item.share <= 1.0
        assert item.feeds["x"].dtype == np.float32


@settings(max_examples=15)
@given(st.integers(0, 3), st.booleans(), st.sampled_from([(2, 3, 8, 9), (2, 8, 9, 3)]))
def test_moved_images_keep_their_shape_and_invent_no_values(
    shift: int, flip: bool, shape: tuple[int, ...]
) -> None:
    from greencc.recover._samples import _moved

    images = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    moved = _moved(images, np.random.default_rng(0), RecoverOptions(shift=shift, flip=flip))
    assert moved.shape == images.shape
    for one, other in zip(images, moved, strict=True):
        assert np.isin(other, one).all()
    if shift == 0 and not flip:
        assert np.array_equal(moved, images)


def test_too_few_samples_for_a_fixed_batch() -> None:
    class Few:
        name, count = "few.npz", 3

    with pytest.raises(InputError, match="3 samples"):
        steps_per_epoch(Few(), 8, whole=True)  # type: ignore[arg-type]


def test_the_teacher_gives_outputs_and_inner_values(float_files: Path) -> None:
    teacher = load_model(float_files / "model.onnx")
    student = load_model(float_files / "damaged.greencc" / "artifact" / "model.onnx")
    names = shared_values(teacher, student)
    assert {"r0", "p"} <= set(names)
    assert "logits" not in names
    opened = open_teacher(teacher, CpuTarget(threads=1).reference, ["r0"])
    found = opened.targets({"x": np.zeros((5, 2, 6, 6), np.float32)})
    opened.close()
    assert found["r0"].shape == (5, 16, 6, 6)
    assert found["logits"].shape == (5, 4)


def test_only_alike_values_of_one_shape_match() -> None:
    a = {name: np.ones((4, 3)) for name in "abcdefgh"} | {"far": np.ones((4, 3)), "cut": np.ones((4, 3))}
    b = {**a, "far": -np.ones((4, 3)), "cut": np.ones((4, 2))}
    found = matching(list(a), a, b, most=3)
    assert found == ("a", "e", "h") or len(found) == 3
    assert not {"far", "cut"} & set(found)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    weights = {"a/b:0": np.arange(6, dtype=np.float32).reshape(2, 3), "": np.float32([1.5]).reshape(1)}
    state = checkpoint.Checkpoint(3, 42, weights, weights, {}, (1.0, 0.5, 0.25))
    checkpoint.save(cache, "k" * 64, state)
    shapes = {name: array.shape for name, array in weights.items()}
    found = checkpoint.load(Cache(tmp_path), "k" * 64, shapes)
    assert found is not None
    assert (found.epoch, found.steps, found.loss) == (3, 42, (1.0, 0.5, 0.25))
    assert all(np.array_equal(found.weights[name], array) for name, array in weights.items())
    assert checkpoint.load(cache, "k" * 64, {"a/b:0": (2, 3)}) is None
    assert checkpoint.load(cache, "other", shapes) is None
    (file,) = tmp_path.rglob("*.cache")
    file.write_bytes(file.read_bytes()[:-1])
    assert checkpoint.load(Cache(tmp_path), "k" * 64, shapes) is None


class Counter:
    """A meter of 10 J per reading."""

    name, grade, boundary, period_s = "counter", Grade.B, "package-0", 0.001

    def __init__(self, broken: bool = False) -> None:
        self.readings, self.broken = 0, broken

    def missing(self) -> None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        if self.broken and self.readings > 1:
            raise UnavailableError("gone")
        return Reading(float(self.readings), {"package-0": 10.0 * self.readings})


def test_energy_is_metered_where_a_meter_works() -> None:
    window = Window(lambda: [Counter()])
    window.tick()
    spent = window.close(None, device_power({}), 1.0)
    assert spent.energy is not None
    assert spent.energy.value == 20.0
    assert spent.energy.grade == "B"
    assert "measured" in spent.text()


class Sensor:
    """A power sensor of 5 W."""

    name, grade, boundary, period_s = "sensor", Grade.B, "board", 0.01

    def sample(self) -> PowerSample:
        return PowerSample(time.monotonic(), {"rail": 5.0})


def test_a_power_sensor_is_watched_until_the_window_is_closed() -> None:
    before = set(threading.enumerate())
    window = Window(lambda: [Sensor()])
    (watching,) = set(threading.enumerate()) - before
    spent = window.close(None, device_power({}), 1.0)
    assert not watching.is_alive()
    assert spent.energy is not None
    assert (spent.energy.grade, spent.energy.boundary) == ("B", "board")
    assert 0.0 < spent.energy.value < 5.0 * (spent.seconds + 0.1)


def test_a_window_that_nobody_closes_stops_watching() -> None:
    before = set(threading.enumerate())
    window = Window(lambda: [Sensor()])
    (watching,) = set(threading.enumerate()) - before
    del window
    gc.collect()
    assert not watching.is_alive()


def test_energy_across_a_reset_is_not_known() -> None:
    counter = Counter()
    window = Window(lambda: [counter])
    read = counter.read
    counter.read = lambda: replace(read(), epoch=1)
    assert window.close(None, device_power({}), 1.0).energy is None


@pytest.mark.parametrize("meters", [[], [Counter(broken=True)]])
def test_energy_is_estimated_elsewhere(meters: list[Counter]) -> None:
    one = OperationCounts({"float32": 1e6}, 1e6)
    work = training_work(one, one, 100)
    assert work is not None
    # A forward and a backward pass of the student cost three, the teacher one.
    assert work.macs_by_dtype == {"float32": 4e8}
    spent = Window(lambda: list(meters)).close(work, device_power({}), 1.0)
    assert spent.energy is not None
    assert spent.energy.grade == "D"
    assert spent.energy.low <= spent.energy.value <= spent.energy.high
    assert "estimated" in spent.text()
    assert "not known" in Window(list).close(None, device_power({}), 1.0).text()


def test_an_evaluator_gets_a_callable_engine(float_files: Path, tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(
        "import numpy as np\n"
        "def shape(net):\n    return float(net(np.zeros((3, 2, 6, 6)))[0].size + len(net.inputs))\n"
        "def broken(net):\n    return float('nan')\n"
        "def fails(net):\n    raise ValueError('no')\n"
    )
    engine = CpuTarget(threads=1).open(float_files / "model.onnx")
    assert Evaluator.load(f"{file}:shape").score(engine) == 5.0
    with pytest.raises(InputError, match="finite"):
        Evaluator.load(f"{file}:broken").score(engine)
    with pytest.raises(InputError, match=r"judge\.py:7"):
        Evaluator.load(f"{file}:fails").score(engine)
    with pytest.raises(UsageError, match="no function"):
        Evaluator.load(f"{file}:shap")
    engine.close()


def accuracy(*, certified: bool, agreement: float = 0.995) -> Accuracy:
    reason = "too few samples"
    return Accuracy(
        "top-1", None, None, None, None, None, agreement, 400, certified, 0.01, 0.95, 2, None, None, reason
    )


@pytest.mark.parametrize("scores", [None, (10.0, 5.0, 9.95)])
def test_a_required_certificate_is_asked_of_every_result(scores: tuple[float, float, float] | None) -> None:
    judged = Judged((0.2, 0.005), scores)
    plain, strict = (CompileOptions(max_drop=0.01, require_certified=required) for required in (False, True))
    for certified, options in ((True, plain), (True, strict), (False, plain)):
        refuse_result(accuracy(certified=certified), judged, options)
    with pytest.raises(LimitError, match="could not be certified: too few samples"):
        refuse_result(accuracy(certified=False), judged, strict)


def test_with_an_evaluator_the_limit_is_on_its_score() -> None:
    options = CompileOptions(max_drop=0.01)
    other = accuracy(certified=False, agreement=0.5)
    refuse_result(other, Judged((0.2, 0.5), (10.0, 5.0, 9.95)), options)
    with pytest.raises(LimitError, match=r"score falls by 2\.00%"):
        refuse_result(other, Judged((0.2, 0.5), (10.0, 5.0, 9.8)), options)
    with pytest.raises(LimitError):
        refuse_result(other, Judged((0.2, 0.5)), options)


def test_worse_is_by_the_evaluator_where_there_is_one() -> None:
    assert Judged((0.1, 0.2)).worse
    assert not Judged((0.2, 0.2)).worse
    assert not Judged((0.1, 0.2), (3.0, 1.0, 2.0)).worse
    assert Judged((0.2, 0.1), (3.0, 2.0, 1.0)).worse
