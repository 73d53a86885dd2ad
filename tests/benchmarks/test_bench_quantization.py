"""The quantization benchmark: what it feeds the tools, how it judges them, and what its tables say."""

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import bench_quantization as bench
from benchmarks import quality
from benchmarks import render_quantization as tables
from benchmarks.bench_quantization import compare_costs, is_transformer, peers_model, split_evaluation
from benchmarks.cases import Case, example
from benchmarks.child import Run, run_job
from benchmarks.jobs import JOBS
from benchmarks.results import spread
from benchmarks.tools import COMPILE, FORMS, INT8, RECIPES, TOOLS, Tool, chosen
from greencc.core.recipe import load_recipe
from greencc.passes import PASSES

FLOAT = onnx.TensorProto.FLOAT


def classifier(path, *, inputs=4, classes=3, opset=17, seed=0):
    """A product with a constant weight, (n, inputs) -> (n, classes)."""
    weight = np.random.default_rng(seed).normal(size=(inputs, classes)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["n", inputs])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["n", classes])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return weight


def case_with(tmp_path, count, labels=True, **options):
    weight = classifier(tmp_path / "m.onnx", **options)
    x = np.random.default_rng(1).normal(size=(count, len(weight))).astype(np.float32)
    arrays = {"x": x} | ({"labels": (x @ weight).argmax(axis=1)} if labels else {})
    np.savez(tmp_path / "eval.npz", **arrays)
    np.savez(tmp_path / "cal.npz", x=x[:8])
    metric = "top1" if labels else None
    return Case("tiny", tmp_path / "m.onnx", tmp_path / "cal.npz", tmp_path / "eval.npz", metric=metric)


def test_tools_have_keys_of_their_own_and_jobs_that_exist():
    keys = [tool.key for tool in TOOLS]
    assert len(set(keys)) == len(keys)
    assert {tool.job for tool in TOOLS} <= set(JOBS)
    assert {tool.form for tool in TOOLS} == set(FORMS)
    assert TOOLS.count(COMPILE) == 1
    # Costs are compared within a method: every method of ours but those no peer has needs a rival.
    rivals = {tool.method for tool in TOOLS if not tool.ours}
    assert {tool.method for tool in TOOLS if tool.ours and tool.method} - rivals == {
        "mse",
        "smooth",
        "repaired",
    }


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_this_version_reads_the_recipes(path):
    assert load_recipe(path, PASSES)


def test_every_recipe_of_a_tool_is_there_and_used():
    used = {tool.arguments["recipe"] for tool in TOOLS if "recipe" in tool.arguments}
    assert used == {path.name for path in RECIPES.glob("*.toml")}


def test_peers_with_environments_run_when_asked_for_and_made():
    lost = Tool("lost", "Lost", INT8, "", "build-olive", environment="no-such-peer")
    tools = (COMPILE, lost)
    assert chosen((), tools) == ([COMPILE], ["no-such-peer"])
    assert chosen(("all",), tools) == ([COMPILE], ["no-such-peer"])


def test_adaround_waits_for_its_peers(monkeypatch):
    methods = {tool.method for tool in chosen(())[0]}
    assert "adaround" not in methods
    assert "minmax" in methods
    monkeypatch.setattr(Tool, "python", Path(__file__))
    assert chosen(("all",)) == (list(TOOLS), [])
    quark = chosen(("quark",))[0]
    assert {tool.environment for tool in quark} == {"", "quark"}
    assert "greencc-equalize-adaround" in {tool.key for tool in quark}


def test_what_a_transformer_needs_replaces_the_plain_settings():
    tool = Tool("t", "T", INT8, "", "build-nncf", {"a": 1, "b": 2}, transformer={"b": 3})
    assert tool.settings(False) == {"a": 1, "b": 2}
    assert tool.settings(True) == {"a": 1, "b": 3}
    assert tool.arguments == {"a": 1, "b": 2}


def test_what_is_judged_does_not_tune(tmp_path):
    found = split_evaluation(case_with(tmp_path, 1000), tmp_path, 500)
    with (
        np.load(found.scored) as scored,
        np.load(found.tuning) as tuning,
        np.load(tmp_path / "eval.npz") as all_,
    ):
        assert found.count == len(scored["x"]) == 500
        np.testing.assert_array_equal(np.concatenate([scored["x"], tuning["x"]]), all_["x"])
        np.testing.assert_array_equal(scored["labels"], all_["labels"][:500])


