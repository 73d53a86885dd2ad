"""How a compile spends the time for tuning, on a target that only notes what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.session import Session
from greencc.compiler.tune_job import tune_model
from greencc.compiler.tuning import check_tuning, tune
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.progress import Progress
from greencc.core.tuning import Tunable, TuningReport
from greencc.planner.budget import Objective
from greencc.report.tuning import tuning_text
from greencc.targets import CpuTarget, make_target

REPORT = TuningReport(20.0, 3, 12, 1, 2, 300.0, 200.0)


@dataclass(frozen=True)
class NotingTarget(CpuTarget):
    """Answers with the reports of the class, one after another."""

    def cannot_tune(self) -> str | None:
        return ASKED.reason

    def check_schedules(self) -> tuple[str, ...]:
        return ("the schedules are odd",)

    def tune(self, model: ir.Model, seconds: float, progress: Progress) -> TuningReport:
        ASKED.seconds.append(seconds)
        return ASKED.reports.pop(0)


class Asked:
    reason: str | None = None
    seconds: list[float]
    reports: list[TuningReport]


ASKED = Asked()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ASKED.reason, ASKED.seconds, ASKED.reports = None, [], []


def _model(*op_types: str) -> ir.Model:
    nodes = [
        helper.make_node(op_type, [f"v{index}"], [f"v{index + 1}"]) for index, op_type in enumerate(op_types)
    ]
    inputs = [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info(f"v{len(nodes)}", TensorProto.FLOAT, [1])]
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)))


FLOAT, INTEGER = _model("Relu"), _model("Relu", "DynamicQuantizeLinear")


def _session(tmp_path: Path, **options: object) -> Session:
    return Session(CompileOptions(**options), NotingTarget(), tmp_path)  # type: ignore[arg-type]


def test_nothing_is_tuned_unless_asked_for(tmp_path):
    session = _session(tmp_path)
    tune(session, FLOAT, "original")
    assert ASKED.seconds == []
    assert session.compile_info().tuning == ()


def test_a_float_model_alone_gets_all_of_the_time(tmp_path):
    session = _session(tmp_path, tune=60.0)
    ASKED.reports = [REPORT, replace(REPORT, seconds=37.0)]
    tune(session, FLOAT, "original")
    tune(session, FLOAT, "fp32")
    # Three seconds are left, which is too short to start for.
    tune(session, FLOAT, "fp16")
    assert ASKED.seconds == [60.0, 40.0]
    assert [each.name for each in session.compile_info().tuning] == ["original", "fp32"]
    assert "tuning" in session.phases


def test_floats_leave_half_of_the_time_to_integers(tmp_path):
    session = _session(tmp_path, tune=60.0, calibration="data.npz")
    ASKED.reports = [replace(REPORT, seconds=28.0), REPORT]
    tune(session, FLOAT, "original")
    tune(session, FLOAT, "fp32")
    tune(session, INTEGER, "int8")
    assert ASKED.seconds == [30.0, 32.0]


RECIPE = 'schema = "greencc.recipe/1"\n\n[[pass]]\nname = "{}"\n'


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"precision": Precision.FP32}, 60.0),
        ({"precision": Precision.INT4_WEIGHTS}, 60.0),
        ({"precision": Precision.MIXED}, 30.0),
        ({"precision": Precision.INT8_DYNAMIC, "calibration": None}, 30.0),
        ({"passes": "prune:ratio=0.3"}, 60.0),
        ({"passes": "prune:ratio=0.3,quantize"}, 30.0),
        ({"recipe": "fold-batch-norm"}, 60.0),
        ({"recipe": "quantize-int8"}, 30.0),
        ({"minimize": Objective.LATENCY}, 30.0),
    ],
)
def test_floats_leave_nothing_where_no_integers_follow(tmp_path, options, first):
    if "recipe" in options:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(options["recipe"]), encoding="utf-8")
        options = {"recipe": path}
    session = _session(tmp_path, **{"tune": 60.0, "calibration": "data.npz", **options})
    ASKED.reports = [REPORT]
    tune(session, FLOAT, "original")
    assert ASKED.seconds == [first]


def test_what_is_tuned_already_is_told_once(tmp_path):
    session = _session(tmp_path, tune=60.0)
    done = replace(REPORT, seconds=0.1, trials=0)
    ASKED.reports = [done, done]
    tune(session, FLOAT, "original")
    tune(session, FLOAT, "fp32")
    assert [each.name for each in session.tuning] == ["original"]


def test_bad_schedules_and_a_bad_file_are_warned_of(tmp_path):
    session = _session(tmp_path, tune=60.0)
    ASKED.reports = [replace(REPORT, failed=("conv: it crashed", "dense: wrong"), warnings=("a file",))]
    tune(session, FLOAT, "original")
    assert session.warnings == ["a file", "a schedule is not used: conv: it crashed, and 1 more"]


def test_targets_that_cannot_be_tuned_are_refused(tmp_path):
    assert not isinstance(CpuTarget(), Tunable)
    with pytest.raises(UnavailableError, match="'cpu' has nothing to tune"):
        check_tuning(CompileOptions(tune=60.0), CpuTarget())
    with pytest.raises(
        UnavailableError, match="'tvm-arm' cannot be tuned here: its code runs on another machine"
    ):
        check_tuning(CompileOptions(tune=60.0), make_target("tvm-arm:preset=rpi5"))
    check_tuning(CompileOptions(), CpuTarget())
    check_tuning(CompileOptions(tune=60.0), NotingTarget())
    ASKED.reason = "its code is for another processor"
    with pytest.raises(UnavailableError, match="cannot be tuned here: its code is for another processor"):
        check_tuning(CompileOptions(tune=60.0), NotingTarget())


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, float("nan")])
def test_a_time_that_is_none_is_refused(seconds, tmp_path):
    with pytest.raises(UsageError, match="time to tune is"):
        CompileOptions(tune=seconds)
    with pytest.raises(UsageError, match="time to tune is"):
        tune_model(tmp_path / "model.onnx", "cpu", seconds)


def test_tuning_needs_a_place_to_keep_what_it_finds():
    with pytest.raises(UsageError, match="cache exclude"):
        CompileOptions(tune=60.0, cache=False)


def test_the_report_tells_of_it(tmp_path):
    session = _session(tmp_path, tune=60.0)
    ASKED.reports = [REPORT]
    tune(session, FLOAT, "original")
    assert tuning_text(session.tuning[0]) == (
        "Tuning of original: 12 schedules tried in 20 s; 2 of 3 kernels have a faster one, 1 have none left to try; "
        "all kernels together, each measured alone: 1.50x faster than without tuning"
    )
