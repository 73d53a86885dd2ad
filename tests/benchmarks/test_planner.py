"""The planner's benchmark: the best rival, what the search may propose, the true best, and what the tables say."""

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench_planner as bench
from benchmarks import planner_exhaustive as exhaustive
from benchmarks import planner_jobs as jobs
from benchmarks import planner_search as search
from benchmarks import planner_tools as tools
from benchmarks import render_planner as tables
from benchmarks.cases import example
from benchmarks.child import Run
from benchmarks.jobs import JOBS
from benchmarks.planner_bench import Layer, NothingDoneError, Workbench, passes_of
from benchmarks.planner_plot import Dot, planner_svg
from benchmarks.render import TABLES
from benchmarks.results import Settings
from benchmarks.run import BENCHMARKS
from greencc.calibration import open_data
from greencc.cli.commands.compile import command as compile_command
from greencc.core.describe import input_specs
from greencc.core.model import load_model
from greencc.core.recipe import make_pass
from greencc.passes import PASSES

LAYERS = [Layer("first", "Conv", 300), Layer("second", "Conv", 200), Layer("last", "Gemm", 100)]


# --- methods and verdicts --------------------------------------------------------------------------------------------


def test_methods_have_keys_jobs_and_colours_of_their_own():
    keys = [method.key for method in tools.METHODS]
    assert len(set(keys)) == len(keys)
    assert {method.job for method in tools.METHODS} - {""} <= set(JOBS)
    assert set(tables.COLOURS) == set(keys)
    assert len(set(tables.COLOURS.values())) == len(keys)
    assert {method.counted for method in tools.METHODS} - {""} <= set(keys)
    assert BENCHMARKS["planner"] is bench.run
    assert set(jobs.PLANNER_JOBS) <= set(JOBS)


def test_this_version_knows_the_flags_it_is_called_with():
    known = {name for option in compile_command.params for name in option.opts}
    flags = [*tools.plan_flags(60.0), *tools.second_flags(60.0, 1.5)]
    assert {flag for flag in flags if flag.startswith("--")} <= known


def test_the_second_budget_is_met_by_the_first_plan():
    flags = tools.second_flags(60.0, 2.5)
    assert flags[flags.index("--budget") + 1] == "3ms p50"
    assert flags[flags.index("--minimize") + 1] != tools.plan_flags(60.0)[1]


def row(latency, drop=0.0, **more):
    return {"error": None, "latency_ms": latency, "drop": drop, "agreement": 1.0, "n": 1500, **more}


def test_what_breaks_the_limit_or_failed_is_no_rival():
    rows = {
        tools.ORIGINAL: row(2.0),
        tools.PLAN: row(0.5),
        "ort-minmax": row(0.7, drop=0.0107),
        "nncf": row(0.9, drop=15 / 1500),
        "search": {"error": "optuna is not installed"},
        "greencc-int8": {"error": None, "drop": 0.0, "latency_ms": None},
    }
    assert tools.best_rival(rows) == "nncf"
    rows["nncf"]["drop"] = 0.02
    assert tools.best_rival(rows) == tools.ORIGINAL
    assert tools.best_rival({tools.PLAN: row(0.5)}) is None


def test_without_a_drop_changed_decisions_count():
    assert tools.loss_of({"drop": None, "agreement": 0.97}) == pytest.approx(0.03)
    assert not tools.within(row(1.0, drop=None) | {"agreement": 0.97})
    assert not tools.within(row(1.0, drop=None) | {"agreement": None})
    assert tools.within(row(1.0, drop=-0.2))


@pytest.mark.parametrize(
    ("low", "high", "more", "told"),
    [
        (1.1, 1.3, {}, "won"),
        (0.9, 1.3, {}, "tied"),
        (0.7, 0.9, {}, "lost"),
        (0.7, 0.9, {"same": True}, "tied"),
        (1.1, 1.3, {"within": False}, "broke the limit"),
    ],
)
def test_verdicts_go_by_the_interval(low, high, more, told):
    against = {"ratio": {"value": (low + high) / 2, "low": low, "high": high}, "same": False, "within": True}
    assert tools.verdict(against | more) == told


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8))
def test_the_geometric_mean_of_inverses_is_the_inverse(values):
    mean = tools.geometric_mean(values)
    assert min(values) * (1 - 1e-9) <= mean <= max(values) * (1 + 1e-9)
    assert tools.geometric_mean([1 / value for value in values]) == pytest.approx(1 / mean)