def test_few_samples_all_judge(tmp_path):
    found = split_evaluation(case_with(tmp_path, 120), tmp_path, 500)
    assert (found.count, found.tuning) == (120, None)


def test_without_labels_the_decisions_of_the_original_are_the_labels(tmp_path):
    case = case_with(tmp_path, 30, labels=False)
    found = split_evaluation(case, tmp_path, 30)
    weight = onnx.numpy_helper.to_array(onnx.load(case.model).graph.initializer[0])
    with np.load(found.scored) as scored:
        np.testing.assert_array_equal(scored["labels"], (scored["x"] @ weight).argmax(axis=1))


@pytest.mark.parametrize(("opset", "upgraded"), [(12, True), (13, False)])
def test_peers_get_old_opsets_upgraded(tmp_path, opset, upgraded):
    case = case_with(tmp_path, 10, opset=opset)
    path = peers_model(case, tmp_path)
    assert (path != case.model) == upgraded
    assert onnx.load(path).opset_import[0].version == (17 if upgraded else opset)


def test_attention_makes_a_transformer(tmp_path):
    assert not is_transformer(example().model)
    nodes = [
        onnx.helper.make_node("MatMul", ["q", "k"], ["s"]),
        onnx.helper.make_node("Softmax", ["s"], ["p"]),
        onnx.helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, FLOAT, [4, 4]) for name in "qkvy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:3], values[3:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert is_transformer(tmp_path / "a.onnx")


def built(seconds, peak=200.0, job=1.0, wasted=0.0, imported=100.0, error=None):
    result = {"job_seconds": job, "imported_mb": imported, "wasted_seconds": wasted}
    return Run(seconds, peak, result, error)


def test_costs_are_compared_with_the_fastest_and_the_leanest_peer():
    ours = [built(1.0, peak=150.0), built(1.2, peak=150.0)]
    rivals = {
        "slow": [built(4.0, peak=125.0), built(4.0, peak=125.0)],
        "fast": [built(2.0, peak=300.0), built(2.4, peak=300.0)],
        "broken": [built(0.1, peak=1.0, error="KeyError: 1")],
    }
    found = compare_costs(ours, rivals)
    assert (found["time"]["rival"], found["memory"]["rival"]) == ("fast", "slow")
    assert found["time"]["ratio"]["value"] == pytest.approx(0.5)
    assert found["memory"]["ratio"]["value"] == pytest.approx(1.2)
    # Without what the imports need: 50 of 25.
    assert found["memory_job"]["ratio"]["value"] == pytest.approx(2.0)
    assert compare_costs(ours, {"broken": rivals["broken"]}) is None
    assert compare_costs(ours, {}) is None


def test_attempts_that_the_documentation_would_have_saved_do_not_count():
    found = compare_costs([built(1.0)], {"peer": [built(5.0, wasted=3.0)]})
    assert found["time"]["ratio"]["value"] == pytest.approx(0.5)


def test_only_quick_builds_that_are_compared_are_repeated():
    tool = Tool("t", "T", INT8, "minmax", "build-ort")
    pair = (tool, Tool("u", "U", INT8, "minmax", "build-greencc"))
    assert bench._repeat(tool, pair, built(1.0))
    assert not bench._repeat(tool, (tool, COMPILE), built(1.0))
    assert not bench._repeat(tool, pair, built(bench.REPEATED_BELOW + 1))
    assert not bench._repeat(tool, pair, built(1.0, error="no"))
    assert not bench._repeat(COMPILE, (COMPILE, *pair), built(1.0))


def test_the_error_of_a_model_is_the_mean_noise_of_its_outputs():
    assert quality.sqnr([10.0, 10.0]) == pytest.approx(10.0)
    assert quality.sqnr([10.0, None]) == pytest.approx(10.0 + 10.0 * math.log10(2.0))
    assert quality.sqnr([None, None]) is None
    assert quality.sqnr([]) is None


class Counting:
    """An engine that counts its runs."""

    inputs = outputs = ()

    def __init__(self):
        self.runs = 0

    def run(self, feeds, outputs=None):
        self.runs += 1
        return {"y": feeds["x"] * 2, "z": feeds["x"]}

    def close(self):
        pass


