"""The gate: what a pass must keep, what happens when it does not, and who is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.core.capabilities import Capabilities
from greencc.core.errors import InputError
from greencc.core.passes import Context, Outcome, Pass
from greencc.core.pipeline import Pipeline, Tolerance, output_error, slice_problem, unbounded_problem

CAPABILITIES = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), False)


class Runner:
    """Runs a model as it is written; problems are the user's kind, as a target's engine reports them."""

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        except Exception as error:
            raise InputError(f"does not load: {error}") from error

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        del self.session


@dataclass(frozen=True)
class Scale(Pass):
    """Doubles the constant of every Mul that follows a power of two; one of them wrongly (test only)."""

    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "multiply constants by one, except for one"

    wrong: str = ""

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        outcome = Outcome()
        for node in model.graph:
            if node.op_type != "Mul" or not ctx.rewrites.allow("rescale", node.name):
                continue
            constant = node.inputs[1]
            factor = 1.5 if node.name == self.wrong else 1.0
            constant.const_value = ir.tensor(
                constant.const_value.numpy() * np.float32(factor), name=constant.name
            )
            outcome.changed += 1
        return outcome


@dataclass(frozen=True)
class Lossy(Scale):
    name: ClassVar[str] = "lossy"
    lossy: ClassVar[bool] = True


@dataclass(frozen=True)
class Break(Pass):
    """Gives one node an operator that does not exist."""

    name: ClassVar[str] = "break"
    summary: ClassVar[str] = "invalid graph"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        if not ctx.rewrites.allow("break", "mul2"):
            return Outcome()
        model.graph.node("mul2").op_type = "NoSuchOperator"
        return Outcome(1)


@dataclass(frozen=True)
class Silent(Pass):
    """Breaks the model without announcing it."""

    name: ClassVar[str] = "silent"
    summary: ClassVar[str] = "unannounced change"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        model.graph.node("mul0").op_type = "Add"
        ctx.rewrites.allow("innocent", "mul3")
        return Outcome(1)


def chain(length: int = 7) -> ir.Model:
    nodes, weights, x = [], [], "x"
    for index in range(length):
        weights.append(numpy_helper.from_array(np.full(4, 1.1, np.float32), f"c{index}"))
        nodes.append(helper.make_node("Mul", [x, f"c{index}"], [f"v{index}"], f"mul{index}"))
        x = f"v{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def context() -> Context:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((3, 4)).astype(np.float32)} for _ in range(2)]
    return Context(CAPABILITIES, Runner, feeds)


def constants(model: ir.Model) -> list[float]:
    return [float(value.const_value.numpy()[0]) for value in model.graph.initializers.values()]


def test_a_pass_that_keeps_the_outputs_is_kept_and_the_input_model_is_not_touched() -> None:
    model = chain()
    before = constants(model)
    result, (record,) = Pipeline(context()).run(model, [Scale()])
    assert (record.changed, record.rolled_back, record.error) == (7, False, 0.0)
    assert result is not model
    assert constants(model) == before


@pytest.mark.parametrize("index", range(7))
def test_a_wrong_rewrite_is_rolled_back_and_named(index) -> None:
    model = chain()
    result, (record,) = Pipeline(context()).run(model, [Scale(wrong=f"mul{index}")])
    assert record.rolled_back
    assert record.changed == 0
    assert constants(result) == constants(model)
    (finding,) = record.findings
    assert (finding.kind, finding.rule, finding.node) == ("rolled-back", "rescale", f"mul{index}")
    assert "outputs moved by 0.5" in finding.message


def test_later_passes_go_on_from_the_last_good_model() -> None:
    _, records = Pipeline(context()).run(chain(), [Scale(wrong="mul3"), Scale()])
    assert [record.rolled_back for record in records] == [True, False]


def test_a_graph_that_no_longer_loads_is_rolled_back_and_named() -> None:
    result, (record,) = Pipeline(context()).run(chain(), [Break()])
    assert record.rolled_back
    assert record.error is None
    assert (record.findings[0].rule, record.findings[0].node) == ("break", "mul2")
    assert all(node.op_type == "Mul" for node in result.graph)


def test_an_unannounced_change_is_not_blamed_on_an_innocent_rewrite() -> None:
    _, (record,) = Pipeline(context()).run(chain(), [Silent()])
    assert record.rolled_back
    assert record.findings[0].rule is None


def test_a_lossy_pass_reports_its_error_and_becomes_the_reference() -> None:
    _, records = Pipeline(context()).run(chain(), [Lossy(wrong="mul1"), Scale()])
    assert records[0].error == pytest.approx(0.5, rel=1e-3)
    assert [record.rolled_back for record in records] == [False, False]
    assert records[1].error == 0.0


def test_without_samples_nothing_is_claimed_about_the_outputs() -> None:
    _, (record,) = Pipeline(Context(CAPABILITIES, Runner, [])).run(chain(), [Scale()])
    assert record.error is None
    assert not record.rolled_back


def test_the_tolerance_decides() -> None:
    loose = Pipeline(context(), Tolerance(relative=0.6, per_slice=0.6))
    assert not loose.run(chain(), [Scale(wrong="mul0")])[1][0].rolled_back


def _outputs(*values: Any) -> list[dict[str, Any]]:
    return [{"y": np.asarray(value)} for value in values]


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.2], 0.1),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1, 2], [1, 3], np.inf),
        ([True], [True], 0.0),
        ([1.0, 2.0], [[1.0, 2.0]], np.inf),
    ],
)
def test_output_error(expected, got, error) -> None:
    assert output_error(_outputs(expected), _outputs(got), 1e-6) == pytest.approx(error)


def _problem(expected: Any, got: Any) -> str | None:
    a, b = _outputs(np.array(expected)), _outputs(np.array(got))
    tolerance = Tolerance()
    if output_error(a, b, tolerance.absolute) > tolerance.relative:
        return "whole"
    return slice_problem(a, b, tolerance)


def test_a_large_value_does_not_hide_a_score() -> None:
    problem = _problem([[1e4, 0.3], [9e3, 0.2]], [[1e4, 0.9], [9e3, 0.2]])
    assert problem is not None
    assert "slice 1 along the last axis of output 'y' moved by 2 of its own range" in problem


def test_the_slice_that_moved_most_is_named() -> None:
    problem = _problem([[1e4, 1.0, 1.0, 1.0]], [[1e4, 1.1, 1.5, 1.2]])
    assert problem is not None
    assert problem.startswith("slice 2 ")


def test_a_slice_is_judged_over_all_samples() -> None:
    tolerance = Tolerance()
    before = _outputs([[100.0, 50.0]], [[100.0, 0.0]])
    assert slice_problem(before, _outputs([[100.0, 50.0]], [[100.0, 5e-3]]), tolerance) is None
    assert slice_problem(before[1:], _outputs([[100.0, 5e-3]]), tolerance) is not None


def test_rounding_in_a_small_slice_is_no_damage() -> None:
    assert _problem([[1e4, 1e-7]], [[1e4, 5e-3]]) is None
    assert _problem([[1e4, 1e-7]], [[1e4, 5e-2]]) is not None


def test_small_outputs_count_as_much_as_large_ones() -> None:
    assert _problem([[9e-7, 5e-7]], [[0.0, 0.0]]) == "whole"
    assert _problem([[9e-7, 5e-7]], [[9e-7, 5e-7 + 1e-13]]) is None
    assert _problem([[0.0, 0.0]], [[0.0, 1e-10]]) is None
    assert _problem([[0.0, 0.0]], [[0.0, 1e-3]]) == "whole"


@pytest.mark.parametrize(
    "values", [3.0, [1.0, 2.0], [[np.inf, 1.0]], [[1, 2]], np.zeros((0, 3)), np.zeros((3, 0))]
)
def test_equal_outputs_of_any_kind_have_no_problem(values: Any) -> None:
    assert _problem(values, values) is None


def test_a_last_axis_of_varying_length_has_no_slices() -> None:
    before, after = _outputs([[1e4, 1.0]], [[1.0]]), _outputs([[1e4, 1.5]], [[1.0]])
    assert slice_problem(before, after, Tolerance()) is None


def _sigmoid(bias: float) -> ir.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, "N"])
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "add"),
        helper.make_node("Sigmoid", ["a"], ["s"], "sigmoid"),
        helper.make_node("Transpose", ["s"], ["y"], "transpose", perm=[1, 0]),
    ]
    weights = [numpy_helper.from_array(np.full(4, bias, np.float32), "b")]
    graph = helper.make_graph(nodes, "sigmoid", [x], [y], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@dataclass(frozen=True)
class Move(Pass):
    """Adds to the bias (test only)."""

    name: ClassVar[str] = "move"
    summary: ClassVar[str] = "change the bias"

    by: float = 0.0

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        bias = model.graph.initializers["b"]
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(self.by), name="b")
        return Outcome(1)


@pytest.mark.parametrize(("by", "rolled_back"), [(1e-3, False), (-20.0, True)])
def test_the_rounding_of_a_small_sigmoid_is_no_damage_but_losing_it_is(by, rolled_back) -> None:
    # Outputs of about 1e-5, in steps of 3e-8 to 1e-7.
    feeds = [{"x": np.zeros((3, 4), np.float32)}]
    _, (record,) = Pipeline(Context(CAPABILITIES, Runner, feeds)).run(_sigmoid(-11.5), [Move(by)])
    assert record.rolled_back is rolled_back


@dataclass(frozen=True)
class Shift(Pass):
    """Adds to one column of the last constant (test only)."""

    name: ClassVar[str] = "shift"
    summary: ClassVar[str] = "change one column"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        if not ctx.rewrites.allow("shift", "mul0"):
            return Outcome()
        constant = model.graph.node("mul0").inputs[1]
        constant.const_value = ir.tensor(
            constant.const_value.numpy() + np.array([0, 0, 0, 0.5], np.float32), name=constant.name
        )
        return Outcome(1)


def test_a_hidden_column_rolls_the_pass_back() -> None:
    model = chain(1)
    value = model.graph.node("mul0").inputs[1]
    value.const_value = ir.tensor(np.array([1e5, 1.0, 1.0, 1.0], np.float32), name=value.name)
    _, (record,) = Pipeline(context()).run(model, [Shift()])
    assert record.rolled_back
    assert record.error is not None
    assert record.error < 1e-4
    assert "slice 3 along the last axis" in record.findings[0].message
    assert (record.findings[0].rule, record.findings[0].node) == ("shift", "mul0")


def test_why_an_error_is_unbounded_is_told_apart() -> None:
    floats, classes = {"y": np.ones(2, np.float32)}, {"y": np.array([1, 2])}
    for reference, found, reason in (
        (floats, {"y": np.array([1, np.nan], np.float32)}, "outputs are no longer finite"),
        (floats, {}, "output 'y' is gone"),
        (floats, {"y": np.ones(3, np.float32)}, "output 'y' changed its shape from [2] to [3]"),
        (classes, {"y": np.array([1, 3])}, "it is int64: how large an error that is has no bound"),
        ({"y": -np.full(2, np.inf, np.float32)}, floats, "were not finite are others now"),
    ):
        assert output_error([reference], [found], 1e-9) == float("inf")
        assert reason in unbounded_problem([reference], [found])


def test_outputs_without_a_finite_value_are_warned_about_once() -> None:
    feeds = [{"x": np.full((3, 4), np.nan, np.float32)}]
    _, records = Pipeline(Context(CAPABILITIES, Runner, feeds)).run(chain(), [Scale(), Scale()])
    (finding,) = records[0].findings
    assert finding.kind == "warning"
    assert "no finite value comes out at 'v6'" in finding.message
    assert records[1].findings == ()
    _, (record,) = Pipeline(context()).run(chain(), [Scale()])
    assert record.findings == ()