# --- the search ------------------------------------------------------------------------------------------------------


class Guess:
    """Proposes at random and remembers what it was asked."""

    def __init__(self, seed):
        self.random, self.given = random.Random(seed), {}

    def suggest_categorical(self, name, choices):
        return self._once(name, self.random.choice(list(choices)))

    def suggest_float(self, name, low, high):
        return self._once(name, self.random.uniform(low, high))

    def _once(self, name, value):
        assert name not in self.given, f"{name} is asked for twice"
        self.given[name] = value
        return value


class Fixed:
    """Gives the values of a start, which must be among the choices."""

    def __init__(self, values):
        self.values = values

    def suggest_categorical(self, name, choices):
        assert self.values[name] in choices
        return self.values[name]


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_every_proposal_is_a_recipe(seed, products, tables_too):
    guess = Guess(seed)
    steps = search.propose(guess, LAYERS, products=products, tables=tables_too)
    passes = passes_of(steps)
    assert [step.name for step in passes] == [step["name"] for step in steps]
    for step in steps:
        assert set(step.get("exclude", ())) <= {layer.name for layer in LAYERS}
    names = [step["name"] for step in steps]
    # Structure first, then numbers.
    order = ["drop-blocks", "prune", "decompose"]
    structural = [name for name in names if name in order]
    assert names[: len(structural)] == sorted(structural, key=order.index)


def test_proposals_reach_every_option():
    seen = {
        (step["name"], step.get("bits"))
        for seed in range(400)
        for step in search.propose(Guess(seed), LAYERS, products=True, tables=True)
    }
    names = {name for name, _ in seen}
    assert names == {
        "drop-blocks",
        "prune",
        "decompose",
        "quantize-int8",
        "quantize-dynamic",
        "quantize-weights",
        "convert-float16",
        "upgrade-opset",
    }
    assert {("quantize-weights", 4), ("quantize-weights", 8)} <= seen


def test_the_search_starts_with_the_clean_up_and_with_plain_int8():
    found = [search.propose(Fixed(values), LAYERS, products=True, tables=False) for values in search.STARTS]
    assert found[0] == []
    assert passes_of(found[1]) == (make_pass({"name": "quantize-int8"}, PASSES),)


