"""The backends' benchmark: what is compared, jobs on a tiny model, rooflines, goals, and what the tables say."""

import copy
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import backends_build as builds
from benchmarks import backends_jobs as jobs
from benchmarks import backends_tools as tools
from benchmarks import bench_backends as bench
from benchmarks import peaks as peak_module
from benchmarks import render_backends as tables
from benchmarks import results
from benchmarks.backends_plots import Dot, Line, Panel, roofline_svg, scaling_svg
from benchmarks.cases import Case, example
from benchmarks.jobs import JOBS
from benchmarks.peaks import COMPILERS, Peaks, measure_peaks
from benchmarks.render import TABLES
from benchmarks.results import Settings
from benchmarks.rooflines import ARITHMETIC, BANDWIDTH, bound_of, layers_of, sizes_of
from benchmarks.run import BENCHMARKS
from greencc.core.engine import NodeTime
from greencc.core.errors import InputError, UnavailableError
from greencc.core.model import load_model
from greencc.measure import profiles
from greencc.measure.profiles import Profile

FLOAT = onnx.TensorProto.FLOAT
PEAKS = Peaks(512, 1e11, "vpdpbusd", 4e11, ((1 << 10, 2e11), (1 << 20, 1e11), (1 << 24, 1e10)))
FAST = Profile("test", seconds=0.02, rounds=3, min_rounds=3, min_runs=1, warm_up_seconds=0.01)


def network(path, seed=0):
    """Convolution, mean and product: (n, 3, 8, 8) -> (n, 4)."""
    rng = np.random.default_rng(seed)
    arrays = {
        "k": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "w": rng.normal(size=(8, 4)).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["r"], name="relu"),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        onnx.helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        onnx.helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(1)
    for name, count in (("cal", 16), ("eval", 24)):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(count, 3, 8, 8)).astype(np.float32))
    return Case("tiny", network(tmp_path / "m.onnx"), tmp_path / "cal.npz", tmp_path / "eval.npz")


# --- what is compared ------------------------------------------------------------------------------------------------


def test_artifacts_have_keys_colours_and_jobs_of_their_own():
    keys = [item.key for item in tools.ITEMS]
    assert len(set(keys)) == len(keys) == 8
    colours = {(tables.colour_of(item), item.precision) for item in tools.ITEMS}
    assert len(colours) == len(keys)
    assert BENCHMARKS["backends"] is bench.run
    assert set(jobs.BACKEND_JOBS) <= set(JOBS)


def test_rivals_are_the_other_backends_and_the_own_other_forms():
    tuned = tools.Item(tools.TVM, tools.INT8, True)
    assert tuned.rivals == {
        "cpu": "cpu-int8",
        "openvino": "openvino-int8",
        "tvm-cpu": "tvm-cpu-int8",
        "fp32": "tvm-cpu-fp32-tuned",
        "untuned": "tvm-cpu-int8",
    }
    assert tools.Item(tools.ORT, tools.FP32).rivals == {
        "openvino": "openvino-fp32",
        "tvm-cpu": "tvm-cpu-fp32",
    }


def test_a_backend_that_is_not_there_says_why(monkeypatch):
    assert bench.missing("tvm-mips") == "this version has no target tvm-mips"
    assert bench.missing("cpu") is None


def test_the_time_of_tuning_is_asked_for(monkeypatch):
    monkeypatch.delenv(tools.TUNE_VARIABLE, raising=False)
    assert tools.tuning_seconds(False) == 600.0
    monkeypatch.setenv(tools.TUNE_VARIABLE, "90s")
    assert tools.tuning_seconds(False) == 90.0
    assert tools.tuning_seconds(True) == tools.QUICK_TUNE


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_a_result_and_so_is_a_crash():
    def refuse():
        raise InputError("the model is odd", hint="do this")

    def crash():
        raise KeyError("shape")

    assert builds.told(refuse)() == {"error": "the model is odd (do this)"}
    assert builds.told(crash)() == {"error": "KeyError: 'shape'"}


