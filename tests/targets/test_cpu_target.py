"""The cpu target as a whole: specs, build, lower, profile, device, versions."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.targets import TARGETS, CpuTarget, format_spec, make_target
from greencc.targets._lower import within_versions
from greencc.targets._ort import Optimization
from greencc.targets._ort_profile import read_profile
from greencc.targets.cpu import describe_device


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("cpu", CpuTarget()),
        (" cpu ", CpuTarget()),
        ("cpu:threads=2", CpuTarget(threads=2)),
        ("cpu:threads=1,optimization=basic", CpuTarget(threads=1, optimization=Optimization.BASIC)),
    ],
)
def test_specs_in_both_directions(spec: str, target: CpuTarget) -> None:
    assert make_target(spec) == target
    assert make_target(format_spec(target)) == target


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cpi", "unknown target 'cpi'.*did you mean 'cpu'"),
        ("", "unknown target ''.*known: cpu"),
        ("cpu:thread=2", "no option 'thread'.*did you mean 'threads'"),
        ("cpu:threads", "has no value"),
        ("cpu:threads=two", "expected int"),
        ("cpu:threads=1,threads=2", "given twice"),
        ("cpu:threads=-1", "threads is -1"),
        ("cpu:optimization=al", "did you mean 'all'"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_target(spec)


def test_targets_are_available_and_named() -> None:
    assert [kind.name for kind in TARGETS] == [
        "cpu",
        "openvino",
        "tvm-cpu",
        "tvm-arm",
        "jetson",
        "tensorrt",
        "tensorrt-rtx",
    ]
    assert CpuTarget().missing() is None


def test_a_missing_or_old_runtime_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ort, "__version__", "1.9.0")
        assert "too old" in str(CpuTarget().missing())
    with monkeypatch.context() as patch:
        patch.setattr(ort, "get_available_providers", lambda: ["OtherProvider"])
        assert "no CPU execution provider" in str(CpuTarget().missing())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install onnxruntime" in str(CpuTarget().missing())
    with pytest.raises(UnavailableError, match="not installed"):
        CpuTarget().versions()


def test_building_twice_gives_the_same_bytes(tmp_path: Path, mlp_ir: ir.Model) -> None:
    target = CpuTarget()
    first = target.build(target.lower(mlp_ir), tmp_path / "a")
    second = target.build(target.lower(mlp_ir.clone()), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in (tmp_path / "b").iterdir()
    )
    assert target.open(first).run({"x": np.zeros((1, 8), np.float32)})["y"].shape == (1, 4)


def test_an_unwritable_folder_is_an_input_error(tmp_path: Path, mlp_ir: ir.Model) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        CpuTarget().build(mlp_ir, tmp_path / "file" / "folder")


def test_a_model_that_fits_is_not_touched(mlp_ir: ir.Model) -> None:
    assert CpuTarget().lower(mlp_ir) is mlp_ir


def test_versions_are_lowered(make_mlp: Callable[..., onnx.ModelProto]) -> None:
    model = ir.from_proto(make_mlp(opset=21, ir_version=10))
    lowered = within_versions(model, max_opset=18, max_ir_version=8)
    assert (lowered.opset_imports[""], lowered.ir_version) == (18, 8)
    assert (model.opset_imports[""], model.ir_version) == (21, 10)
    values = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    target = CpuTarget(threads=1)
    np.testing.assert_array_equal(
        target.reference(lowered).run({"x": values})["y"], target.reference(model).run({"x": values})["y"]
    )


def test_an_operator_without_a_way_down_is_an_input_error(make_model: Callable[..., onnx.ModelProto]) -> None:
    from onnx import TensorProto, helper

    model = make_model(
        [helper.make_node("Gelu", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        {},
        opset=21,
    )
    with pytest.raises(InputError, match="uses opset 21"):
        within_versions(ir.from_proto(model), max_opset=19, max_ir_version=9)


def test_profile_names_the_runtime_nodes(mlp_file: Path) -> None:
    target = CpuTarget(threads=1, optimization=Optimization.NONE)
    times = target.profile(mlp_file, {"x": np.zeros((3, 8), np.float32)}, runs=4)
    assert [(time.name, time.op_type) for time in times] == [
        ("first", "Gemm"),
        ("relu", "Relu"),
        ("second", "MatMul"),
    ]
    assert all(time.microseconds >= 0 for time in times)


def test_profile_of_a_fixed_batch_runs_the_first_batch(
    tmp_path: Path, make_mlp: Callable[..., onnx.ModelProto]
) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(make_mlp(2), path)
    times = CpuTarget(threads=1).profile(path, {"x": np.zeros((5, 8), np.float32)}, runs=2)
    assert any("first" in time.name for time in times)


def test_profiling_needs_a_run(mlp_file: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 run"):
        CpuTarget().profile(mlp_file, {"x": np.zeros((1, 8), np.float32)}, runs=0)


def kernel(name: str, op: str, start: int, duration: int, index: str = "0") -> dict[str, object]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": op, "node_index": index},
    }


def end_of_run() -> dict[str, object]:
    return {"cat": "Session", "name": "model_run", "ts": 0, "dur": 0}


def write(path: Path, events: object) -> Path:
    path.write_text(json.dumps(events))
    return path


def test_profile_is_the_median_over_runs_without_warm_up(tmp_path: Path) -> None:
    events: list[object] = []
    for duration in (1000, 10, 30, 20):
        events += [kernel("conv", "Conv", 0, duration), end_of_run()]
    (time,) = read_profile(write(tmp_path / "p.json", events), skip_runs=1)
    assert (time.name, time.op_type, time.microseconds) == ("conv", "Conv", 20.0)


def test_profile_counts_a_loop_body_once(tmp_path: Path) -> None:
    events = [
        kernel("add", "Add", 10, 5),
        kernel("add", "Add", 20, 5),
        kernel("loop", "Loop", 0, 100, "1"),
        kernel("after", "Relu", 100, 7, "2"),
        end_of_run(),
    ]
    times = read_profile(write(tmp_path / "p.json", events))
    assert [(time.name, time.microseconds) for time in times] == [("loop", 100.0), ("after", 7.0)]


def test_profile_keeps_nodes_of_one_name_apart(tmp_path: Path) -> None:
    events = [
        kernel("ReorderOutput", "ReorderOutput", 0, 1, "0"),
        kernel("ReorderOutput", "ReorderOutput", 5, 2, "1"),
        end_of_run(),
    ]
    assert [time.microseconds for time in read_profile(write(tmp_path / "p.json", events))] == [1.0, 2.0]


@pytest.mark.parametrize("events", [{}, [], [kernel("a", "Add", 0, 1)]])
def test_profiles_without_runs_are_refused(tmp_path: Path, events: object) -> None:
    with pytest.raises(InputError):
        read_profile(write(tmp_path / "p.json", events))


def recorded(root: Path, memory_kb: int = 8_000_000, governor: str = "performance") -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("processor : 0\nmodel name : Test CPU\nflags : avx2 fma\n")
    (root / "proc/meminfo").write_text(f"MemTotal: {memory_kb} kB\n")
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text(governor)
    return root


def test_the_fingerprint_covers_what_decides_speed(tmp_path: Path) -> None:
    device = describe_device(2, recorded(tmp_path / "a"))
    assert device.name == "Test CPU"
    assert device.facts["governor"] == "performance"
    assert device.facts["features"] == "avx2 fma"
    same = describe_device(2, recorded(tmp_path / "b", governor="powersave"))
    assert same.fingerprint == device.fingerprint
    assert describe_device(1, tmp_path / "a").fingerprint != device.fingerprint
    assert describe_device(2, recorded(tmp_path / "c", 16_000_000)).fingerprint != device.fingerprint


def test_this_device_and_versions() -> None:
    device = CpuTarget(threads=1).device()
    assert len(device.fingerprint) == 64
    assert device.facts["threads"] == "1"
    assert CpuTarget().versions()["onnxruntime"] == ort.__version__


def test_the_options_are_the_fields() -> None:
    assert [field.name for field in dataclasses.fields(CpuTarget)] == ["threads", "optimization", "backend"]


def test_a_share_of_the_threads_never_takes_more_than_was_asked_for() -> None:
    assert CpuTarget(threads=4).with_threads(2).threads == 2
    assert CpuTarget(threads=1).with_threads(2).threads == 1
    assert CpuTarget().with_threads(1) == CpuTarget(threads=1)