def test_without_optuna_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "has_search", lambda: False)
    monkeypatch.setattr(bench, "find_cases", lambda models: [])
    bench.run(settings_in(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "optuna is not installed" in lines[0]
    assert ".[bench]" in lines[0]


def test_the_search_finds_a_variant_that_keeps_the_limit(tmp_path):
    pytest.importorskip("optuna", reason="of greencc[bench]")
    calibration, evaluation = small_data(tmp_path)
    found = search.search_plan(
        str(example().model),
        str(calibration),
        32,
        str(evaluation),
        "top1",
        str(tmp_path / "search"),
        max_drop=0.05,
        trials=2,
        seconds=120.0,
    )
    assert found["notes"]["trials"] == 2
    assert Path(found["artifact"]).is_file()
    kept = list((tmp_path / "search").rglob("model.onnx"))
    assert kept == [Path(found["artifact"])]


# --- data ------------------------------------------------------------------------------------------------------------


def settings_in(folder):
    return Settings(None, 1, True, "test", folder)


def small_data(folder, count=40):
    """Few of the example's samples."""
    paths = []
    for name, source in (("calibration", example().calibration), ("evaluation", example().evaluation)):
        with np.load(source) as archive:
            arrays = {key: archive[key][:count] for key in archive.files}
        paths.append(folder / f"{name}.npz")
        np.savez(paths[-1], allow_pickle=False, **arrays)
    return paths


def test_planning_and_certification_split_the_evaluation_samples(tmp_path):
    calibration, evaluation = small_data(tmp_path)
    found = jobs.split_plan(
        str(example().model), str(calibration), 16, str(evaluation), str(tmp_path / "split")
    )
    keys = []
    for name in ("planning", "certification"):
        with np.load(found[name]) as archive:
            assert "labels" in archive.files
            values = archive[next(key for key in archive.files if key != "labels")]
        assert len(values) == found[f"{name}_samples"]
        keys.append({value.tobytes() for value in values})
    assert found["planning_samples"] == 10
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 40


def test_the_evaluation_archive_has_labels_and_no_more_samples_than_asked(tmp_path):
    path = bench.evaluation_archive(example(), tmp_path, 50)
    source = open_data(path, input_specs(load_model(example().model)), role="evaluation")
    assert source.count == 50
    assert source.has_labels
    assert bench.samples_of(example(), 20) == 20


def test_an_emptied_cache_is_empty(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "entry.cache").write_bytes(b"x")
    bench.empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the true best ---------------------------------------------------------------------------------------------------


def test_the_workbench_builds_judges_and_refuses_to_do_nothing(tmp_path):
    calibration, evaluation = small_data(tmp_path)
    work = Workbench(example().model, calibration, 16, evaluation, "top1", tmp_path / "built")
    try:
        layers = work.layers()
        assert [layer.macs for layer in layers] == sorted((layer.macs for layer in layers), reverse=True)
        names = [layer.name for layer in layers]
        int8 = work.build(passes_of([{"name": "quantize-int8"}]))
        plain = work.build(())
        assert int8.stat().st_size < 0.5 * plain.stat().st_size
        assert work.loss(plain) == 0.0
        assert work.loss(int8) <= 0.1
        with pytest.raises(NothingDoneError):
            work.build(passes_of([{"name": "quantize-int8", "ops": ["Conv", "Gemm"], "exclude": names}]))
        work.discard(int8)
        assert not int8.exists()
        assert plain.exists()
    finally:
        work.close()


def test_assignments_are_all_of_them_the_untouched_first():
    space = exhaustive.Space({"a": ("x", "y", "z"), "b": ("left", "cut")}, lambda assignment: ())
    found = list(space.assignments())
    assert len(found) == space.size == 6
    assert found[0] == {"a": "x", "b": "left"}
    assert len({tuple(each.items()) for each in found}) == 6


@pytest.mark.parametrize(("most", "size"), [(64, 16), (8, 8)])
def test_the_small_space_is_as_large_as_it_may_be(most, size):
    class Layered:
        def layers(self):
            return LAYERS

    space = exhaustive.small_space(Layered(), most)
    assert space.size == size <= most
    recipes = [space.passes(assignment) for assignment in space.assignments()]
    assert recipes[0] == ()
    # Without INT8 anywhere, float and INT8 differ in nothing but the names.
    assert len(set(recipes)) == size


class Known:
    """A workbench where loss and latency of every assignment are given: that of a cheap one is a lie at a glance."""

    model = Path("original.onnx")

    def __init__(self, truth, refused=()):
        self.truth, self.refused = truth, refused

    def build(self, passes):
        if passes in self.refused:
            raise NothingDoneError
        return Path(passes)

    def loss(self, artifact, target=None):
        return self.truth[artifact.name][0]

    def slowness(self, artifact):
        return self.truth[artifact.name][1]

    def latencies(self, artifacts, profile):
        return [self.truth[artifact.name][2] for artifact, _ in artifacts]


def space_of(names):
    return exhaustive.Space({"u": names}, lambda each: each["u"])


TRUTH = {
    "original.onnx": (0.0, 1.0, 10.0),
    "plan": (0.004, 0.0, 6.3),
    "safe": (0.0, 0.8, 8.0),
    "lucky": (0.0, 0.5, 7.0),
    "true": (0.01, 0.6, 6.0),
    "wrong": (0.02, 0.1, 1.0),
}


def test_the_true_best_is_told_by_the_second_timing_among_those_in_the_limit():
    space = space_of(["safe", "lucky", "true", "wrong", "odd"])
    found = exhaustive.judge_space(Known(TRUTH, refused=("odd",)), space, 0.01, (Path("plan"), None))
    assert found["best"] == {"u": "true"}
    assert found["gap"] == pytest.approx(0.05)
    assert (found["members"], found["refused"], found["kept_limit"]) == (5, 1, 3)


def test_where_no_member_is_faster_the_original_is_the_best():
    truth = {**TRUTH, "safe": (0.0, 2.0, 20.0)}
    found = exhaustive.judge_space(Known(truth), space_of(["safe", "wrong"]), 0.01, (Path("plan"), None))
    assert found["best"] is None
    assert found["best_ms"] == 10.0
    assert found["gap"] < 0


# --- pages -----------------------------------------------------------------------------------------------------------


def full_row(case, method, latency, drop, **more):
    found = {"value": latency and 4.0 / latency, "low": 0.98 * 4.0 / latency, "high": 1.02 * 4.0 / latency}
    return {
        "case": case,
        "method": method,
        "label": tools.method_of(method).label,
        "error": None,
        "seconds": 1.0,
        "peak_mb": 1.0,
        "value": 0.9 - drop,
        "drop": drop,
        "low": drop - 0.01,
        "high": drop + 0.01,
        "agreement": 0.9,
        "n": 300,
        "latency_ms": latency,
        "latency_ratio": None if method == tools.ORIGINAL else found,
        "size_bytes": 10**6,
        "energy": {"mj": 10.0 * latency, "grade": "D", "ratio": found},
        "within": drop <= 0.01,
        **more,
    }


def note(ratio, **more):
    against = {
        "rival": "search",
        "ratio": {"value": ratio, "low": 0.97 * ratio, "high": 1.03 * ratio},
        "same": False,
        "within": True,
    }
    compiled = {"first_seconds": 50.0, "first_error": None, "second_seconds": 20.0, "second_error": None}
    return {
        "planning": 100,
        "scored": 300,
        "samples": 64,
        "against": {**against, **more},
        "compile": compiled,
        "search": {"seconds": 50.0, "trials": 20, "built": 18, "kept_limit": 9},
        "exhaustive": None,
    }


def document():
    rows = []
    for case, plan in (("fast-net", 1.0), ("lost-net", 3.0), ("odd-net", 2.0)):
        rows += [
            full_row(case, tools.ORIGINAL, 4.0, 0.0),
            full_row(case, tools.PLAN, plan, 0.005 if case != "odd-net" else 0.03),
            full_row(case, "search", 2.0, 0.002),
            full_row(case, "nncf", 0.5, 0.08),
        ]
    rows.append(
        {**full_row("gone-net", tools.PLAN, 1.0, 0.0), "error": "took more than 5 s", "latency_ms": None}
    )
    cases = {
        "fast-net": note(2.0),
        "lost-net": note(2 / 3),
        "odd-net": note(1.0, within=False),
        "gone-net": {
            "error": None,
            "against": None,
            "compile": {"first_seconds": 5.0, "first_error": "late"},
        },
    }
    cases["fast-net"]["exhaustive"] = {
        "error": None,
        "members": 64,
        "refused": 2,
        "kept_limit": 40,
        "original_ms": 4.0,
        "best_ms": 1.0,
        "best_loss": 0.002,
        "plan_ms": 1.02,
        "plan_loss": 0.004,
        "gap": 0.02,
    }
    return {"rows": rows, "cases": cases, "searched": True, "max_drop": 0.01}


def test_the_lost_cases_are_named():
    lines = tables.goals(document())
    assert "**missed** (1 of 4 models)" in lines[0]
    told = lines[1]
    assert told.startswith("**Lost**: ")
    assert "lost-net (0.67 [0.65, 0.69]" in told
    assert "odd-net (broke the limit)" in told
    assert "gone-net (failed)" in told
    assert "fast-net" not in told
    # sqrt(2 * 2/3), without the two that have no figure.
    assert "(1.155x over 2 models, without gone-net, odd-net)" in lines[2]
    assert "**missed**" in lines[2]
    assert "Second compile" in lines[4]
    assert "**met** (3 of 3 models)" in lines[4]
    assert "**met** (1 of 1 models)" in lines[5]


def test_a_plan_that_is_near_the_best_by_breaking_the_limit_is_not_near():
    found = document()
    found["cases"]["fast-net"]["exhaustive"]["plan_loss"] = 0.02
    assert "**missed**" in tables.gap_goal(found)


def test_the_table_says_when_there_is_no_search():
    found = document()
    assert "Optuna was not installed" not in tables.goals_table(found)
    found |= {"searched": False}
    assert "Optuna was not installed" in tables.goals_table(found)


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("planner")])
def test_every_table_renders_what_failed_too(name, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "PICTURE", tmp_path / "images" / "planner.svg")
    (tmp_path / "images").mkdir()
    text = TABLES[name](document())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines if lines}) <= 1
    assert "fast-net" in text or name == "planner-plot"
    assert "nan" not in text


