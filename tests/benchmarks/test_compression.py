"""The compression benchmark: the recipes it asks for, how it splits work, the peers' jobs, and what its tables say."""

import copy
import json
import math
import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bench_compression as bench
from benchmarks import compression_jobs as jobs
from benchmarks import compression_tools as tools
from benchmarks import render_compression as tables
from benchmarks.cases import Case, example
from benchmarks.child import Run
from benchmarks.compression_plots import HEIGHT, WIDTH, Point, Series, curves_svg
from benchmarks.compression_resnet import make_resnet50
from benchmarks.jobs import JOBS
from benchmarks.results import Settings
from benchmarks.run import BENCHMARKS
from greencc.core.describe import describe
from greencc.core.model import load_model
from greencc.core.recipe import parse_recipe
from greencc.passes import PASSES

FLOAT = onnx.TensorProto.FLOAT


# --- methods ---------------------------------------------------------------------------------------------------------


def test_methods_have_keys_jobs_and_colours_of_their_own():
    keys = [method.key for method in (*tools.BASES, *tools.METHODS)]
    assert len(set(keys)) == len(keys)
    assert {method.job for method in tools.METHODS} <= set(JOBS)
    assert {method.form for method in tools.METHODS} == set(tools.FORMS)
    assert set(tables.COLOURS) == {method.key for method in tools.METHODS}
    assert len(set(tables.COLOURS.values())) == len(tables.COLOURS)
    assert BENCHMARKS["compression"] is bench.run


def test_what_is_fine_tuned_is_built_before():
    seen: set[str] = set()
    for method in tools.METHODS:
        assert not method.start or method.start in seen
        seen.add(method.key)


@pytest.mark.parametrize("method", [m for m in tools.METHODS if m.steps], ids=lambda m: m.key)
def test_this_version_reads_the_recipes(method):
    steps = parse_recipe(method.recipe(0.3), PASSES)
    assert [step.name for step in steps] == [step["name"] for step in method.steps]
    # What this machine measures must not decide which points the curves have.
    assert not any(getattr(step, "measured", False) for step in steps)


def test_the_large_recipe_repairs_by_second_order():
    (step,) = parse_recipe(tools.recipe_text(bench.LARGE_STEPS), PASSES)
    assert step.repair
    assert step.score.value == "second-order"
    assert step.ratio == bench.LARGE_RATIO


@given(st.sampled_from(tools.RATIOS))
@settings(max_examples=6)
def test_two_steps_together_remove_what_was_asked_for(ratio):
    both = tools.method_of("greencc-both")
    found = [step["ratio"] for step in tomllib.loads(both.recipe(ratio))["pass"]]
    assert len(found) == 2
    assert 1 - math.prod(1 - share for share in found) == pytest.approx(ratio, abs=1e-5)
    single = tomllib.loads(tools.method_of("greencc-prune").recipe(ratio))["pass"]
    assert [(step["ratio"], step["repair"]) for step in single] == [(ratio, False)]


@pytest.mark.parametrize(
    "method", [m for m in tools.METHODS if m.ours and m.form == tools.FLOAT], ids=lambda m: m.key
)
def test_what_is_repaired_is_also_quantized(method):
    """Every curve in float has its counterpart in INT8; without repair there is nothing to quantize."""
    removing = [step["name"] for step in method.steps]
    assert removing
    assert set(removing) <= {"prune", "decompose", "drop-blocks"}
    if not all(step["repair"] for step in method.steps):
        return
    quantized = [
        other for other in tools.METHODS if other.form == tools.INT8 and other.steps[:-1] == method.steps
    ]
    assert [other.steps[-1]["name"] for other in quantized] == ["quantize-int8"]
    assert quantized[0].needs == method.needs


def test_depth_and_width_together_remove_what_was_asked_for():
    steps = tomllib.loads(tools.method_of("greencc-drop-prune-int8").recipe(0.25))["pass"]
    assert [step["name"] for step in steps] == ["drop-blocks", "prune", "quantize-int8"]
    assert 1 - math.prod(1 - step["ratio"] for step in steps[:2]) == pytest.approx(0.25, abs=1e-5)