def test_an_engine_that_remembers_runs_each_batch_once():
    engine = Counting()
    remembering = quality.Remembering(engine)
    first, second = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    for feeds in (first, second, first.copy()):
        np.testing.assert_array_equal(remembering.run({"x": feeds})["y"], feeds * 2)
    assert engine.runs == 2
    assert list(remembering.run({"x": first}, ["z"])) == ["z"]


def test_a_build_and_its_judgement_end_to_end(tmp_path):
    case = case_with(tmp_path, 64, inputs=64, classes=8)
    split = split_evaluation(case, tmp_path, 64)
    arguments = {"model": str(case.model), "calibration": str(case.calibration), "samples": 8}
    recipe = "[[pass]]\nname = 'quantize-int8'\n"
    ours = run_job("build-greencc", {**arguments, "folder": str(tmp_path / "a"), "recipe": recipe})
    assert ours.error is None
    assert ours.peak_mb >= ours.result["imported_mb"] > 0
    # The same artifact as a peer's, and the original as one of a peer that quantized nothing.
    artifacts = [
        {
            "key": COMPILE.key,
            "form": INT8,
            "ours": True,
            "path": ours.result["artifact"],
            "runtime": "onnxruntime",
        },
        {
            "key": "peer",
            "form": INT8,
            "ours": False,
            "path": ours.result["artifact"],
            "runtime": "onnxruntime",
        },
        {"key": "idle", "form": INT8, "ours": False, "path": str(case.model), "runtime": "onnxruntime"},
        {
            "key": "lost",
            "form": INT8,
            "ours": False,
            "path": str(tmp_path / "no.onnx"),
            "runtime": "onnxruntime",
        },
    ]
    found = quality.measure_quality(str(case.model), str(split.scored), case.metric, artifacts, quick=True)
    assert found["rows"]["idle"]["sqnr_db"] is None
    assert found["rows"]["idle"]["value"] == 1.0
    assert 20.0 < found["rows"][COMPILE.key]["sqnr_db"] < 60.0
    assert "does not run" in found["rows"]["lost"]["error"]
    assert found["against"][INT8]["best_peer"] == "peer"
    assert found["against"][INT8]["ours"][COMPILE.key]["gain"] == 0.0


def test_a_recipe_that_changes_nothing_is_a_failure(tmp_path):
    case = case_with(tmp_path, 8)
    arguments = {"model": str(case.model), "calibration": str(case.calibration), "samples": 8}
    recipe = "[[pass]]\nname = 'quantize-weights'\nmin_elements = 100000\n"
    found = run_job("build-greencc", {**arguments, "folder": str(tmp_path / "a"), "recipe": recipe})
    assert "quantize-weights changed nothing" in found.error


def row(tool, *, case="net", ours=False, value=0.9, sqnr=20.0, method="minmax", form=INT8, drop=0.0, **more):
    base = {
        "case": case,
        "tool": tool,
        "label": tool,
        "form": form,
        "method": method,
        "ours": ours,
        "error": None,
    }
    base |= {"value": value, "drop": drop, "low": drop - 0.01, "high": drop + 0.01, "agreement": 1.0 - drop}
    base |= {"sqnr_db": sqnr, "size_bytes": 10**6, "latency_ms": 1.0, "latency_ratio": None}
    return base | {"seconds": spread([1.0]), "peak_mb": spread([100.0]), **more}


def document(compiled=0.91, sqnr=30.0):
    original = {"case": "net", "tool": "original", "error": None, "value": 0.92, "metric": "top-1"}
    original |= {
        "sqnr_db": None,
        "size_bytes": 4 * 10**6,
        "drop": None,
        "latency_ms": 2.0,
        "latency_ratio": None,
    }
    ratio = {"value": 0.5, "low": 0.4, "high": 0.6}
    costs = {name: {"rival": "peer", "ratio": ratio} for name in ("time", "time_job", "memory", "memory_job")}
    rows = [
        row(COMPILE.key, ours=True, value=compiled, sqnr=sqnr, method="", notes={"precision": "int8"}),
        row("greencc-minmax", ours=True, value=0.915, sqnr=31.0, against_fastest=costs),
        row("peer", value=0.905, sqnr=25.0),
        row("loud", value=0.8, sqnr=28.0, drop=0.12),
        {**row("broken"), "error": "KeyError: 'a|b'"},
        original,
    ]
    gain = {"gain": compiled - 0.905, "low": -0.01, "high": 0.02}
    against = {
        "best_peer": "peer",
        "best_recipe": "greencc-minmax",
        "ours": {COMPILE.key: gain, "greencc-minmax": gain},
    }
    return {
        "rows": rows,
        "against": {"net": {"forms": {INT8: against}, "scored": 100, "error": None}},
        "peer_versions": {"olive": {"olive-ai": "0.13.0"}},
        "missing_environments": ["quark"],
        "limit_mb": 6000,
    }


