"""The prune pass as a whole: it cuts, repairs, measures and says what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.calibration import Source, open_data
from greencc.core.capabilities import Arithmetic
from greencc.core.data import Feeds
from greencc.core.describe import describe, input_specs
from greencc.core.engine import Timing
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import ensure_names
from greencc.core.machine import CpuInfo
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, RewriteLog
from greencc.core.pipeline import Pipeline
from greencc.core.report import Interval
from greencc.passes._scores import Score
from greencc.passes.prune import Prune
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget
from greencc.targets._cpu_capabilities import int8_support
from greencc.torch_graph import differentiate

WIDTH, SIZE, SAMPLES = 16, 8, 96


def redundant(copies: bool = True) -> ir.Model:
    """Two 3x3 convolutions and a classifier; half of the channels of the first are mixtures of the other half."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((WIDTH, 3, 3, 3)).astype(np.float32)
    if copies:
        # Positive multiples pass Relu unchanged, so they can be made up for exactly.
        first[WIDTH // 2 :] = first[: WIDTH // 2] * rng.uniform(0.5, 2.0, (WIDTH // 2, 1, 1, 1)).astype(
            np.float32
        )
    arrays = {
        "w0": first,
        "w1": 0.1 * rng.standard_normal((WIDTH, WIDTH, 3, 3)).astype(np.float32),
        "b1": rng.standard_normal(WIDTH).astype(np.float32),
        "w2": 0.3 * rng.standard_normal((4, WIDTH)).astype(np.float32),
        "b2": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "second", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["scores"], "classify", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "redundant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    ensure_names(model)
    infer_shapes(model)
    return model


def decisions(model: ir.Model) -> ir.Model:
    """The model with the class of the largest score as its only output."""
    (scores,) = model.graph.outputs
    node = ir.node("ArgMax", [scores], {"axis": 1, "keepdims": 0}, name="decide")
    node.outputs[0].name, node.outputs[0].dtype = "class", ir.DataType.INT64
    model.graph.append(node)
    model.graph.outputs[:] = [node.outputs[0]]
    infer_shapes(model)
    return model


@pytest.fixture
def data(tmp_path):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    path = tmp_path / "data.npz"
    np.savez(path, image=rng.standard_normal((SAMPLES, 3, SIZE, SIZE)).astype(np.float32))
    return path


def context(model: ir.Model, path=None, **more) -> Context:  # type: ignore[no-untyped-def]
    target = CpuTarget(threads=1)
    source = open_data(path, input_specs(model)) if path is not None else None
    assert source is None or isinstance(source, Source)
    samples = [np.random.default_rng(2).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)]
    return Context(
        capabilities=replace(target.capabilities(), channel_alignment=1),
        build=target.reference,
        samples=[{"image": item} for item in samples],
        calibration=source,
        gradients=differentiate,
        **more,
    )


def outputs(model: ir.Model, count: int = 64, name: str = "scores") -> np.ndarray:  # type: ignore[type-arg]
    engine = CpuTarget(threads=1).reference(model)
    image = np.random.default_rng(5).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)
    try:
        return engine.run({"image": image})[name]
    finally:
        engine.close()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:  # type: ignore[type-arg]
    centred = wanted - wanted.mean(0)
    return float(np.square(found - wanted).sum() / np.square(centred).sum())


