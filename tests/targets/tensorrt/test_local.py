"""The GPU in this computer: what is found, and why it cannot be used. Drivers are doubles in processes of their own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler.on_device import _with_gpu, opened_target
from greencc.compiler.untimed import Estimator
from greencc.core.elsewhere import DistantEngine, Stretch
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.model import load_model
from greencc.devices.facts import DeviceFacts
from greencc.devices.target import DeviceTarget
from greencc.targets import TensorRtTarget, format_spec, make_target
from greencc.targets._tensorrt import local
from greencc.targets._tensorrt.machine import TensorRtVersion

HERE = Path(__file__).parent
AGENT = HERE.parents[1] / "agent"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Doubles of CUDA's driver and runtime."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which makes the doubles of CUDA, is not installed")
    folder = tmp_path_factory.mktemp("cuda")
    sources = {"libcuda.so.1": HERE / "fake_libcuda.c", "libcudart.so": AGENT / "fake_cudart.c"}
    for name, source in sources.items():
        command = ["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Answers are kept for a process; each test asks anew."""
    for asked in (local.gpu_here, local.version_here):
        asked.cache_clear()
    yield
    for asked in (local.gpu_here, local.version_here):
        asked.cache_clear()


@pytest.fixture
def gpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer, with an Ada and TensorRT 10.7."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    monkeypatch.setenv("PYTHONPATH", str(AGENT / "fake_tensorrt"))
    monkeypatch.setenv("FAKE_TRT_VERSION", "10.7.0")
    monkeypatch.setenv("FAKE_CUDA_SM", "89")


def test_what_is_here(gpu: None) -> None:
    machine = local.machine_here()
    assert machine.version == TensorRtVersion(10, 7)
    assert (machine.gpu.sm, machine.memory_bytes) == (89, 8 << 30)
    assert local.gpu_here().name == "NVIDIA Test"
    assert local.missing_here() is None
    target = TensorRtTarget()
    assert target.missing() is None
    assert target.machine == machine
    assert target.title == "NVIDIA Test"
    # A version that is asked for counts before that of this computer.
    assert TensorRtTarget(version="8.6").machine.version == TensorRtVersion(8, 6)
    with pytest.raises(
        UsageError, match=r"TensorRT 8\.4 does not build for compute capability 8\.9.*NVIDIA Test"
    ):
        TensorRtTarget(version="8.4").machine  # noqa: B018 - it raises


def test_another_cards_profile_is_not_taken(gpu: None) -> None:
    """It has the chip of an RTX 4090, and is none."""
    target = TensorRtTarget()
    assert target.profile_name == ""
    assert target.device().facts["device_profile"] == "none"
    with pytest.raises(UnavailableError, match=r"no device profile of the NVIDIA Test.*--device"):
        Estimator.of(target)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("FAKE_CUDA_STATUS", "100", "it finds no GPU"),
        ("FAKE_CUDA_STATUS", "803", "different versions"),
        ("FAKE_CUDA_STATUS", "999", "error 999"),
        ("FAKE_CUDA_CRASH", "1", r"crashes when it is asked \(signal 11\)"),
        ("FAKE_CUDA_SM", "35", "compute capability 35 is not known"),
        ("FAKE_CUDA_SM", "121", r"TensorRT 10\.7 does not build for compute capability 12\.1"),
        ("FAKE_TRT_VERSION", "7.1.3", "TensorRT 7.1.3 is not known"),
        ("PYTHONPATH", "", "TensorRT cannot be used here: .*cannot be imported"),
        ("FAKE_CUDA_DEVICES", "0", "TensorRT cannot be used here: .*no CUDA-capable device"),
    ],
)
def test_what_is_in_the_way(
    name: str, value: str, text: str, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match=text):
        local.machine_here()
    missing = TensorRtTarget().missing()
    assert missing is not None
    assert "gpu=NAME" in missing
    with pytest.raises(UnavailableError, match="cannot be used here"):
        TensorRtTarget().card  # noqa: B018 - it raises