def well_formed(text):
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1
    return text


@pytest.mark.parametrize(
    ("compiled", "sqnr", "accuracy", "error"),
    [(0.91, 30.0, "met", "met"), (0.90, 30.0, "missed", "met"), (0.91, 27.0, "met", "missed")],
)
def test_goals_are_judged_on_what_compile_made(compiled, sqnr, accuracy, error):
    text = well_formed(tables.goals_table(document(compiled, sqnr)))
    assert f"peer's on every model: **{accuracy}**" in text
    assert f"on 80 % of the models: **{error}**" in text
    # The most accurate peer and the one with the least error need not be the same.
    assert "90.50 % (peer)" in text
    assert "28.0 (loud)" in text
    assert f"{100 * (compiled - 0.905):+.2f} [-1.00, +2.00]" in text


def test_a_failed_compile_misses_the_goals():
    broken = document()
    broken["rows"][0]["error"] = "internal error"
    text = well_formed(tables.goals_table(broken))
    assert "peer's on every model: **missed** (0 of 1 models)" in text


def test_costs_meet_the_goal_up_to_half():
    text = well_formed(tables.goals_table(document()))
    assert "Build time at most half the best peer's of the same method: **met** (1 of 1 comparisons)" in text
    worse = copy.deepcopy(document())
    worse["rows"][1]["against_fastest"]["time"]["ratio"]["value"] = 0.51
    assert "same method: **missed** (0 of 1 comparisons)" in tables.goals_table(worse)
    assert "0.51 [0.40, 0.60] (peer) missed" in well_formed(tables.cost_table(worse))


def test_adaround_is_judged_where_a_peer_loses_more_than_a_point():
    told = document()
    assert "after AdaRound within a point of FP32 where a peer's INT8 loses more: nothing to judge" in (
        tables.goals_table(told)
    )
    told["rows"].append(row("greencc-adaround", ours=True, method="adaround", drop=0.005))
    assert "a peer's INT8 loses more: **met** (1 of 1 models)" in tables.goals_table(told)
    told["rows"][-1]["drop"] = 0.011
    assert "a peer's INT8 loses more: **missed** (0 of 1 models)" in tables.goals_table(told)


def test_every_artifact_has_a_row_failures_included():
    text = well_formed(tables.quality_table(document()))
    assert "| INT8: broken | failed: KeyError: 'a\\|b' |" in text
    assert "| INT8: peer **(best peer)** | 90.50 % |" in text
    assert "| FP32, ONNX Runtime | 92.00 % | – | – | 2 | – | 4.00 | – |" in text
    assert "olive: olive-ai 0.13.0; not installed for this run (`make bench PEERS=all`): quark." in text


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("RuntimeException: ... Status Message: std::bad_alloc", "failed: wants more than 6,000 MB"),
        ("numpy.MemoryError: Unable to allocate 3 GiB", "failed: wants more than 6,000 MB"),
        ("KeyError: 'x'", "failed: KeyError: 'x'"),
    ],
)
def test_running_out_of_memory_is_said_plainly(error, shown):
    assert tables.failure(error, 6000) == shown


def test_a_model_that_could_not_be_judged_keeps_its_rows():
    told = document()
    for each in told["rows"]:
        each["error"] = "took more than 900 s"
    told["against"]["net"] = {"forms": {}, "scored": 100, "error": "took more than 900 s"}
    well_formed(tables.goals_table(told))
    assert tables.quality_table(told).count("failed: took more than 900 s") == len(told["rows"])
    well_formed(tables.cost_table(told))


def test_jobs_are_stopped_in_time_and_leave_no_files_here(tmp_path):
    found = run_job("build-ort", {}, timeout=0.01)
    assert found.error == "took more than 0.01 s"
    before = sorted(Path.cwd().iterdir())
    assert run_job("build-ort", {"model": "no"}).error
    assert sorted(Path.cwd().iterdir()) == before