def keys(*arguments, **options):
    return {method.key for method in tools.chosen(*arguments, **options)}


def test_what_runs_depends_on_the_model_the_share_and_the_environment():
    net = "fmnist-resnet20"
    everything = keys(net, {tools.SPATIAL, tools.PRODUCT}, 0.5, torch=True, quick=False)
    assert everything == {method.key for method in tools.METHODS}
    assert "greencc-tucker" not in keys(net, {tools.PRODUCT}, 0.5, torch=True, quick=False)
    assert "greencc-recover" not in keys(net, {tools.SPATIAL}, 0.1, torch=True, quick=False)
    assert "greencc-recover" not in keys(net, {tools.SPATIAL}, 0.3, torch=True, quick=True)
    assert "greencc-recover" not in keys("minilm-sentiment", {tools.PRODUCT}, 0.5, torch=True, quick=False)
    assert not any(
        tools.method_of(key).torch for key in keys(net, {tools.SPATIAL}, 0.5, torch=False, quick=False)
    )


def test_goals_and_ratios_fit():
    assert {tables.GAIN_RATIO, tables.DROP_RATIO, tables.RECOVER_RATIO} <= set(tools.RATIOS)
    assert tables.RECOVER_RATIO in tools.TUNED_RATIOS
    assert set(tools.TUNED_CASES) | set(tables.RESNETS) <= set(tools.CASES)
    assert example().name in tools.CASES


# --- the harness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "macs", "epochs"), [(1000, 10**8, 4), (10, 10**6, 20), (10**6, 10**9, 3), (100, None, 3)]
)
def test_tuning_does_about_the_same_work_on_every_model(samples, macs, epochs):
    assert bench.tuning_epochs(samples, macs) == epochs