def test_a_tiny_model_is_built_started_measured_judged_and_profiled(case, tmp_path, monkeypatch):
    # The job sets it; here the test's own value comes back.
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profiles, "QUICK", FAST)
    monkeypatch.setattr(peak_module, "measure_peaks", lambda: PEAKS)
    items = []
    for item in tools.ITEMS[:2]:
        built = builds.build_backend(
            model=str(case.model),
            calibration=str(case.calibration),
            evaluation=str(case.evaluation),
            samples=16,
            backend=item.backend,
            precision=item.precision,
            threads=[1],
            folder=str(tmp_path / item.key),
            tune_seconds=0.0,
        )
        assert "error" not in built
        assert built["build_seconds"]["1"] > 0
        target = {"target": "cpu:threads=1", "artifact": built["artifacts"]["1"], "form": built["form"]}
        items.append({"key": item.key, "rivals": item.rivals, "group": item.precision, **target})
    operators = [{node.op_type for node in onnx.load(item["artifact"]).graph.node} for item in items]
    assert "QuantizeLinear" not in operators[0]
    assert "QuantizeLinear" in operators[1]

    np.savez(tmp_path / "first.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    started = jobs.start_backend(
        target="cpu", artifact=items[0]["artifact"], feeds=str(tmp_path / "first.npz"), begun=0.0
    )
    parts = ("interpreter", "imports", "load", "first_run")
    assert started["total"] == pytest.approx(sum(started[part] for part in parts))

    measured = jobs.measure_backends(
        items=items, data=str(case.evaluation), threads=1, batches=[1, 32], table_batches=[1], quick=True
    )
    assert measured["errors"] == {}
    point = measured["latency"]["cpu-int8"]["1"]
    assert point["median"] > 0
    assert set(point["speedups"]) == {"fp32", "best"}
    assert point["best"] == "cpu-int8"
    assert point["speedups"]["best"]["value"] == pytest.approx(1.0)
    # There are 24 samples only.
    assert "fewer samples" in measured["latency"]["cpu-int8"]["32"]["error"]

    judged = jobs.judge_backends(
        model=str(case.model),
        items=items,
        data=str(case.evaluation),
        metric=None,
        labelled=False,
        synthetic=False,
    )["rows"]
    assert judged["cpu-fp32"]["difference"]["largest"] < 1e-4
    assert judged["cpu-fp32"]["accuracy"]["agreement"] == 1.0
    assert "drop" not in judged["cpu-fp32"]["accuracy"]

    profiled = jobs.profile_backends(items=items, data=str(case.evaluation))["rows"]
    layers = {layer["name"]: layer for layer in profiled["cpu-fp32"]["layers"]}
    assert layers["conv"]["macs"] == 8 * 3 * 9 * 64
    assert layers["conv"]["distance"] > 0
    assert any(layer["integers"] for layer in profiled["cpu-int8"]["layers"])


def test_what_cannot_be_tuned_says_so(case, tmp_path, monkeypatch):
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    found = builds.build_backend(
        model=str(case.model),
        calibration=str(case.calibration),
        evaluation=None,
        samples=16,
        backend="cpu",
        precision="fp32",
        threads=[1],
        folder=str(tmp_path / "tuned"),
        tune_seconds=1.0,
    )
    assert "nothing to tune" in found["error"]


class Fixed:
    """An engine that gives what it is told to."""

    def __init__(self, *values):
        self._values = np.array(values)

    def run(self, feeds):
        return {"y": self._values}


def test_the_largest_difference_passes_over_what_is_not_finite():
    found = jobs.largest_difference(Fixed(1.0, -4.0, np.inf), Fixed(1.5, -4.0, 2.0), [{}, {}])
    assert found == {"largest": 0.5, "scale": 4.0, "broken": 2, "samples": 2}
    assert jobs.largest_difference(Fixed(1.0), Fixed(1.0, 2.0), [{}])["broken"] == 1