def timer(value: float, low: float, high: float):  # type: ignore[no-untyped-def]
    seen = []

    def time(models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        assert len(models) == 2
        assert feeds
        seen.append([describe(model).params for model in models])
        return Timing((value, 1.0), (Interval(value, low, high),))

    return time, seen


def test_what_others_can_make_up_for_goes_and_is_made_up_for(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    before, wanted = describe(model), outputs(model)
    outcome = Prune(ratio=0.4, exclude=("second",), measured=False).apply(model, context(model, data))
    assert outcome.changed == 1
    check_model(model)
    after = describe(model)
    assert after.macs is not None
    assert before.macs is not None
    assert after.macs <= 0.6 * before.macs
    assert relative(outputs(model), wanted) < 1e-3
    assert any("fewer multiply-accumulates" in finding.message for finding in outcome.findings)
    assert any("excluded by the options" in finding.message for finding in outcome.findings)


def test_repair_recovers_most_of_what_cutting_costs(data) -> None:  # type: ignore[no-untyped-def]
    wanted = outputs(redundant())
    errors = {}
    for repair in (False, True):
        model = redundant()
        Prune(ratio=0.4, repair=repair, measured=False).apply(model, context(model, data))
        errors[repair] = relative(outputs(model), wanted)
    assert errors[True] < 0.3 * errors[False]


@pytest.mark.parametrize(
    "score",
    [
        pytest.param(
            score,
            marks=pytest.mark.skipif(
                score in (Score.TAYLOR, Score.FISHER) and find_spec("torch") is None,
                reason="needs greencc[finetune]",
            ),
        )
        for score in Score
    ],
)
def test_every_score_reaches_the_ratio(score: Score, data) -> None:  # type: ignore[no-untyped-def]
    model = redundant(copies=False)
    before = describe(model).macs
    Prune(ratio=0.3, score=score, measured=False).apply(model, context(model, data))
    after = describe(model).macs
    assert before is not None
    assert after is not None
    assert 0.5 * before <= after <= 0.7 * before


@pytest.mark.parametrize("rounds", [3, 10])
def test_rounds_end_at_the_same_ratio(rounds: int, data) -> None:  # type: ignore[no-untyped-def]
    """Ten rounds overshoot their shares: a step of channels is more than 4 % of the work."""
    model = redundant(copies=False)
    before, wanted = describe(model).macs, outputs(redundant(copies=False))
    outcome = Prune(ratio=0.4, rounds=rounds, measured=False).apply(model, context(model, data))
    after = describe(model).macs
    assert before is not None
    assert after is not None
    assert 0.5 * before <= after <= 0.62 * before
    assert relative(outputs(model), wanted) < 1.0
    assert sum("fewer multiply-accumulates" in finding.message for finding in outcome.findings) == 1


def test_a_cut_that_is_not_faster_is_declined_with_what_was_measured(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    before = describe(model).params
    time, seen = timer(1.01, 0.98, 1.04)
    outcome = Prune(ratio=0.3).apply(model, context(model, data, time=time))
    assert outcome.changed == 0
    assert describe(model).params == before
    assert seen[0][1] < seen[0][0] == before
    assert any("declined" in finding.message and "1.01x" in finding.message for finding in outcome.findings)


def test_a_cut_that_is_faster_stays(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    time, _ = timer(1.3, 1.2, 1.4)
    outcome = Prune(ratio=0.3).apply(model, context(model, data, time=time))
    assert outcome.changed
    assert any("1.30x" in finding.message for finding in outcome.findings)


def test_what_is_quantized_later_is_cut_and_timed_for_integers(data) -> None:  # type: ignore[no-untyped-def]
    """The pass before `quantize-int8` leaves blocks of the integer kernels, and says what was measured in INT8."""
    model, ctx = redundant(), context(redundant(), data)
    int8 = int8_support(
        CpuInfo("x86_64", "test", "test", frozenset({"avx2", "avx512_vnni"}), 1, virtualised=True)
    )
    assert int8 is not None
    capabilities = replace(ctx.capabilities, int8=replace(int8, channel_alignment=4))
    seen: list[list[str]] = []

    def time(models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        seen.extend([node.op_type for node in model.graph] for model in models)
        return Timing((2.0, 1.0), (Interval(1.4, 1.3, 1.5),))

    ctx = replace(ctx, capabilities=capabilities, time=time)
    found, records = Pipeline(ctx).run(model, [Prune(ratio=0.3), QuantizeInt8()])
    assert all("QuantizeLinear" in operators for operators in seen)
    assert len(seen) == 2
    assert any("1.40x" in item.message and "in INT8" in item.message for item in records[0].findings)
    weights = [node.inputs[1].shape for node in found.graph if node.op_type == "Conv"]
    assert weights[0][0] in (4, 8, 12)
    _, (record,) = Pipeline(ctx).run(model, [Prune(ratio=0.3)])
    assert not any("QuantizeLinear" in operators for operators in seen[2:])
    assert any("1.40x" in item.message and "in float" in item.message for item in record.findings)


def test_a_quantization_that_excludes_all_is_none(data) -> None:  # type: ignore[no-untyped-def]
    """Then the cut is that of a float model, and measured so."""
    model = redundant()
    time, _ = timer(1.3, 1.2, 1.4)
    ctx = context(model, data, time=time)
    int8 = int8_support(
        CpuInfo("x86_64", "test", "test", frozenset({"avx2", "avx512_vnni"}), 1, virtualised=True)
    )
    ctx = replace(ctx, capabilities=replace(ctx.capabilities, int8=int8))
    everything = tuple(str(node.name) for node in model.graph)
    cuts = []
    for later in ([QuantizeInt8(exclude=everything)], []):
        found, records = Pipeline(ctx).run(model, [Prune(ratio=0.3), *later])
        assert any("1.30x" in item.message and "in float" in item.message for item in records[0].findings)
        cuts.append([node.inputs[1].shape for node in found.graph if node.op_type == "Conv"])
    assert cuts[0] == cuts[1]


def test_coarse_steps_that_take_too_much_are_told(data, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Whole blocks of integer kernels are much of a small model; the warning says how to come closer."""
    monkeypatch.setitem(globals(), "WIDTH", 32)
    model = redundant()
    ctx = replace(context(model, data), arithmetic=Arithmetic.INT8)
    int8 = int8_support(
        CpuInfo("x86_64", "test", "test", frozenset({"avx2", "avx512_vnni"}), 1, virtualised=True)
    )
    ctx = replace(ctx, capabilities=replace(ctx.capabilities, int8=int8))

    def cut(align: int) -> tuple[float, list[str]]:
        found = model.clone()
        outcome = Prune(ratio=0.22, align=align, measured=False, repair=False).apply(found, ctx)
        work = [describe(one, {"n": 1}).macs or 0 for one in (model, found)]
        return 1 - work[1] / work[0], [item.message for item in outcome.findings if item.kind == "warning"]

    saved, (warning,) = cut(0)
    assert saved > 0.4
    assert f"{saved:.0%} of the multiply-accumulates were removed instead of 22%" in warning
    assert "steps of up to 16" in warning
    assert "align=8 follows" in warning
    closer, warnings = cut(8)
    assert closer < 1.25 * 0.22
    assert warnings == []


def test_without_data_nothing_is_repaired_and_that_is_said() -> None:
    model = redundant()
    outcome = Prune(score=Score.MAGNITUDE, measured=False).apply(model, context(model))
    assert outcome.changed
    assert any(finding.kind == "warning" and "repaired" in finding.message for finding in outcome.findings)


def test_a_model_that_gives_decisions_alone_is_pruned_and_repaired(data) -> None:  # type: ignore[no-untyped-def]
    wanted = outputs(redundant()).argmax(axis=1)
    model = decisions(redundant())
    outcome = Prune(ratio=0.4, exclude=("second",), measured=False).apply(model, context(model, data))
    assert outcome.changed == 1
    assert np.mean(outputs(model, name="class") == wanted) > 0.95


def test_a_score_that_needs_data_says_so() -> None:
    model = redundant()
    with pytest.raises(InputError, match="calibration"):
        Prune(measured=False).apply(model, context(model))


def test_a_model_with_nothing_to_cut_is_left_alone(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    outcome = Prune(exclude=("first", "second"), measured=False).apply(model, context(model, data))
    assert outcome.changed == 0
    assert all(finding.kind == "refused" for finding in outcome.findings)


def test_the_last_word_says_why_nothing_was_cut(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    outcome = Prune(limit=0.05, measured=False).apply(model, context(model, data))
    assert outcome.changed == 0
    assert "nothing was cut" in outcome.findings[-1].message


def test_a_name_that_does_not_exist_is_told(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    outcome = Prune(exclude=("frist",), measured=False).apply(model, context(model, data))
    assert any(finding.kind == "warning" and "frist" in finding.message for finding in outcome.findings)


def test_rewrites_that_are_not_allowed_are_not_applied(data) -> None:  # type: ignore[no-untyped-def]
    model = redundant()
    before = describe(model).params
    outcome = Prune(measured=False).apply(model, context(model, data, rewrites=RewriteLog(limit=0)))
    assert outcome.changed == 0
    assert describe(model).params == before


def test_in_a_pipeline_it_is_lossy_and_deterministic(data) -> None:  # type: ignore[no-untyped-def]
    results = []
    for _ in range(2):
        model = redundant()
        built, (record,) = Pipeline(context(model, data)).run(model, [Prune(ratio=0.3, measured=False)])
        assert record.error is not None
        assert not record.rolled_back
        results.append({name: value.const_value.numpy() for name, value in built.graph.initializers.items()})
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name])


@pytest.mark.parametrize(
    "options", [{"ratio": 0.0}, {"ratio": 1.0}, {"limit": 1.5}, {"align": -1}, {"rounds": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="prune"):
        Prune(**options)  # type: ignore[arg-type]
