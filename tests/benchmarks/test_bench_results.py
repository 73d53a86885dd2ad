"""The pure parts of the benchmarks: cases, statistics, tables, the page."""

import math
from pathlib import Path

import onnx
import pytest

from benchmarks import child, render
from benchmarks.bench_cleanup import count_nodes
from benchmarks.cases import ROOT, example, find_cases
from benchmarks.results import Settings, _without_folders, interval_of, machine, spread
from benchmarks.run import shown_command


def test_a_constant_ratio_has_no_width():
    found = interval_of([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.5)
    assert found["high"] == pytest.approx(0.5)


def test_a_ratio_of_noisy_repetitions_is_the_geometric_mean_within_its_interval():
    found = interval_of([1.0, 2.0, 1.5], [1.0, 1.0, 1.0])
    assert found["value"] == pytest.approx(3.0 ** (1 / 3))
    assert found["low"] < found["value"] < found["high"]


def test_one_repetition_has_no_interval():
    assert interval_of([1.0], [2.0]) == {"value": 0.5, "low": 0.0, "high": None}
    assert interval_of([], []) is None
    assert interval_of([1.0], [1.0, 2.0]) is None


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


def test_results_name_the_machine_but_no_folder_of_it():
    assert machine()["cpu"]
    arguments = ["--quick", "--models", "/home/me/models", "--work=/tmp/x", "--only", "build"]
    shown = shown_command(arguments, True)
    assert shown == "BENCH_MODELS=MODELS python -m benchmarks.run --quick --only build"


def test_messages_lose_the_folders_of_the_machine():
    settings = Settings(Path("/data/models"), 1, True, "", Path("/tmp/work"))
    told = {"rows": [("/data/models/a.onnx is odd", 1), {"m": f"/tmp/work/x in {ROOT}/y"}]}
    assert _without_folders(told, settings) == {
        "rows": [["MODELS/a.onnx is odd", 1], {"m": "WORK/x in GREENCC/y"}]
    }


def test_ratio_text():
    assert render.ratio_text(None) == render.NONE
    assert render.ratio_text({"value": 1.5, "low": 1.25, "high": None}) == "1.50 [1.25, –]"
    assert render.ratio_text({"value": 2.0, "low": 2.0, "high": 2.0}) == "2.00"


def test_sections_are_replaced_and_the_text_around_them_is_kept():
    page = "before\n<!-- begin: a -->\nold\n<!-- end: a -->\nafter\n"
    once = render.replace_section(page, "a", r"new \1 table")
    assert once == "before\n<!-- begin: a -->\nnew \\1 table\n<!-- end: a -->\nafter\n"
    assert render.replace_section(once, "a", r"new \1 table") == once
    with pytest.raises(ValueError, match="begin: b"):
        render.replace_section(page, "b", "")


def test_the_page_has_every_section():
    text = render.PAGE.read_text(encoding="utf-8")
    for name in render.TABLES:
        assert render.replace_section(text, name, "x") != ""


def build_rows(ratio):
    base = {"case": "net", "error": None, "job_seconds": spread([1.0])}
    base |= {"cpu_seconds": spread([1.5]), "peak_mb": spread([100.0])}
    return {
        "rows": [
            {
                **base,
                "tool": "greencc",
                "seconds": spread([2.0]),
                "greencc_ratio": None,
                "fastest_peer": False,
            },
            {**base, "tool": "other", "seconds": spread([4.0]), "greencc_ratio": ratio, "fastest_peer": True},
            {"case": "net", "tool": "broken", "error": "KeyError: 'x|y'"},
        ]
    }


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "met"), (0.51, "missed")])
def test_the_build_table_says_whether_the_goal_is_met(value, verdict):
    text = render.build_table(build_rows({"value": value, "low": 0.4, "high": 0.6}))
    assert f"goal 0.50 {verdict}." in text
    assert "x\\|y" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_memory_table_keeps_failures():
    row = {"tool": "t", "method": "m", "error": None, "peak_mb": 123.4}
    rows = [
        {**row, "samples": 64},
        {**row, "samples": 512, "error": "MemoryError"},
        {**row, "samples": 4096, "error": "KeyError: 1"},
    ]
    text = render.memory_table({"rows": rows, "limit_mb": 6000})
    assert "| t, m | 123 | over 6,000 | failed (KeyError: 1) |" in text


def test_outputs_that_changed_are_marked():
    assert not render.differs({"error": None, "output_error": 1e-6})
    assert render.differs({"error": None, "output_error": 0.1})
    assert render.differs({"error": None, "output_error": None})
    assert not render.differs({"error": "failed", "output_error": None})


def test_refusals_keep_message_and_hint_without_warnings():
    text = "progress\ngreencc: the input is odd\n  do this\n  Warning: no data\n"
    assert child.first_error(text) == "the input is odd; do this"
    assert child.first_error("Traceback\nKeyError: 1\n") == "KeyError: 1"


def test_cases_of_a_folder(tmp_path):
    full = tmp_path / "b-full"
    (full / "images").mkdir(parents=True)
    (full / "model.onnx").touch()
    (full / "labels.csv").touch()
    (full / "case.toml").write_text('name = "full"\nmetric = "auc"\n', encoding="utf-8")
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "x.onnx").touch()
    assert find_cases(None) == [example()]
    _, case, plain = find_cases(tmp_path)
    assert (case.name, case.metric, case.evaluation) == ("full", "top1", full / "images")
    assert case.labels == full / "labels.csv"
    assert case.calibration is None
    assert [name for name, _ in case.extra] == ["AUC"]
    assert plain.name == "graphs/x"
    assert not plain.labelled


def test_nodes_of_subgraphs_count_and_constants_do_not(tmp_path):
    float1 = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0])
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["c"], value=zero),
            onnx.helper.make_node("Relu", ["c"], ["y"]),
        ],
        "body",
        [],
        [float1],
    )
    branch = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([branch], "g", [flag], [float1])), path)
    assert count_nodes(path) == 3


def test_a_model_row_without_labels_shows_agreement():
    text = render._model_row(
        {
            "case": "net",
            "data": False,
            "precision": "fp32",
            "latency_ms": [2.0, 1.0],
            "latency_ratio": {"value": 2.0, "low": 1.9, "high": 2.1},
            "energy_ratio": None,
            "energy_grade": None,
            "size_ratio": {"value": 1.0, "low": 1.0, "high": 1.0},
            "accuracy": {"baseline": None, "agreement": 1.0, "certified": False, "n_needed": None, "n": 64},
        }
    )
    assert text[-3:] == ["agreement 100.00 %", render.NONE, "no (no data)"]
    assert math.isclose(float(text[3].split()[0]), 2.0)