# --- rooflines -------------------------------------------------------------------------------------------------------


def test_the_least_time_comes_from_operations_or_bytes():
    # 2 * 5e5 operations at 1e11 a second are 10 µs; 1,000 bytes at 2e11 a second are 5 ns.
    assert bound_of(500_000, 1000, False, PEAKS) == (pytest.approx(10.0), ARITHMETIC)
    assert bound_of(500_000, 1000, True, PEAKS) == (pytest.approx(2.5), ARITHMETIC)
    assert bound_of(0, 1 << 22, False, PEAKS) == (pytest.approx((1 << 22) / 1e4), BANDWIDTH)
    assert bound_of(None, 10, False, PEAKS) == (None, None)
    assert bound_of(0, 0, False, PEAKS) == (None, None)
    assert bound_of(10, 10, True, replace(PEAKS, int8_ops=None)) == (None, None)


def test_bytes_are_read_from_the_smallest_memory_that_holds_them():
    assert PEAKS.read_rate(1024) == 2e11
    assert PEAKS.read_rate(1025) == 1e11
    assert PEAKS.read_rate(1 << 30) == 1e10


def test_layers_have_the_work_of_their_node_and_all_the_time_of_what_is_fused(tmp_path):
    model = load_model(network(tmp_path / "m.onnx"))
    feeds = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    assert sizes_of(model, feeds) == {"n": 2}
    times = [
        NodeTime("product", "MatMul", 3.0),
        NodeTime("conv", "Conv", 8.0),
        NodeTime("reorder", "Reorder", 1.0),
    ]
    layers = layers_of(model, feeds, times, PEAKS)
    assert [layer.microseconds for layer in layers] == [8.0, 3.0, 1.0]
    assert layers[0].macs == 2 * 8 * 3 * 9 * 64
    assert layers[0].distance == pytest.approx(8.0 / (2e6 * layers[0].macs / 1e11))
    assert layers[1].macs == 2 * 8 * 4
    assert layers[2].distance is None
    assert layers[2].macs is None


def test_without_a_compiler_there_are_no_peaks(monkeypatch):
    monkeypatch.setattr(peak_module.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match="no C compiler"):
        measure_peaks()


def test_a_program_that_does_not_compile_is_an_error(monkeypatch, tmp_path):
    if not any(map(peak_module.shutil.which, COMPILERS)):
        pytest.skip("no C compiler")
    monkeypatch.setattr(peak_module, "SOURCE", tmp_path / "none.c")
    with pytest.raises(UnavailableError, match="cannot be measured"):
        measure_peaks()


@pytest.mark.full
def test_peaks_of_this_machine_are_measured():
    if not any(map(peak_module.shutil.which, COMPILERS)):
        pytest.skip("no C compiler")
    found = measure_peaks()
    assert found.float_ops > 1e8
    assert (found.int8 is None) == (found.int8_ops is None)
    sizes = [size for size, _ in found.bandwidth]
    assert sizes == sorted(set(sizes))
    assert all(rate > 0 for _, rate in found.bandwidth)


# --- results of cases ------------------------------------------------------------------------------------------------


def settings(tmp_path, *cases):
    return Settings(None, 1, True, "python -m benchmarks.run", tmp_path, cases=cases)


def test_cases_are_merged_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    a, b = Case("a", Path("a.onnx")), Case("b", Path("b.onnx"))
    for case, value in ((a, 1), (b, 2), (a, 3)):
        bench._merge(
            settings(tmp_path, case.name), "backends", case, [{"case": case.name, "v": value}], {"n": value}
        )
    found = results.load("backends")
    assert found["rows"] == [{"case": "b", "v": 2}, {"case": "a", "v": 3}]
    assert found["cases"] == {"a": {"n": 3}, "b": {"n": 2}}
    bench._keep(settings(tmp_path), "backends", {"b"})
    found = results.load("backends")
    assert found["rows"] == [{"case": "b", "v": 2}]
    assert found["cases"] == {"b": {"n": 2}}


