"""`exclude` holds for what a node has become, in every pass that has it and meets weighted layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from greencc.calibration import synthetic
from greencc.core.describe import input_specs
from greencc.core.graph import ensure_names
from greencc.core.machine import CpuInfo
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.passes._exclude import came_from, covered, is_excluded, origins
from greencc.passes._scores import Score
from greencc.passes.decompose import Decompose
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.prune import Prune
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.sparsify import Sparsify
from greencc.passes.split_outlier_channels import SplitOutlierChannels
from greencc.targets import CpuTarget
from greencc.targets._cpu_capabilities import int8_support

TARGET = CpuTarget(threads=1)
VNNI = int8_support(
    CpuInfo("x86_64", "test", "test", frozenset({"avx2", "avx512_vnni"}), 1, virtualised=True)
)


def products() -> ir.Model:
    """Two products that came from a layer `old`, which is no longer there."""
    rng = np.random.default_rng(0)
    text = "g (float[2,64] x) => (float[2,64] y) { a = MatMul(x, w0)\n b = Relu(a)\n y = MatMul(b, w1) }"
    graph = onnx.parser.parse_graph(text)
    for name in ("w0", "w1"):
        values = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 64))
        # One channel far from the others is worth splitting.
        values[0] *= 50
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    ensure_names(model)
    infer_shapes(model)
    for node in model.graph:
        if node.op_type == "MatMul":
            came_from(node, [ir.node("MatMul", [None, None], name="old")])
    return model


@pytest.mark.parametrize(
    "step",
    [
        Decompose(min_elements=16, measured=False),
        ConvertFloat16(),
        Prune(measured=False, score=Score.MAGNITUDE, repair=False),
        QuantizeDynamic(min_elements=16),
        QuantizeInt8(),
        QuantizeWeights(min_elements=16),
        Sparsify(),
        SplitOutlierChannels(worth=0.0),
    ],
    ids=lambda step: step.name,
)
def test_passes_leave_what_came_from_an_excluded_node(step: Pass) -> None:
    model = products()
    ctx = Context(
        replace(TARGET.capabilities(), int8=VNNI),
        TARGET.reference,
        [{"x": np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)}],
        calibration=synthetic(input_specs(model), 8),
    )
    _, (done,) = Pipeline(ctx).run(model, [step])
    assert done.changed, "without the option there is something to do"
    found, (record,) = Pipeline(ctx).run(model, [replace(step, exclude=("old", "nowhere"))])  # type: ignore[call-arg]
    assert not record.changed
    assert [node.op_type for node in found.graph] == ["MatMul", "Relu", "MatMul"]
    assert not any("'old'" in finding.message for finding in record.findings if finding.kind == "warning")


def test_origins_are_handed_on() -> None:
    first, second = (ir.node("Relu", [None], name=name) for name in ("first", "second"))
    came_from(second, [first])
    both = ir.node("Relu", [None], name="both")
    came_from(both, [second, first])
    assert origins(first) == ()
    assert origins(both) == ("second", "first")
    assert is_excluded(both, {"first"})
    assert not is_excluded(first, {"both"})
    assert covered(products(), ("old",)) >= {"old"}