def test_methods_that_break_the_limit_are_shown_and_marked():
    text = tables.methods_table(document())
    line = next(line for line in text.splitlines() if line.startswith("| NNCF INT8 |"))
    assert "**no**" in line
    assert "estimated" in line
    rival = [line for line in text.splitlines() if "(best rival)" in line]
    assert len(rival) == 3
    assert all(line.startswith("| Optuna search") for line in rival)


def test_the_plot_has_a_cross_for_what_breaks_the_limit():
    dots = [
        Dot("plan", "#00ff00", 2.0, 1.9, 2.1, True, 0.1, ours=True),
        Dot("peer", "#ff0000", 3.0, 2.9, None, False, 4.0),
        Dot("slow", "#0000ff", 0.2, 0.19, 0.21, True, 0.0),
    ]
    root = ET.fromstring(planner_svg("A <title>", [("net & co", dots)]))
    svg = "{http://www.w3.org/2000/svg}"
    told = [title.text for title in root.iter(f"{svg}title")]
    assert told[1] == "peer: 3.00×, +4.00 points lost, breaks the limit"
    crosses = [path for path in root.iter(f"{svg}path") if path.get("fill") == "none"]
    assert {path.get("stroke") for path in crosses} == {"#ff0000", "#52525b"}
    assert "net & co" in [text.text for text in root.iter(f"{svg}text")]
    centres = {each.get("fill"): float(each.get("cx")) for each in root.iter(f"{svg}circle") if len(each)}
    one = next(float(line.get("x1")) for line in root.iter(f"{svg}line") if line.get("stroke-width") == "1.4")
    assert centres["#0000ff"] < one