def test_a_model_that_nothing_can_be_fed_to_is_a_row_with_the_reason(tmp_path):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, [])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "s.onnx"
    )
    case = Case("scalar", tmp_path / "s.onnx")
    rows, note, roofline = bench._Bench(case, settings(tmp_path)).run()
    assert len(rows) == len(tools.ITEMS)
    assert all("scalar" in row["error"] for row in rows)
    assert note["convolutions"] == 0
    assert roofline["rows"] == []


def test_an_inverse_turns_the_interval_around():
    assert bench._inverse({"value": 0.5, "low": 0.25, "high": 1.0}) == {"value": 2.0, "low": 1.0, "high": 4.0}
    assert bench._inverse({"value": 2.0, "low": 0.0, "high": None}) == {
        "value": 0.5,
        "low": None,
        "high": 0.0,
    }
    assert bench._inverse(None) is None


def test_the_shipped_example_is_a_network():
    assert bench._convolutions(example().model) > 0


# --- goals and tables ------------------------------------------------------------------------------------------------


def point(median, best, **speedups):
    ratios = {name: {"value": v, "low": v * 0.9, "high": v * 1.1} for name, v in speedups.items()}
    return {
        "error": None,
        "best": best,
        "median": median,
        "p95": median * 1.2,
        "runs": 60,
        "clean": True,
        "speedups": ratios,
    }


def row(item, median, best, **speedups):
    measured = {str(batch): point(median * batch, best, **speedups) for batch in tools.BATCHES}
    tuning = [{"threads": 1, "seconds": 30.0, "kernels": 5, "faster": 2}] if item.tuned else []
    return {
        "case": "resnet <8>",
        "key": item.key,
        "backend": item.backend,
        "precision": item.precision,
        "tuned": item.tuned,
        "error": None,
        "passes_seconds": 1.0,
        "build_seconds": {"1": 2.0},
        "tuning": tuning,
        "size_bytes": 1e6,
        "memory_mb": 10.0,
        "memory_reason": None,
        "start": {name: {"median": 0.5} for name in ("total", "load", "first_run")},
        "difference": {"largest": 1e-3, "scale": 5.0, "broken": 0},
        "accuracy": {"artifact": 0.9, "agreement": 0.99, "drop": 0.01, "low": 0.0, "high": 0.02},
        "latency": {"1": measured, "2": copy.deepcopy(measured)},
    }


@pytest.fixture
def document():
    tvm = tools.TVM
    rows = [
        row(tools.Item(tools.ORT, tools.FP32), 1.0, "cpu-fp32"),
        row(tools.Item(tvm, tools.FP32), 2.5, "cpu-fp32", cpu=0.4),
        row(tools.Item(tvm, tools.FP32, True), 1.1, "", cpu=0.9),
        row(tools.Item(tvm, tools.INT8), 1.0, "tvm-cpu-int8", fp32=2.5),
    ]
    failed = {"case": "resnet <8>", "key": "openvino-fp32", "backend": "openvino", "precision": "fp32"}
    rows.append({**failed, "tuned": False, "error": "openvino is not installed"})
    ratio = {"value": 1.05, "low": 1.04, "high": 1.06}
    choice = {
        "precision": "fp32",
        "threads": 1,
        "error": None,
        "backend": tvm,
        "form": "fp32",
        "best": "cpu-fp32",
        "ratio": ratio,
    }
    note = {
        "created": "2026-01-01",
        "command": "x",
        "quick": True,
        "load": 0.1,
        "load_after": 0.2,
        "cpu": "CPU",
        "threads": [1, 2],
        "convolutions": 3,
        "tune_seconds": 600.0,
        "choice": [choice, {"precision": "int8", "threads": 1, "error": "refused"}],
    }
    return {"rows": rows, "cases": {"resnet <8>": note}}