def test_a_driver_that_hangs(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_HANG", "1")
    monkeypatch.setattr(local, "_ASK_SECONDS", 0.5)
    with pytest.raises(UnavailableError, match=r"does not answer within 0\.5 s"):
        local.gpu_here()


def test_tensorrt_that_crashes_when_it_is_imported(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_FAULT", "segfault")
    monkeypatch.setenv("FAKE_TRT_WHERE", "import")
    with pytest.raises(UnavailableError, match="SIGSEGV"):
        local.version_here()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library to ask: what is plugged in decides on what is said."""
    monkeypatch.setattr(local, "_ask_driver", lambda: {"missing": True})
    monkeypatch.setattr(local, "_on_the_bus", lambda: True)
    with pytest.raises(UnavailableError, match=r"driver .* is not installed"):
        local.gpu_here()
    monkeypatch.setattr(local, "_on_the_bus", lambda: False)
    with pytest.raises(UnavailableError, match="there is no NVIDIA GPU here"):
        local.gpu_here()


@pytest.mark.parametrize(
    ("name", "sm", "named"),
    [
        ("Tesla T4", 75, "t4"),
        ("NVIDIA H200", 90, "h200"),
        ("NVIDIA H100 80GB HBM3", 90, "sm90"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 89, "sm89"),
    ],
)
def test_any_gpu_of_a_device(name: str, sm: int, named: str) -> None:
    """It goes by its own name: another card with its chip has other memory and speed."""
    told = {
        "gpu": {"name": name, "sm": sm, "memory_bytes": 16 << 30},
        "tensorrt": {"version": "10.7.0.23"},
    }
    target = _with_gpu(TensorRtTarget(batch=4), DeviceFacts.parse(told, "it"))
    assert isinstance(target, TensorRtTarget)
    assert target.missing() is None
    assert (target.machine.gpu.sm, target.machine.version) == (sm, TensorRtVersion(10, 7))
    assert (target.machine.memory_bytes, target.title) == (16 << 30, name)
    # What a bundle says of it can be read again.
    again = make_target(format_spec(target))
    assert again == TensorRtTarget(batch=4, version="10.7", gpu=named)


@pytest.mark.parametrize(("gpu", "text"), [(None, "no NVIDIA GPU"), (("K80", 37), "K80 is not known: .* 37")])
def test_a_device_whose_gpu_will_not_do(gpu: tuple[str, int] | None, text: str) -> None:
    told = {} if gpu is None else {"gpu": {"name": gpu[0], "sm": gpu[1]}}
    with pytest.raises(UnavailableError, match=text):
        _with_gpu(TensorRtTarget(), DeviceFacts.parse(told, "it"))


@pytest.mark.full
@pytest.mark.parametrize("sm", [89, 75])
def test_the_target_runs_on_it(sm: int, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device being named: the agent of this computer builds, and answers with what it computes."""
    monkeypatch.setenv("GREENCC_AGENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAKE_CUDA_SM", str(sm))
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"])]
    weight = numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32), "w"
    )
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 6, 6]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    feed = {"x": np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    with opened_target("tensorrt") as target:
        assert isinstance(target, DeviceTarget)
        assert target.named().name == "tensorrt"
        engine = target.open(target.build(target.lower(load_model(path)), tmp_path / "artifact"))
        assert isinstance(engine, DistantEngine)
        found = engine.run(feed)["y"]
        driven = engine.drive([feed], Stretch(runs=3))
        engine.close()
    assert (driven.count, len(driven.services_ms)) == (3, 3)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    # In half precision, as strongly typed graphs are.
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-2)


def test_gpus_of_others_need_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> dict[str, object]:
        raise AssertionError("the driver is not asked for another machine")

    monkeypatch.setattr(local, "_ask_driver", asked)
    target = TensorRtTarget(gpu="rtx-4090")
    assert target.missing() is None
    assert target.machine.gpu.sm == 89