def network(path, *, kernel=3, stride=1, channels=8, opset=17):
    """Two convolutions and a classifier."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(channels, 3, kernel, kernel)),
        "w2": rng.normal(size=(2 * channels, channels, kernel, kernel)) * 0.2,
        "b2": rng.normal(size=2 * channels),
        "w3": rng.normal(size=(2 * channels, 4)),
    }
    half = kernel // 2
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[half] * 4),
        onnx.helper.make_node("Relu", ["a"], ["r"]),
        onnx.helper.make_node(
            "Conv", ["r", "w2", "b2"], ["c"], "second", pads=[half] * 4, strides=[stride] * 2
        ),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)


def tiny_case(tmp_path, count=40, labels=True):
    network(tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
    arrays = {"x": x} | ({"labels": rng.integers(0, 4, count)} if labels else {})
    np.savez(tmp_path / "eval.npz", **arrays)
    np.savez(tmp_path / "cal.npz", x=x[:8])
    return Case("tiny", tmp_path / "model.onnx", tmp_path / "cal.npz", tmp_path / "eval.npz", metric="top1")


@pytest.mark.parametrize(("count", "most", "judging"), [(40, 1000, 40), (900, 1000, 900), (900, 300, 300)])
def test_all_samples_judge_because_none_tunes(tmp_path, count, most, judging):
    case = tiny_case(tmp_path, count)
    path, told = bench.evaluation_archive(case, tmp_path, most)
    with np.load(path) as found, np.load(case.evaluation) as whole:
        assert told == len(found["x"]) == judging
        np.testing.assert_array_equal(found["x"], whole["x"][:judging])
        np.testing.assert_array_equal(found["labels"], whole["labels"][:judging])


def test_calibration_samples_are_not_repeated(tmp_path):
    assert bench.samples_of(tiny_case(tmp_path)) == 8


def test_training_data_beside_the_model_are_used(tmp_path):
    case = tiny_case(tmp_path)
    with np.load(bench.training_archive(case, tmp_path)) as found:
        assert len(found["x"]) == 8
    np.savez(tmp_path / "training.npz", x=np.zeros((20, 3, 8, 8), np.float32))
    assert bench.training_archive(case, tmp_path) == tmp_path / "training.npz"


def test_layers_with_a_part_in_the_work_are_named(tmp_path):
    network(tmp_path / "m.onnx")
    assert bench.kinds_of_work(tmp_path / "m.onnx", {"x": (1, 3, 8, 8)}) == {tools.SPATIAL}
    network(tmp_path / "p.onnx", kernel=1)
    assert bench.kinds_of_work(tmp_path / "p.onnx", {"x": (1, 3, 8, 8)}) == {tools.POINTWISE}


def test_contents_count_one_sample_and_say_what_is_unreadable(tmp_path):
    network(tmp_path / "m.onnx")
    found = bench.contents(tmp_path / "m.onnx", {"x": (1, 3, 8, 8)})
    assert found["macs"] == 64 * 9 * (3 * 8 + 8 * 16) + 16 * 4
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert bench.contents(tmp_path / "bad.onnx", {})["macs"] is None


class FakeJobs:
    """Stands in for processes: every build copies the model, the judge invents figures that depend on the key."""

    def __init__(self, model, failing=()):
        self.model, self.failing, self.asked = model, set(failing), []

    def __call__(self, job, arguments, **options):
        self.asked.append((job, arguments))
        if job == "make-resnet50":
            Path(arguments["folder"]).mkdir(parents=True, exist_ok=True)
            target = Path(arguments["folder"]) / "model.onnx"
            target.write_bytes(self.model.read_bytes())
            return Run(1.0, 10.0, {"artifact": str(target)})
        if job == "measure-quality":
            keys = ["original", *(item["key"] for item in arguments["artifacts"])]
            quality = {"error": None, "value": 0.9, "metric": "top-1 accuracy", "size_bytes": 1000}
            quality |= {"drop": 0.001, "low": 0.0, "high": 0.01, "agreement": 1.0, "latency_ms": 1.0}
            ratio = {"value": 1.5, "low": 1.4, "high": 1.6}
            return Run(
                1.0, 10.0, {"rows": {key: {**quality, "latency_ratio": ratio} for key in keys}, "against": {}}
            )
        if any(name in json.dumps(arguments) for name in self.failing):
            return Run(1.0, error="it broke")
        passes = {"00 prune": 0.5}
        result = {"artifact": str(self.model), "job_seconds": 0.5, "imported_mb": 5.0, "passes": passes}
        return Run(1.0, 10.0, result)


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """`run` on one tiny model with fake processes; returns a function that runs it and loads the results."""
    case = tiny_case(tmp_path)
    monkeypatch.setattr(bench, "find_cases", lambda models: [case])
    monkeypatch.setattr(bench, "CASES", {"tiny": (0.25, 0.5)})
    monkeypatch.setattr(tools, "TUNED_CASES", ("tiny",))
    monkeypatch.setattr(bench, "has_torch", lambda: True)
    monkeypatch.setattr(bench, "_versions", lambda: {"torch": "1"})
    monkeypatch.setattr("benchmarks.results.FOLDER", tmp_path)
    monkeypatch.setattr(bench, "sample_shapes", lambda path: {"x": (1, 3, 8, 8)})

    def go(failing=(), cases=(), quick=False):
        fake = FakeJobs(case.model, failing)
        monkeypatch.setattr(bench, "run_job", fake)
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        bench.run(Settings(None, 1, quick, "test", work, cases=cases))
        return fake, json.loads((tmp_path / "compression.json").read_text(encoding="utf-8"))

    return go


def test_a_run_asks_every_method_at_every_share_and_keeps_what_it_found(harness):
    fake, document = harness()
    found = {(row["method"], row["ratio"]) for row in document["rows"] if row["case"] == "tiny"}
    assert {
        ("original", 0.0),
        ("greencc-int8", 0.0),
        ("torch-pruning", 0.25),
        ("greencc-recover", 0.5),
    } <= found
    assert ("greencc-recover", 0.25) not in found
    assert document["cases"]["tiny"]["scored"] == 40
    tuned = next(arguments for job, arguments in fake.asked if job == "recover")
    assert tuned["images"]
    assert tuned["start"].endswith("model.onnx")
    on_int8 = {row["method"] for row in document["rows"] if "over_int8" in row}
    integers = [method for method in tools.METHODS if method.form == tools.INT8]
    assert on_int8 == {m.key for m in integers if not m.needs or tools.SPATIAL in m.needs}
    assert {"greencc-prune-int8", "greencc-drop-int8", "greencc-drop-prune-int8"} <= on_int8
    large = document["rows"][-1]
    assert (large["case"], large["error"]) == ("resnet50", None)
    assert large["macs"] == large["before"]["macs"]


def test_failures_are_rows_and_what_starts_from_them_is_not_tried(harness):
    _, document = harness(failing=["everywhere"])
    rows = {(row["method"], row["ratio"]): row for row in document["rows"]}
    assert rows["torch-pruning", 0.5]["error"] == "it broke"
    assert "nothing to fine-tune: it broke" in rows["torch-pruning-tuned", 0.5]["error"]
    assert rows["greencc-recover", 0.5]["error"] is None


def test_single_models_are_repeated_and_the_others_kept(harness, tmp_path):
    _, first = harness()
    path = tmp_path / "compression.json"
    first["rows"].append({"case": "gone", "method": "original", "ratio": 0.0})
    path.write_text(json.dumps(first), encoding="utf-8")
    fake, second = harness(cases=("resnet50",))
    assert [job for job, _ in fake.asked] == ["make-resnet50", "build-greencc"]
    kept = [row for row in second["rows"] if row["case"] == "tiny"]
    assert kept == [row for row in first["rows"] if row["case"] == "tiny"]
    assert sum(row["case"] == "resnet50" for row in second["rows"]) == 1
    assert not any(row["case"] == "gone" for row in second["rows"])
    assert second["against"] == first["against"]


# --- the peers' jobs -------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([(3, 3), (1, 5), (7,)]),
    st.sampled_from([1, 4]),
    st.floats(0.0, 1.0),
)
@settings(max_examples=40)
def test_tucker_ranks_fit_and_are_cheaper(outputs, inputs, kernel, stride, share):
    convolution = jobs.Convolution((outputs, inputs, *kernel), stride)
    ranks = convolution.ranks(share)
    if ranks is not None:
        assert 1 <= ranks[0] <= outputs
        assert 1 <= ranks[1] <= inputs
        assert convolution.cost(ranks) < 1


def test_the_rank_share_removes_what_was_asked_for():
    convolutions = {"a": jobs.Convolution((64, 64, 3, 3)), "b": jobs.Convolution((128, 64, 3, 3), 4)}
    work = {"a": 1000, "b": 2000, "head": 50}
    for ratio in tools.RATIOS:
        share = jobs.rank_share(convolutions, work, ratio)
        saved = sum(work[k] * (1 - c.cost(c.ranks(share))) for k, c in convolutions.items() if c.ranks(share))
        assert ratio <= saved / 3050 < ratio + 0.03
    with pytest.raises(RuntimeError, match="ranks of 1 removes"):
        jobs.rank_share({}, work, 0.1)


@pytest.mark.parametrize("stride", [1, 2])
def test_three_layers_at_full_rank_are_the_convolution(tmp_path, stride):
    network(tmp_path / "m.onnx", stride=stride)
    model = onnx.load(tmp_path / "m.onnx")
    node = model.graph.node[2]
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w2"))
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    right, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    core = np.einsum("oikl,or,is->rskl", weight, left, right)
    parts = jobs.tucker_nodes(node, core, left, right, model)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*others[:2], *parts, *others[3:]])
    onnx.checker.check_model(model, full_check=True)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    from onnx.reference import ReferenceEvaluator

    expected = ReferenceEvaluator(onnx.load(tmp_path / "m.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], expected, atol=1e-3)


def test_models_for_peers_are_brought_to_an_opset_they_know(tmp_path):
    network(tmp_path / "m.onnx", opset=18)
    model = onnx.load(tmp_path / "m.onnx")
    node = model.graph.node[3]
    node.op_type = "ReduceMean"
    node.input.append("axes")
    node.attribute.extend([onnx.helper.make_attribute("keepdims", 1)])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    older = jobs.at_opset(model, 17)
    assert older.opset_import[0].version == 17
    onnx.checker.check_model(older, full_check=True)
    assert jobs.at_opset(older, 17) is older


@pytest.mark.full
def test_the_large_model_is_as_large_as_resnet50(tmp_path):
    model = load_model(Path(make_resnet50(str(tmp_path))["artifact"]))
    found = describe(model)
    assert found.params == pytest.approx(25.5e6, rel=0.01)
    assert found.macs == pytest.approx(4.1e9, rel=0.02)


# --- tables and plots ------------------------------------------------------------------------------------------------


def row(method, ratio, value, *, macs=None, speed=1.2, **more):
    known = next((m for m in (*tools.BASES, *tools.METHODS) if m.key == method), None)
    found = {"case": "fmnist-resnet20", "method": method, "ratio": ratio, "error": None, "value": value}
    if known is not None:
        found |= {"label": known.label, "form": known.form, "ours": known.ours}
    interval = {"value": speed, "low": speed - 0.1, "high": speed + 0.1}
    found |= {"drop": 0.92 - value, "low": 0.91 - value, "high": 0.93 - value, "metric": "top-1 accuracy"}
    found |= {"macs": round(1e6 * (1 - ratio)) if macs is None else macs, "params": 1000, "size_bytes": 4000}
    found |= {"latency_ms": 1 / speed, "latency_ratio": interval, "seconds": 2.0, "peak_mb": 200.0}
    return found | more


def document():
    over = {"value": 1.3, "low": 1.2, "high": 1.4}
    rows = [
        row("original", 0.0, 0.92, speed=1.0) | {"drop": None},
        row("greencc-int8", 0.0, 0.919, speed=2.0),
        row("greencc-prune", 0.3, 0.60),
        row("greencc-prune-repair", 0.3, 0.91),
        row("greencc-prune-repair", 0.25, 0.915),
        row("greencc-prune-int8", 0.25, 0.914, speed=2.5, over_int8=over),
        row("torch-pruning", 0.25, 0.30),
        row("torch-pruning", 0.3, 0.10),
        row("greencc-recover", 0.5, 0.918),
        row("torch-pruning-tuned", 0.5, 0.90),
        {
            "case": "fmnist-resnet20",
            "method": "tensorly-tucker",
            "label": "TensorLy Tucker-2",
            "form": "float",
        }
        | {"ours": False, "ratio": 0.5, "error": "RuntimeError: a|b"},
        {"case": "resnet50", "method": "greencc-prune-repair", "ratio": 0.3, "error": None, "seconds": 60.0}
        | {"peak_mb": 900.0, "model_bytes": 102_000_000, "samples": 64, "passes": {"00 prune": 50.0}}
        | {
            "before": {"macs": 4_100_000_000, "params": 25_500_000},
            "macs": 2_870_000_000,
            "params": 18_000_000,
        },
    ]
    gained = {"gain": 0.6, "low": 0.55, "high": 0.65}
    forms = {
        "float": {"best_peer": "torch-pruning", "best_recipe": "x", "ours": {"greencc-prune-repair": gained}}
    }
    cases = {"fmnist-resnet20": {"scored": 3000, "samples": 512}}
    return {"rows": rows, "against": {"fmnist-resnet20": {"0.25": forms}}, "cases": cases}


def test_every_goal_is_judged():
    text = tables.goals_table(document())
    assert "10 points at −30 % MACs on the ResNets: **met** (1 of 1 models)" in text
    assert "without training on small ResNets: **met** (1 of 1 models)" in text
    assert "1.2x on top of INT8: **met** (1 of 1 models)" in text
    assert "with `recover`: **met** (1 of 1 models)" in text
    assert "2x the model + 1 GB: **met** (60 s, 900 of 1204 MB)" in text
    assert "+31.00" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("method", "ratio", "change", "goal"),
    [
        ("greencc-prune-repair", 0.3, {"value": 0.65}, "on the ResNets: **missed**"),
        # The accuracy of a network from which little was removed proves nothing.
        ("greencc-prune-repair", 0.3, {"macs": 900_000}, "on the ResNets: **missed**"),
        ("greencc-prune-repair", 0.25, {"drop": 0.02}, "on small ResNets: **missed**"),
        (
            "greencc-prune-int8",
            0.25,
            {"over_int8": {"value": 1.1, "low": 1.0, "high": 1.2}},
            "INT8: **missed**",
        ),
        ("greencc-prune-int8", 0.25, {"drop": 0.05}, "INT8: **missed**"),
        ("greencc-recover", 0.5, {"drop": 0.006}, "`recover`: **missed**"),
        ("greencc-prune-repair", 0.3, {"seconds": 130.0}, "1 GB: **missed**"),
        ("greencc-prune-repair", 0.3, {"peak_mb": 1300.0}, "1 GB: **missed**"),
    ],
)
def test_goals_can_be_missed(method, ratio, change, goal):
    changed = document()
    for item in changed["rows"]:
        if (item["method"], item["ratio"]) == (method, ratio):
            item.update(change)
    assert goal in tables.goals_table(changed)


def test_without_rows_nothing_is_judged():
    text = tables.goals_table({"rows": [], "against": {}, "cases": {}})
    assert text.count("nothing to judge") == 5


def test_points_and_failures_have_rows():
    text = tables.points_table(document())
    assert "| Torch-Pruning (peer) | −30 % | 10.00 % |" in text
    assert "failed: RuntimeError: a\\|b" in text
    assert "| −25 %, float | prune + repair | Torch-Pruning | +60.00 [+55.00, +65.00] |" in text
    first = text.split("\n\n")[1]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in first.splitlines()}) == 1


def test_the_large_model_has_a_table_whatever_became_of_it():
    assert "4.10 → 2.87" in tables.large_table(document())
    failed = {"rows": [{"case": "resnet50", "error": "took more than 400 s"}]}
    assert "took more than 400 s" in tables.large_table(failed)
    assert tables.large_table({"rows": []}) == "Not run."


def test_curves_start_where_nothing_is_removed():
    series = {item.label: item for item in tables.series_of(document(), "fmnist-resnet20")}
    assert "TensorLy Tucker-2 (peer)" not in series
    pruned = series["prune + repair"].points
    assert (pruned[0].macs, pruned[0].latency) == (100.0, 100.0)
    assert [round(point.macs) for point in pruned[1:]] == [70, 75]
    quantized = series["prune + repair + INT8"]
    assert quantized.int8
    assert quantized.points[0].latency == pytest.approx(50)


def test_pictures_are_small_well_formed_and_referred_to(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "IMAGES", tmp_path / "images")
    text = tables.curves(document())
    path = tmp_path / "images" / "compression-fmnist-resnet20.svg"
    assert "(images/compression-fmnist-resnet20.svg)" in text
    assert path.stat().st_size < 60_000
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    shown = " ".join(root.itertext())
    assert "measured latency" in shown
    assert "Torch-Pruning (peer)" in shown
    assert "nan" not in path.read_text(encoding="utf-8").lower()
    empty = copy.deepcopy(document())
    empty["rows"] = []
    assert tables.curves(empty) == "No model was judged."


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(20, 130), st.none() | st.floats(5, 400), st.floats(0, 100, allow_nan=False)
        ),
        max_size=6,
    ),
    st.floats(1, 100),
)
@settings(max_examples=40)
def test_any_points_stay_inside_the_plot(places, baseline):
    series = [Series("a <b> & c", "#123456", [Point(*place) for place in places], peer=True)]
    text = curves_svg("t", "accuracy, %", series, baseline)
    root = ET.fromstring(text)
    numbers = [float(n) for e in root.iter() if (d := e.get("d")) for n in re.findall(r"[ML]([\d.-]+) ", d)]
    assert all(40 <= number <= WIDTH for number in numbers)
    for e in root.iter():
        for key in ("y1", "y2", "cy"):
            assert 0 <= float(e.get(key) or 0) <= HEIGHT


def test_a_long_legend_stays_inside_the_picture():
    series = [Series(f"method {index}", "#123456", [Point(50, 50, 90)]) for index in range(30)]
    root = ET.fromstring(curves_svg("t", "accuracy, %", series, 91.0))
    height = float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {WIDTH} {height:.0f}"
    assert max(float(e.get("y2") or 0) for e in root.iter()) < height