def test_goals_are_judged_at_the_worst_setting(document):
    slow = document["rows"][1]
    slow["latency"]["2"]["8"]["speedups"]["cpu"]["value"] = 0.3
    found = tools.judged("c", slow, tools.ORT, 0.5, [1, 2])
    assert (found.met, found.worst, found.where) == (False, 0.3, "2 threads, batch 8")
    assert tools.judged("c", slow, tools.ORT, 0.3, [1, 2]).met
    assert not tools.judged("c", slow, tools.ORT, 0.3, [1, 2], strict=True).met
    assert tools.judged("c", None, tools.ORT, 0.5, [1]) is None
    assert tools.judged("c", {"error": "no"}, tools.ORT, 0.5, [1]) is None


def test_losses_are_told_as_openly_as_wins(document):
    text = tables.goals_table(document)
    assert "TVM FP32 untuned within 2x of ONNX Runtime: **missed** (0 of 1 models)." in text
    assert "resnet <8> 0.40x (1 thread, batch 1)" in text
    assert "TVM FP32 tuned within 1.2x of it on the ResNets: **met** (1 of 1 models)." in text
    assert "TVM INT8 faster than its FP32 on every CNN, both untuned: **met** (1 of 1 models)." in text
    assert "on EfficientNet, both untuned: nothing to judge." in text
    assert "slower than the best single backend: **missed** (0 of 1 choices)." in text
    assert "TVM 1.05 [1.04, 1.06]" in text
    assert "Not measured: OpenVINO FP32: openvino is not installed (resnet <8>)." in text
    assert "| resnet <8> | **1** |" in text


def roofline_document(document):
    layer = {
        "name": "conv",
        "op_type": "Conv",
        "microseconds": 8.0,
        "integers": False,
        "macs": 1000,
        "bytes": 500,
        "bound_us": 4.0,
        "limit": ARITHMETIC,
        "distance": 2.0,
    }
    inserted = {**layer, "name": "(Reorder)", "macs": None, "bytes": None, "bound_us": None, "limit": None}
    head = {key: document["rows"][1][key] for key in ("case", "key", "backend", "precision", "tuned")}
    measured = {**head, "error": None, "total_us": 10.0, "layers": [layer, {**inserted, "distance": None}]}
    told = {
        "width_bits": 512,
        "float_ops": 1e11,
        "int8": None,
        "int8_ops": None,
        "bandwidth": [[1024, 1e11], [1 << 20, 1e10]],
    }
    notes = {"resnet <8>": {"peaks": told}, "other": {"error": "no C compiler"}}
    return {"rows": [measured], "cases": notes}


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("backends")])
def test_every_section_is_rendered(name, document, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "IMAGES", tmp_path / "images")
    given = roofline_document(document) if name == "backends_roofline" else document
    text = TABLES[name](given)
    assert "resnet" in text or name == "backends-scaling"
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count(" | ") for line in block.splitlines()}) == 1
    for path in (tmp_path / "images").glob("*.svg"):
        ET.parse(path)
        assert f"images/{path.name}" in text
    if name == "backends_roofline":
        assert "2.00 (80 %)" in text
        assert "no C compiler" in text
        assert "INT8 none measured" in text


def test_pictures_name_their_series_and_escape_their_titles():
    lines = [Line("fast & new", "#2563eb", True, [(1.0, 1.0), (8.0, 0.5)])]
    root = ET.fromstring(scaling_svg("A <title>", "batch", "ms", [Panel("net <1>", lines)]))
    texts = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A <title>", "net <1>", "fast & new"} <= set(texts)
    dots = [Dot("TVM", "#15803d", "net: <conv>", 20.0, 5e10, 0.5)]
    root = ET.fromstring(roofline_svg("Roof", PEAKS, [("FP32", False, dots)]))
    texts = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "100 Gop/s" in texts
    assert "TVM" in texts
