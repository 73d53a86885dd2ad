"""Which passes a form is made of, what counts as converted, and where a runtime's nodes came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler import CompileOptions, Precision, compile_model
from greencc.compiler.counts import model_counts
from greencc.compiler.forms import FormBuilder, weight_only
from greencc.compiler.layers import Origins
from greencc.compiler.named import recipe_precision
from greencc.compiler.options import QuantizedFormat
from greencc.compiler.slices import make_slice
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import ensure_names
from greencc.core.passes import Context, Outcome, Pass
from greencc.core.report import Interval
from greencc.measure.latency import QuickComparison
from greencc.passes.float16 import ConvertFloat16, HalfType
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights

from .conftest import Bench


def gemm(folder: Path, width: int, batch: int | str = "n") -> Path:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((width, 4)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="only")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [weight],
    )
    path = folder / "gemm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.savez(folder / "data.npz", x=rng.standard_normal((64, width)).astype(np.float32))
    return path


@pytest.mark.parametrize("precision", [Precision.INT4_WEIGHTS, Precision.INT8_WEIGHTS])
def test_a_model_without_a_weight_worth_storing_is_refused(tmp_path: Path, precision: Precision) -> None:
    """Raising the opset, which 4 bits need, must not pass for a conversion."""
    path = gemm(tmp_path, 8)
    options = CompileOptions(calibration=tmp_path / "data.npz", precision=precision)
    with pytest.raises(InputError, match=r"could be built in int\d-weights.*1024 elements"):
        compile_model(path, options, output=tmp_path / "out.greencc")
    assert not (tmp_path / "out.greencc").exists()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), Precision.FP32),
        ((QuantizeInt8(),), Precision.INT8),
        ((QuantizeDynamic(), QuantizeWeights()), Precision.INT8_DYNAMIC),
        ((QuantizeWeights(),), Precision.INT8_WEIGHTS),
        ((QuantizeWeights(bits=4, block_size=32),), Precision.INT4_WEIGHTS),
        ((ConvertFloat16(),), Precision.FP16),
        ((ConvertFloat16(element=HalfType.BFLOAT16),), Precision.BF16),
    ],
)
def test_a_recipe_is_called_by_what_it_makes(steps: tuple, expected: Precision) -> None:
    assert recipe_precision(steps) is expected


def test_the_safer_weight_only_form_has_no_four_bit_convolutions() -> None:
    small, safe, safest = weight_only(Precision.INT4_WEIGHTS, calibrated=True)
    kept = [step for step in safe if isinstance(step, QuantizeWeights) and "Conv" in step.ops]
    assert [step.bits for step in kept] == [8]
    assert any(isinstance(step, QuantizeWeights) and step.bits == 4 and "Conv" in step.ops for step in small)
    assert all(step.bits == 8 for step in safest if isinstance(step, QuantizeWeights))
    assert len(weight_only(Precision.INT8_WEIGHTS, calibrated=False)) == 1


def test_a_recipe_and_a_format_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="format"):
        CompileOptions(recipe=Path("r.toml"), format=QuantizedFormat.QOPERATOR)


def test_scaled_products_are_found_under_the_name_that_fusion_gives_them() -> None:
    x = ir.Value(name="x")
    node = ir.node("MatMul", [x, x], name="/L.0/MatMul", outputs=[ir.Value(name="scores")])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 17}), ir_version=8)
    assert Origins(model).find("/L.0/MatMul/MatMulScaleFusion/") == "/L.0/MatMul"
    assert Origins(model).find("elsewhere/MatMulScaleFusion/") is None
    assert Origins(model).find("/L.0/MatMul_MatMulInteger") == "/L.0/MatMul"
    assert Origins(model).find("/L.0/MatMul_rescale") == "/L.0/MatMul"


def test_integer_operators_leave_no_constant_behind(bench: Bench) -> None:
    bench.session.options = CompileOptions(
        target="cpu:threads=1",
        calibration=bench.session.options.calibration,
        evaluation=bench.session.options.evaluation,
        precision=Precision.INT8,
        format=QuantizedFormat.QOPERATOR,
    )
    form = bench.builder.static("int8", (), QuantizeInt8())
    assert "QLinearConv" in {node.op_type for node in form.model.graph}
    unused = [
        name
        for name, value in form.model.graph.initializers.items()
        if not value.uses() and not value.is_graph_output()
    ]
    assert unused == []
    assert {node.op_type for node in form.qdq.graph} >= {"QuantizeLinear", "Conv"}


def test_inputs_of_different_magnitude_keep_their_scaling_before_int8(tmp_path: Path) -> None:
    """Folded into the weights, one step would have to serve features of 1 and of 1000."""
    path = gemm(tmp_path, 64)
    proto = onnx.load(path)
    spread = np.where(np.arange(64) % 2, 1000.0, 1.0).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(spread, "sd"))
    proto.graph.node.insert(0, helper.make_node("Div", ["x", "sd"], ["scaled"], name="normalize"))
    proto.graph.node[1].input[0] = "scaled"
    onnx.save(proto, path)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "calibration.npz", x=(spread * rng.standard_normal((64, 64))).astype(np.float32))
    np.savez(tmp_path / "eval.npz", x=(spread * rng.standard_normal((256, 64))).astype(np.float32))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = CompileOptions(
        target="cpu:threads=1",
        calibration=tmp_path / "calibration.npz",
        evaluation=tmp_path / "eval.npz",
        precision=Precision.INT8,
    )
    found = Bench(path, scratch, options)
    builder: FormBuilder = found.builder
    assert "Div" not in {node.op_type for node in builder.cleaned().model.graph}
    form = builder.static("int8", (), QuantizeInt8())
    assert "normalize" in {node.name for node in form.model.graph}
    engine = found.session.target.open(form.artifact)
    x = next(iter(found.splits.planning.batches(32))).feeds
    reference, quantized = found.baseline.run(x)["y"], engine.run(x)["y"]
    noise = float(np.square(reference - quantized).sum() / np.square(reference).sum())
    engine.close()
    found.baseline.close()
    assert noise < 1e-3


def test_a_slice_needs_a_whole_batch(tmp_path: Path) -> None:
    path = gemm(tmp_path, 8, batch=100)
    source = ir.load(path)
    ensure_names(source)
    from greencc.calibration import open_data
    from greencc.core.describe import input_specs
    from greencc.targets import CpuTarget

    engine = CpuTarget(threads=1).open(path)
    data = open_data(tmp_path / "data.npz", input_specs(source))
    with pytest.raises(InputError, match="no whole batch of 100"):
        make_slice(engine, data, 16)
    engine.close()


def test_packed_weights_count_as_what_they_hold(tmp_path: Path) -> None:
    """Four bits are no fewer parameters, and no fewer multiply-accumulates."""
    path = gemm(tmp_path, 512)
    bench = Bench(
        path,
        (tmp_path / "scratch"),
        CompileOptions(target="cpu:threads=1", calibration=tmp_path / "data.npz"),
    )
    (tmp_path / "scratch").mkdir()
    form = next(bench.builder.weights(Precision.INT4_WEIGHTS))
    assert "MatMulNBits" in {node.op_type for node in form.model.graph}
    assert model_counts(form.model) == model_counts(bench.source) == (512 * 4, 512 * 4)
    assert model_counts(None) == (None, None)
    bench.baseline.close()


@pytest.mark.parametrize(("passes", "arithmetic"), [("prune:0.3,quantize", "INT8"), ("prune:0.3", "float")])
def test_passes_before_a_quantization_measure_in_int8(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, passes: str, arithmetic: str
) -> None:
    """A list of passes is run in two parts; the first one knows the second."""

    def compare(engines: Sequence[Engine], feeds: Sequence[Feeds], **_: object) -> QuickComparison:
        for engine in engines:
            engine.run(feeds[0])
        return QuickComparison((2.0, 1.0), (Interval(1.4, 1.3, 1.5),), (1,), 1, (), clean=True)

    monkeypatch.setattr("greencc.compiler.forms.quick_compare", compare)
    form = bench.builder.passes(passes)
    (record,) = [record for record in form.records if record.name == "prune"]
    messages = " ".join(finding.message for finding in record.findings)
    assert f"1.40x as fast [1.30, 1.50] in {arithmetic}" in messages


@dataclass(frozen=True)
class AddTable(Pass):
    """Adds rows that are looked up, which are of no use."""

    name: ClassVar[str] = "add-table"
    summary: ClassVar[str] = "adds a table"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        arrays = {"table": np.ones((128, 16), np.float32), "row": np.array([3], np.int64)}
        values = [ir.Value(name=name, const_value=ir.tensor(array)) for name, array in arrays.items()]
        for value in values:
            model.graph.register_initializer(value)
        model.graph.append(ir.node("Gather", values, name="lookup"))
        return Outcome(1)


@pytest.mark.parametrize("prepare", [(), (AddTable(),)])
def test_the_passes_of_a_plan_are_told_as_they_are_run(bench: Bench, prepare: tuple[Pass, ...]) -> None:
    """Also where the preparation changes which rows are looked up."""
    form = bench.builder.planned("plan", prepare, QuantizeInt8(), ())
    assert bench.builder.passes_of(prepare, QuantizeInt8(), ()) == form.passes
