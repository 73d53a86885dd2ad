"""Passes that measure see models in the arithmetic of the passes to come, and parts as they run inside one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.calibration import synthetic
from greencc.core.capabilities import Arithmetic
from greencc.core.data import Feeds
from greencc.core.describe import input_specs
from greencc.core.engine import Timing
from greencc.core.graph import ensure_names
from greencc.core.inside import inside
from greencc.core.machine import CpuInfo
from greencc.core.model import check_model
from greencc.core.passes import Context, Outcome, Pass
from greencc.core.pipeline import Pipeline
from greencc.core.rehearsal import rehearsed, settled
from greencc.core.report import Interval
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import Bias, QuantizeInt8, RangeMethod, Rounding
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.upgrade_opset import UpgradeOpset
from greencc.targets import CpuTarget
from greencc.targets._cpu_capabilities import int8_support

TARGET = CpuTarget(threads=1)
# Of a machine with VNNI, whatever this one has.
VNNI = CpuInfo("x86_64", "test", "test", frozenset({"avx2", "avx512f", "avx512_vnni"}), 1, virtualised=True)
CAPABILITIES = replace(TARGET.capabilities(), int8=int8_support(VNNI), channel_alignment=8)
THOROUGH = QuantizeInt8(
    method=RangeMethod.ENTROPY, rounding=Rounding.ADAROUND, bias=Bias.EMPIRICAL, exclude=("a",)
)


def convolutions(*kernels: int, batch: int | str = "n", last: str = "") -> ir.Model:
    """Convolutions one after another, 8 channels each; `last` ends with that operator."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index, kernel in enumerate(kernels):
        array = rng.standard_normal((8, 8, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        result = f"c{index}" if index + 1 < len(kernels) or last else "y"
        nodes.append(
            helper.make_node("Conv", [value, f"w{index}"], [result], f"conv{index}", pads=[kernel // 2] * 4)
        )
        value = result
    if last:
        nodes.append(helper.make_node(last, [value], ["y"], "last"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, 6, 6])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    ensure_names(model)
    return model


def images(batch: int = 1) -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((batch, 8, 6, 6)).astype(np.float32)} for _ in range(2)]


@dataclass
class Clock:
    """A timer that keeps what it is given."""

    models: list[ir.Model] = field(default_factory=list)
    feeds: list[Feeds] = field(default_factory=list)

    def __call__(self, models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        self.models, self.feeds = list(models), list(feeds)
        return Timing((1.0,) * len(models), (Interval(1.5, 1.4, 1.6),) * (len(models) - 1))


def context(clock: Clock | None = None) -> Context:
    return Context(CAPABILITIES, TARGET.reference, images(), time=clock)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_what_comes_later_decides_the_arithmetic() -> None:
    ctx = context(Clock())
    assert rehearsed(ctx, ()) is ctx
    assert rehearsed(ctx, (QuantizeWeights(), UpgradeOpset())) is ctx
    assert rehearsed(ctx, (UpgradeOpset(), THOROUGH, ConvertQOperator())).arithmetic is Arithmetic.INT8
    assert rehearsed(ctx, (QuantizeDynamic(),)).arithmetic is Arithmetic.DYNAMIC_INT8


def test_a_target_without_integer_kernels_measures_floats() -> None:
    ctx = replace(context(Clock()), capabilities=replace(CAPABILITIES, int8=None))
    assert rehearsed(ctx, (THOROUGH, QuantizeDynamic())) is ctx


def test_without_a_timer_the_arithmetic_is_known_all_the_same() -> None:
    found = rehearsed(context(), (QuantizeInt8(),))
    assert (found.arithmetic, found.time, found.time_inside) == (Arithmetic.INT8, None, None)


def test_alignment_is_that_of_the_arithmetic() -> None:
    assert CAPABILITIES.alignment(Arithmetic.FLOAT) == 8
    assert CAPABILITIES.alignment(Arithmetic.INT8) == CAPABILITIES.alignment(Arithmetic.DYNAMIC_INT8) == 16
    assert CAPABILITIES.int8 is not None
    unknown = replace(CAPABILITIES, int8=replace(CAPABILITIES.int8, channel_alignment=0))
    assert unknown.alignment(Arithmetic.INT8) == 8
    assert replace(CAPABILITIES, int8=None).alignment(Arithmetic.INT8) == 8


def test_the_rehearsal_of_a_quantization_is_quick_and_in_the_same_places() -> None:
    assert THOROUGH.rehearsal(CAPABILITIES) == QuantizeInt8(exclude=("a",))


@pytest.mark.parametrize("batch", [1, 4])
def test_models_are_timed_quantized(batch: int) -> None:
    clock = Clock()
    models = [convolutions(3, batch=batch), convolutions(1, 3, batch=batch)]
    before = [operators(model) for model in models]
    ctx = rehearsed(context(clock), (THOROUGH,))
    assert ctx.time is not None
    timing = ctx.time(models, images(batch))
    assert timing.ratios[0].value == 1.5
    assert [operators(model) for model in models] == before
    for model, feeds in zip(clock.models, (images(batch),) * 2, strict=True):
        assert operators(model)[0] == "QuantizeLinear"
        check_model(model)
        engine = TARGET.reference(model)
        assert engine.run(feeds[0])["y"].dtype == np.float32
        engine.close()
    assert all(
        np.array_equal(one["x"], two["x"]) for one, two in zip(clock.feeds, images(batch), strict=True)
    )


@pytest.mark.parametrize("later", [(QuantizeInt8(),), (QuantizeInt8(), ConvertQOperator())])
def test_parts_get_and_give_integers(later: tuple[Pass, ...]) -> None:
    clock = Clock()
    models = [convolutions(3), convolutions(1, 3)]
    ctx = rehearsed(context(clock), later)
    assert ctx.time is not None
    assert ctx.time_inside is not None
    ctx.time(models, images())
    whole = clock.models
    ctx.time_inside(models, images())
    for model, full in zip(clock.models, whole, strict=True):
        check_model(model)
        assert model.graph.inputs[0].dtype is model.graph.outputs[0].dtype is ir.DataType.UINT8
        assert len(model.graph) == len(full.graph) - 2
        # The same integers as with the conversions, which the outputs of the whole are multiples of.
        part, alone = TARGET.reference(model), TARGET.reference(full)
        integers = next(iter(part.run(clock.feeds[0]).values())).astype(np.float64)
        floats = next(iter(alone.run(images()[0]).values())).astype(np.float64)
        part.close()
        alone.close()
        scale = np.ptp(floats) / np.ptp(integers)
        zero = integers.flat[0] - floats.flat[0] / scale
        assert np.abs((integers - zero) * scale - floats).max() < 1e-3 * np.ptp(floats)


def test_conversions_that_not_all_parts_have_stay() -> None:
    clock = Clock()
    ctx = rehearsed(context(clock), (QuantizeInt8(exclude=("last",)),))
    assert ctx.time_inside is not None
    ctx.time_inside([convolutions(3), convolutions(3, last="Tanh")], images())
    inputs = [model.graph.inputs[0].dtype for model in clock.models]
    outputs = [model.graph.outputs[0].dtype for model in clock.models]
    assert inputs == [ir.DataType.UINT8] * 2
    assert outputs == [ir.DataType.FLOAT] * 2


def test_floats_stay_floats() -> None:
    models = [convolutions(3), convolutions(1)]
    feeds = inside(models, images())
    assert [operators(model) for model in models] == [["Conv"], ["Conv"]]
    assert np.array_equal(feeds[0]["x"], images()[0]["x"])


@dataclass(frozen=True)
class Probe(Pass):
    """Keeps the context it gets (test only)."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "look at the context"
    seen: ClassVar[list[Context]] = []

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        self.seen.append(ctx)
        return Outcome()


@pytest.fixture
def seen() -> Iterator[list[Context]]:
    Probe.seen.clear()
    yield Probe.seen
    Probe.seen.clear()


def test_a_pipeline_tells_every_pass_what_comes_after_it(seen: list[Context]) -> None:
    model = convolutions(3)
    clock = Clock()
    ctx = replace(context(clock), calibration=synthetic(input_specs(model), 4))
    Pipeline(ctx).run(model, [Probe(), QuantizeInt8(), Probe()])
    assert [one.arithmetic for one in seen] == [Arithmetic.INT8, Arithmetic.FLOAT]
    assert seen[1].time is clock
    Pipeline(ctx).run(model, [Probe()], later=[QuantizeInt8()])
    assert seen[-1].arithmetic is Arithmetic.INT8
    Pipeline(ctx).run(model, [Probe()])
    assert seen[-1].arithmetic is Arithmetic.FLOAT


@pytest.mark.parametrize(
    ("exclude", "arithmetic"),
    [((), Arithmetic.INT8), (("conv0",), Arithmetic.INT8), (("conv0", "conv1"), Arithmetic.FLOAT)],
)
def test_a_quantization_that_leaves_all_in_float_counts_as_none(
    exclude: tuple[str, ...], arithmetic: Arithmetic
) -> None:
    clock = Clock()
    models = [convolutions(3, 1), convolutions(1, 1)]
    ctx = rehearsed(context(clock), (QuantizeInt8(exclude=exclude),))
    assert settled(ctx, models[0]).arithmetic is arithmetic
    assert ctx.spared == frozenset(exclude)
    assert ctx.time is not None
    timing = ctx.time(models, images())
    assert timing.arithmetic == (arithmetic,) * 2
    assert timing.computed_in(1) is arithmetic
    assert any(name == "QuantizeLinear" for name in operators(clock.models[0])) is (
        arithmetic is Arithmetic.INT8
    )


def test_without_passes_to_come_or_samples_there_is_nothing_to_rehearse() -> None:
    ctx = context(Clock())
    assert settled(ctx, convolutions(3)) is ctx
    blind = rehearsed(replace(ctx, samples=[]), (QuantizeInt8(),))
    assert settled(blind, convolutions(3)) is blind
    assert Timing((1.0, 1.0), (Interval(1.0, 1.0, 1.0),)).computed_in(1) is Arithmetic.FLOAT
