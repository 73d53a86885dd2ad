"""The TensorRT targets on a machine without a GPU: specs, bad input, what is checked and what is not claimed."""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.compiler import CompileOptions, compile_model
from greencc.core.engine import Shipment
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.core.graph import add_initializer
from greencc.core.model import save_model
from greencc.core.shapes import infer_shapes
from greencc.meters.device_store import find_profile
from greencc.targets import JetsonTarget, TensorRtRtxTarget, TensorRtTarget, format_spec, make_target
from greencc.targets._tensorrt import rtx
from greencc.targets._tensorrt.emit import PRECISION
from greencc.targets._tensorrt.gpus import GPUS, RTX_CARDS, find_gpu, gpu_named
from greencc.targets._tensorrt.machine import TensorRtVersion, architecture
from greencc.targets._tensorrt.presets import MODULES, JetsonPreset
from greencc.targets._tensorrt.target import EmittedTarget

from .small import network, shipped, unsupported


def emitted(spec: str) -> EmittedTarget:
    target = make_target(spec)
    assert isinstance(target, EmittedTarget)
    return target


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("jetson", "jetson:preset=jetson-orin-nano"),
        ("jetson-nano", "jetson:preset=jetson-nano"),
        ("jetson:jetson-thor", "jetson:preset=jetson-thor"),
        ("jetson-agx-orin:jetpack=7.2.2,dla=true", "jetson:preset=jetson-agx-orin,jetpack=7.2.2,dla=true"),
        ("tensorrt:10.3,gpu=l4", "tensorrt:version=10.3,gpu=l4"),
        ("tensorrt-rtx:rtx-5090", "tensorrt-rtx:gpu=rtx-5090"),
    ],
)
def test_specs_go_both_ways(spec: str, same: str) -> None:
    target = make_target(spec)
    assert target == make_target(same)
    assert make_target(format_spec(target)) == target


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jetson:orin", "jetson:preset is 'orin'.*known: jetson-agx-orin"),
        ("jetson-nano:preset=jetson-thor", "given twice"),
        ("jetson:dla", "'dla' has no value"),
        ("jetson:jetpack=9.9", "JetPack 9.9 is not known for the Jetson Orin Nano.*6.2"),
        (
            "jetson:dla=true",
            "builds for no DLA of the Jetson Orin Nano.*jetson-xavier-nx:dla=true.*jetson-agx-orin:jetpack=7.2.2",
        ),
        ("jetson-agx-orin:jetpack=7.2,dla=true", "TensorRT 10.16.2 of JetPack 7.2 builds for no DLA"),
        ("jetson-nano:sparse=true", r"Jetson Nano \(Maxwell.*has no sparse kernels"),
        ("jetson:batch=9", "batch is 9 and max_batch 8"),
        ("jetson:max_batch=100000", "max_batch <= 4096"),
        ("tensorrt:7.1", "TensorRT 7.1 is not known"),
        ("tensorrt:gpu=gtx", "GPU 'gtx' is not known.*sm89.*rtx-4090"),
        ("tensorrt:gpu=sm35", "compute capability 35 is not known"),
        (
            "tensorrt:version=8.5,gpu=rtx-5090",
            r"12\.0 \(Blackwell\), which came with 10\.8.*11\.4,gpu=rtx-5090",
        ),
        ("tensorrt:10.5,gpu=v100", r"7\.0 \(Volta\), which ended with 10\.4.*version=10\.4,gpu=v100"),
        (
            "tensorrt:8.6,gpu=jetson-nano",
            r"ended with 8\.2.*TensorRT 8\.2 does: tensorrt:version=8\.2,gpu=jetson-nano",
        ),
        ("tensorrt:8.4,gpu=sm90", "came with 8.5"),
        ("tensorrt:10.12,gpu=sm103", "came with 10.13"),
        ("tensorrt-rtx:gpu=a100", "tensorrt-rtx:gpu is 'a100'"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_target(spec)


def test_every_device_has_a_profile_and_facts_of_its_own() -> None:
    targets: list[EmittedTarget] = [JetsonTarget(preset=preset) for preset in JetsonPreset]
    targets += [TensorRtTarget(gpu=name) for name, gpu in GPUS.items() if gpu.profile]
    targets += [TensorRtRtxTarget(gpu=gpu) for gpu in RTX_CARDS]
    for target in targets:
        profile = find_profile(target.estimated_on())
        assert profile.processor == target.processor == "gpu"
        assert not profile.grade.measured
        assert target.device().facts["device_profile"] == profile.name
        assert not target.emulated()
        assert target.beside() == target.with_threads(1) == target
        assert target.memory_command(Path(), Path(), 1) is None
    assert len({target.device().fingerprint for target in targets}) == len(targets)


def test_releases_suit_the_gpus() -> None:
    for module in MODULES.values():
        assert [
            release for release in module.releases if architecture(module.sm).refusal(release.tensorrt)
        ] == []
    for name in GPUS:
        machine = TensorRtTarget(gpu=name).machine
        assert machine.gpu.refusal(machine.version) is None
    assert str(TensorRtTarget(gpu="v100").machine.version) == "10.4"
    assert architecture(70).refusal(TensorRtVersion(10, 4, 2)) is None


def test_a_gpu_is_named_by_its_own_name_or_its_compute_capability() -> None:
    assert gpu_named("NVIDIA H200", 90) == "h200"
    assert gpu_named("NVIDIA H100 80GB HBM3", 90) == "sm90"
    assert gpu_named("NVIDIA GeForce RTX 4090 Laptop GPU", 89) == "sm89"
    for sm in (75, 88, 103, 121):
        name = gpu_named("some card", sm)
        assert TensorRtTarget(gpu=name).machine.gpu.sm == find_gpu(name).sm == sm
        assert find_gpu(name).profile == ""


def test_without_a_profile_nothing_is_compiled_from_afar(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save_model(network(), path)
    with pytest.raises(UnavailableError, match=r"no device profile of the NVIDIA T4.*--device ssh"):
        compile_model(path, CompileOptions(target="tensorrt:gpu=t4"), output=tmp_path / "out.greencc")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["4.6", "4.6.1", "4.6.3"])
def test_jetpack_with_its_first_tensorrt_that_is_compiled_for(name: str) -> None:
    target = JetsonTarget(preset=JetsonPreset.NANO, jetpack=name)
    assert (target.release.release, str(target.machine.version)) == ("4.6.1", "8.2.1")
    with pytest.raises(UsageError, match="JetPack 4 is not known"):
        JetsonTarget(preset=JetsonPreset.NANO, jetpack="4")


@pytest.mark.parametrize("preset", JetsonPreset)
def test_another_tensorrt_is_compiled_for_with_the_target_that_is_named(preset: JetsonPreset) -> None:
    target = JetsonTarget(preset=preset)
    again = target.settings(network()).again
    for release in target.module.releases:
        found = emitted(again[release.tensorrt.release])
        assert found.machine.version.release == release.tensorrt.release
    newest = target.machine.gpu.newest.release
    other = emitted(again["*"].replace("$1", newest))
    assert (other.machine.gpu, other.machine.version.release) == (target.machine.gpu, newest)


def test_without_a_gpu_tensorrt_says_what_to_do(no_gpu: None) -> None:
    target = TensorRtTarget()
    assert "there is no NVIDIA GPU here" in str(target.missing())
    assert "tensorrt:gpu=NAME" in str(target.missing())
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        target.capabilities()
    assert TensorRtTarget(gpu="l4").missing() is None


def test_nothing_is_profiled() -> None:
    with pytest.raises(UnavailableError, match=r"does not run on its device.*greencc estimate"):
        JetsonTarget().profile(Path("model.onnx"), {}, 1)


@pytest.mark.parametrize("preset", JetsonPreset)
def test_every_release_of_every_module_takes_the_network(preset: JetsonPreset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = {"image": rng.normal(size=(3, 3, 8, 8)).astype(np.float32)}
    expected = JetsonTarget().reference(network()).run(feeds)["scores"]
    for release in MODULES[preset].releases:
        target = JetsonTarget(preset=preset, jetpack=release.release)
        artifact = target.build(target.lower(network()), tmp_path / release.release)
        engine = target.open(artifact)
        np.testing.assert_allclose(engine.run(feeds)["scores"], expected, rtol=1e-4, atol=1e-4)
        engine.close()
        settings = json.loads((artifact.parent / "device.json").read_text())
        assert settings["tensorrt"] == release.tensorrt.release


def test_a_dla_gets_a_fixed_batch_and_still_takes_any_number_of_samples(tmp_path: Path) -> None:
    target = emitted("jetson-agx-orin:jetpack=7.2.2,dla=true,batch=2")
    artifact = target.build(target.lower(network()), tmp_path)
    engine = target.open(artifact)
    assert engine.inputs[0].batch == 2
    assert engine.run({"image": np.zeros((5, 3, 8, 8), np.float32)})["scores"].shape == (5, 4)
    engine.close()


def test_an_operator_that_tensorrt_lacks_is_refused_by_name(tmp_path: Path) -> None:
    target = JetsonTarget()
    with pytest.raises(InputError, match="Strange"):
        target.build(target.lower(unsupported()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_free_sizes_are_fixed_by_a_compile_and_refused_without_one(tmp_path: Path) -> None:
    target = JetsonTarget()
    model = network(("N", 3, "height", "width"))
    assert target.fixed_sizes(model) == ("image",)
    assert target.fixed_sizes(network()) == ()
    with pytest.raises(InputError, match=r"'image'.*free sizes behind the batch.*--calibration"):
        target.build(target.lower(model), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_larger_than_the_memory_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    # 8 samples of 16 channels of a 4k x 4k image take 8.6 GB, in and out of one kernel.
    model = network(("N", 3, 4096, 4096))
    with pytest.raises(
        InputError, match=r"at least \d+\.\d GB.*before anything is copied.*Jetson Nano has 4\.3 GB"
    ):
        emitted("jetson-nano").build(emitted("jetson-nano").lower(model), tmp_path)
    assert list(tmp_path.iterdir()) == []
    small = emitted("jetson-nano:max_batch=1")
    assert small.build(small.lower(model), tmp_path).is_file()


def test_a_fault_that_tensorrt_would_not_see_is_refused(tmp_path: Path) -> None:
    """Unsigned activations are taken as signed ones, silently."""
    model = network()
    stem = next(node for node in model.graph if node.name == "stem")
    scale = ir.tensor(np.array(0.1, np.float32), name="scale")
    zero = ir.tensor(np.array(128, np.uint8), name="zero")
    values = [add_initializer(model.graph, str(item.name), item) for item in (scale, zero)]
    quantize = ir.node("QuantizeLinear", [stem.inputs[0], *values], name="q")
    restore = ir.node("DequantizeLinear", [quantize.outputs[0], *values], name="d")
    quantize.outputs[0].name, restore.outputs[0].name = "q_out", "d_out"
    model.graph.insert_before(stem, [quantize, restore])
    stem.replace_input_with(0, restore.outputs[0])
    infer_shapes(model)
    with pytest.raises(
        InputError, match=r"TensorRT 10\.3 on the Jetson Orin Nano cannot take this.*(zero|UINT8)"
    ):
        JetsonTarget().build(model, tmp_path)


def test_what_is_said_of_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = JetsonTarget()
    artifact = shipped(target, tmp_path)
    monkeypatch.setattr(rtx.importlib.util, "find_spec", lambda name: None)
    info = target.build_info(artifact)
    assert (info.status, info.built) == ("not built on the device", False)
    lint, parser = info.checks
    assert lint.passed is True
    assert parser.passed is None
    assert "a check of parsing, not of speed" in parser.note
    assert "pip install 'greencc[rtx]'" in parser.note
    assert "build.sh" in info.steps[1]


def test_a_file_that_holds_more_than_the_engine_is_said_to(tmp_path: Path) -> None:
    target, model = JetsonTarget(), network()
    model.metadata_props[PRECISION] = "fp16"
    findings = target.findings(target.build(model, tmp_path))
    assert [each for each in findings if "the file holds float32" in each]
    assert all(isinstance(each, str) for each in findings)


def test_samples_keep_their_types(tmp_path: Path) -> None:
    target = JetsonTarget()
    artifact = target.build(target.lower(network()), tmp_path)
    feeds = {"image": np.ones((1, 3, 8, 8), np.float32)}
    outputs = {"scores": np.ones((1, 4), np.float16), "ids": np.array([[7]], ">i8")}
    target.ship(artifact, Shipment("a name; with spaces", [feeds], [outputs]))
    (sample,) = json.loads((tmp_path / "samples" / "samples.json").read_text())["samples"]
    half, whole = sample["outputs"]
    assert (half["dtype"], whole["dtype"]) == ("float32", "int64")
    assert (tmp_path / "samples" / whole["file"]).read_bytes() == (7).to_bytes(8, "little")
    assert sample["inputs"][0]["free"] is True
    assert "device:a-name--with-spaces" in (tmp_path / "README.txt").read_text()
    assert json.loads((tmp_path / "device.json").read_text())["power_mode"] is None


FAKE_RTX = """
import os, signal, sys, time
what = os.environ["DOUBLE_RTX"]
__version__ = "1.7"
if what == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "slow":
    time.sleep(60)
if what == "exit":
    sys.exit(0)
if what == "memory":
    kept = bytearray(64 << 30)
raise ImportError("libnvinfer_rtx.so: cannot open")
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("crash", r"TensorRT for RTX crashed \(SIGSEGV\) while reading the graph"),
        ("slow", "reading the graph did not end within 0.7 s"),
        ("exit", "gave no answer while reading the graph"),
        ("memory", r"failed \(MemoryError\)"),
        ("import", "libnvinfer_rtx.so: cannot open"),
    ],
)
def test_a_library_that_fails_is_one_message(
    what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(textwrap.dedent(FAKE_RTX))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DOUBLE_RTX", what)
    target = JetsonTarget()
    artifact = target.build(target.lower(network()), tmp_path / "artifact")
    answer = rtx.parse_rtx(artifact, seconds=0.7 if what == "slow" else 60.0)
    assert not answer.good
    assert re.search(message, answer.reason), answer.reason
    if what != "crash":
        return
    engine = tmp_path / "engine.plan"
    built = rtx.build_rtx(artifact, 89, {}, engine)
    assert not built.good
    assert not engine.exists()


def rtx_or_skip() -> None:
    if missing := rtx.missing_rtx():
        pytest.skip(missing)


@pytest.mark.parametrize(
    "spec", ["jetson", "jetson-nano", "jetson-thor", "tensorrt:11.4,gpu=l4", "tensorrt-rtx"]
)
def test_the_rtx_parser_reads_what_is_emitted(spec: str, tmp_path: Path) -> None:
    rtx_or_skip()
    target = emitted(spec)
    answer = rtx.parse_rtx(target.build(target.lower(network()), tmp_path))
    assert answer.good, answer.reason


def test_the_rtx_parser_names_what_it_cannot_read(tmp_path: Path) -> None:
    rtx_or_skip()
    import onnx

    onnx.save(ir.to_proto(unsupported()), tmp_path / "model.onnx")
    answer = rtx.parse_rtx(tmp_path / "model.onnx")
    assert [fault.op for fault in answer.faults] == ["Strange"]


def test_an_rtx_engine_is_built_ahead_of_time_and_never_claimed_to_have_run(tmp_path: Path) -> None:
    rtx_or_skip()
    target = TensorRtRtxTarget()
    artifact = shipped(target, tmp_path)
    assert (tmp_path / "engine.plan").stat().st_size > 1000
    info = target.build_info(artifact)
    assert info.built is False
    assert info.status == "built ahead of time, never run on the device"
    assert all(check.passed for check in info.checks)
    assert "nothing ran it" in info.checks[-1].note
