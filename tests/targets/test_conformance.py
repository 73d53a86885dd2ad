"""What every target must do, run on each that is installed here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest
from onnx import TensorProto, helper

from greencc.compiler.layers import Origins
from greencc.core.engine import Engine, Target
from greencc.core.errors import InputError, UsageError
from greencc.targets import TARGETS, format_spec, make_target
from greencc.targets._host import HostTarget

from .networks import LAYERS, NETWORKS, WEIGHTED, images, residual, static_int8

MakeModel = Callable[..., onnx.ModelProto]

# How the run times call their integer kernels in a profile.
INTEGER_KERNELS = {"cpu": re.compile(r"^(QLinear|QGemm$|MatMulInteger)")}
MARKED_KERNEL = re.compile(r":int8$")
PACKAGES = {
    "cpu": "onnxruntime",
    "jetson": "onnxruntime",
    "tensorrt-rtx": "onnxruntime",
    "tvm-arm": "apache-tvm",
    "tvm-cpu": "apache-tvm",
}
NO_MODEL = re.compile(r"bad\.onnx.*(not an ONNX model|is empty)")
PROCESS = """
import sys, numpy
from pathlib import Path
from greencc.targets import make_target
feeds = dict(numpy.load(sys.argv[3]))
numpy.savez(sys.argv[4], **make_target(sys.argv[1]).open(Path(sys.argv[2])).run(feeds))
"""


def available(kind: type[Target]) -> Target:
    """The target of a kind, with one thread where that can be chosen."""
    chosen = ":threads=1" if any(option.name == "threads" for option in fields(kind)) else ""
    target = make_target(kind.name + chosen)
    if missing := target.missing():
        pytest.skip(missing)
    return target


def every(kinds: Sequence[type[Target]]) -> Callable[..., object]:
    return pytest.fixture(params=kinds, ids=[kind.name for kind in kinds])


@every(TARGETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """All of them: what they compute must be right wherever it is computed, under emulation as well.

    Engines are closed behind the test: some are processes.
    """
    found = available(request.param)
    original = type(found).open
    engines: list[Engine] = []

    def remembered(self: Target, artifact: Path) -> Engine:
        engines.append(original(self, artifact))
        return engines[-1]

    monkeypatch.setattr(type(found), "open", remembered)
    yield found
    for engine in engines:
        engine.close()


@every([kind for kind in TARGETS if issubclass(kind, HostTarget) and kind().estimated_on() is None])
def local(request: pytest.FixtureRequest) -> HostTarget:
    """Those that run in this process on this processor: threads, memory and times are those of a deployment."""
    found = available(request.param)
    assert isinstance(found, HostTarget)
    return found


def built(target: Target, model: ir.Model, folder: Path) -> Path:
    return target.build(target.lower(model), folder)


class Builds:
    """Artifacts of the residual network that no test changes, built once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[str, int | str], Path] = {}

    def __call__(self, target: Target, batch: int | str = "N") -> Path:
        key = (format_spec(target), batch)
        if key not in self._known:
            self._known[key] = built(target, residual(batch), self._folder / str(len(self._known)))
        return self._known[key]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("builds"))


def contents(artifact: Path) -> dict[str, bytes]:
    """All files of an artifact."""
    return {path.name: path.read_bytes() for path in artifact.parent.iterdir()}


def test_building_twice_gives_the_same_bytes(target: Target, tmp_path: Path) -> None:
    first, second = (contents(built(target, residual(), tmp_path / name)) for name in "ab")
    assert first == second


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_any_number_of_samples_gives_what_the_reference_gives(
    target: Target, builds: Builds, batch: int | str, count: int
) -> None:
    model = residual(batch)
    feeds = images(count)
    engine = target.open(builds(target, batch))
    expected = target.reference(model).run(feeds)["scores"]
    assert expected.shape == (count, 5)
    np.testing.assert_allclose(engine.run(feeds)["scores"], expected, rtol=1e-4, atol=1e-4)
    (spec,) = engine.inputs
    assert (spec.name, spec.dtype, spec.batch) == ("image", np.float32, None if batch == "N" else batch)
    assert [spec.name for spec in engine.outputs] == ["scores"]


def test_an_inner_value_of_the_reference(target: Target) -> None:
    for build in (target.reference, target.calibration_engine):
        assert build(residual(), ["r0", "scores"]).run(images(2))["r0"].shape == (2, 16, 12, 12)