def test_rows_tell_what_failed_and_what_kept_the_limit(tmp_path):
    case = bench._Bench(example(), settings_in(tmp_path))
    case.runs = {method.key: Run(2.0, 100.0, {"artifact": "x"}) for method in tools.METHODS if method.job}
    case.runs["nncf"] = Run(1.0, error="no such operator")
    case.runs[tools.PLAN] = Run(3.0, 100.0, {"artifact": "bundle/x", "target": "cpu:threads=1"})
    case.runs[tools.GREENCC_INT8] = case.runs[tools.SEARCH] = Run(1.0, error="gone")
    items = {item["key"]: item for item in case._items()}
    assert next(iter(items)) == tools.ORIGINAL
    assert set(items) == {
        tools.ORIGINAL,
        "original-openvino",
        tools.PLAN,
        "ort-minmax",
        "ort-percentile",
        "nncf-openvino",
    }
    assert items[tools.PLAN]["target"] == "cpu:threads=1"
    assert items["original-openvino"]["counted"] == items[tools.ORIGINAL]["path"]
    # Its operations are counted in NNCF's ONNX file, which there is none of.
    assert items["nncf-openvino"]["counted"] is None
    rows = {each["method"]: each for each in case._rows({tools.PLAN: row(1.0)}, "stopped")}
    assert rows["nncf"]["error"] == "no such operator"
    assert rows["ort-minmax"]["error"] == "stopped"
    assert rows[tools.PLAN]["within"]
    assert not rows["nncf"]["within"]