def test_runs_repeat_bit_for_bit(target: Target, builds: Builds) -> None:
    artifact = builds(target)
    first, second = target.open(artifact), target.open(artifact)
    feeds = images(3)
    once = first.run(feeds)["scores"]
    kept = once.copy()
    first.run(images(3, seed=1))
    np.testing.assert_array_equal(once, kept, err_msg="a result changed after the next run")
    np.testing.assert_array_equal(first.run(feeds)["scores"], once)
    np.testing.assert_array_equal(second.run(feeds)["scores"], once)


def test_inputs_need_not_be_contiguous_or_writable(target: Target, builds: Builds) -> None:
    engine = target.open(builds(target))
    wide = np.random.default_rng(0).normal(size=(2, 3, 12, 24)).astype(np.float32)
    strided = wide[..., ::2]
    strided.flags.writeable = False
    np.testing.assert_array_equal(
        engine.run({"image": strided})["scores"], engine.run({"image": strided.copy()})["scores"]
    )


def test_threads(local: HostTarget, builds: Builds) -> None:
    two = make_target(f"{local.name}:threads=2")
    artifact = builds(local)
    feeds = images(4)
    np.testing.assert_allclose(
        two.open(artifact).run(feeds)["scores"],
        local.open(artifact).run(feeds)["scores"],
        rtol=1e-4,
        atol=1e-4,
    )
    assert (local.device().facts["threads"], two.device().facts["threads"]) == ("1", "2")
    assert local.device().fingerprint != two.device().fingerprint
    with pytest.raises(UsageError, match=f"{local.name}:threads is -1"):
        make_target(f"{local.name}:threads=-1")


def test_callers_in_several_threads_get_their_own_results(local: HostTarget, builds: Builds) -> None:
    engine = local.open(builds(local))
    expected = [engine.run(images(1, seed))["scores"] for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: engine.run(images(1, seed))["scores"], range(16)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no values for input 'image'"),
        (images(1) | {"extra": np.zeros(1)}, "no input 'extra'"),
        ({"image": np.zeros((1, 3, 12, 12))}, "dtype float64.*float32"),
        ({"image": np.zeros((3, 12, 12), np.float32)}, "shape"),
        ({"image": np.zeros((1, 3, 12, 13), np.float32)}, "axis 3 must be 12"),
        ({"image": [[1.0]]}, "is a list"),
    ],
)
def test_wrong_feeds_are_input_errors(
    target: Target, builds: Builds, feeds: dict[str, object], message: str
) -> None:
    engine = target.open(builds(target))
    with pytest.raises(InputError, match=message):
        engine.run(feeds)
    assert engine.run(images(1))["scores"].shape == (1, 5)


def test_an_unknown_output_and_a_closed_engine(target: Target, builds: Builds) -> None:
    engine = target.open(builds(target))
    with pytest.raises(InputError, match=r"no output 'score'.*did you mean 'scores'"):
        engine.run(images(1), ["score"])
    engine.close()
    with pytest.raises(RuntimeError, match="was closed"):
        engine.run(images(1))


@pytest.mark.parametrize("content", [b"", b"\0\1\2garbage" * 20, b"<html>", b"\x08\x08:\xff\xff\x01"])
def test_files_that_are_no_models(
    target: Target, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=NO_MODEL):
        target.open(path)
    assert capfd.readouterr() == ("", "")


def test_a_cut_artifact_and_missing_files(target: Target, tmp_path: Path) -> None:
    artifact = built(target, residual(), tmp_path)
    artifact.write_bytes(artifact.read_bytes()[:-100])
    with pytest.raises(InputError, match=re.escape(artifact.name)):
        target.open(artifact)
    with pytest.raises(InputError, match="is not a file"):
        target.open(tmp_path / "nothing.onnx")
    with pytest.raises(InputError, match="is not a file"):
        target.open(tmp_path)


def test_an_unknown_operator_is_named(target: Target, make_model: MakeModel, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="culprit", domain="my.domain")
    proto = make_model([node], values[:1], values[1:], {})
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"loading model\.onnx: (?=.*my\.domain).*NoSuchOperator"):
        target.open(tmp_path / "model.onnx")


def test_a_fresh_process_gives_the_same(target: Target, builds: Builds, tmp_path: Path) -> None:
    artifact = builds(target)
    feeds, answer = tmp_path / "feeds.npz", tmp_path / "answer.npz"
    np.savez(feeds, **images(2))
    spec = format_spec(target)
    subprocess.run([sys.executable, "-c", PROCESS, spec, str(artifact), str(feeds), str(answer)], check=True)
    with np.load(answer) as found:
        np.testing.assert_array_equal(found["scores"], target.open(artifact).run(images(2))["scores"])


def test_the_memory_of_a_fresh_process(
    local: HostTarget, builds: Builds, tmp_path: Path, mlp_file: Path
) -> None:
    """Of an artifact, and of a model that is opened as it came."""
    np.savez(tmp_path / "image.npz", **images(2))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 8), np.float32))
    for artifact, feeds in (
        (builds(local), tmp_path / "image.npz"),
        (mlp_file, tmp_path / "x.npz"),
    ):
        command = local.memory_command(artifact, feeds, 2)
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert 0 < memory["baseline_bytes"] <= memory["peak_bytes"]


def test_a_thousand_runs_leave_no_memory_behind(local: HostTarget, mlp_file: Path) -> None:
    engine = local.open(mlp_file)
    feeds = [{"x": np.zeros((size, 8), np.float32)} for size in (1, 2, 3, 64)]
    for _ in range(100):
        for feed in feeds:
            engine.run(feed)
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(250):
        for feed in feeds:
            engine.run(feed)
    # A kilobyte a run would be 1 MB.
    assert process.memory_info().rss - before < 800_000


def test_opening_and_closing_leaves_no_memory_behind(local: HostTarget, mlp_file: Path) -> None:
    process = psutil.Process()
    grown = []
    for _ in range(3):
        before = process.memory_info().rss
        for _ in range(15):
            engine = local.open(mlp_file)
            engine.run({"x": np.zeros((1, 8), np.float32)})
            engine.close()
        grown.append(process.memory_info().rss - before)
    assert min(grown) < 1_500_000


def as_int8(target: Target, network: str) -> ir.Model:
    """A network as static INT8, the way a target's capabilities ask for it."""
    capabilities = target.capabilities()
    if capabilities.int8 is None:
        pytest.skip(f"{target.name} claims no integer kernels on this CPU")
    return static_int8(capabilities, network)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_quantized_runs_on_integers(local: HostTarget, tmp_path: Path, network: str) -> None:
    """The capabilities are true: every layer that they let quantize has an integer kernel in the profile."""
    quantized = as_int8(local, network)
    times = local.profile(built(local, quantized, tmp_path), images(1), runs=3)
    origins = Origins(quantized)
    kernels = {origins.find(row.name): row.op_type for row in times}
    for layer in LAYERS[network]:
        assert INTEGER_KERNELS.get(local.name, MARKED_KERNEL).search(kernels[layer]), kernels
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph}


@pytest.mark.parametrize("network", NETWORKS)
def test_integers_are_close_to_the_reference(target: Target, tmp_path: Path, network: str) -> None:
    quantized = as_int8(target, network)
    feeds = images(64, seed=9)
    found = target.open(built(target, quantized, tmp_path)).run(feeds)["scores"]
    expected = target.reference(quantized).run(feeds)["scores"]
    # Requantization may round the other way, by one step of a few hundred.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 0.005 * np.abs(expected).max()


def test_profiles_name_the_layers(local: HostTarget, builds: Builds, tmp_path: Path) -> None:
    model = residual()
    times = local.profile(builds(local), images(2), runs=4)
    origins = Origins(model)
    found = {origins.find(row.name) for row in times}
    assert set(WEIGHTED) <= found, times
    assert all(row.microseconds >= 0 for row in times)
    assert sum(row.microseconds for row in times) > 0
    with pytest.raises(UsageError, match="at least 1 run"):
        local.profile(tmp_path / "model.onnx", images(1), runs=0)


def test_a_profile_of_a_fixed_batch_runs_the_first_one(local: HostTarget, builds: Builds) -> None:
    model = residual(2)
    times = local.profile(builds(local, 2), images(5), runs=2)
    assert {Origins(model).find(row.name) for row in times} >= set(WEIGHTED)


def test_versions_name_the_run_time(target: Target) -> None:
    package = PACKAGES.get(target.name, target.name)
    assert re.match(r"\d+\.\d+", target.versions()[package])
