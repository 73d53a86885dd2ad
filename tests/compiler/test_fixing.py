"""Sizes that a target needs are taken from the data, and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from greencc.core.shapes import fix_inner_sizes
from greencc.targets._tvm.resolving import free_images, resolve_shapes

WEIGHTS = ir.tensor(np.ones((4, 3, 3, 3), np.float32), name="w")


def model(text: str, *tensors: ir.TensorProtocol) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 17]> {text}', initializers=list(tensors))


def test_images_of_free_size_are_found() -> None:
    free = model("g (float[N,3,H,W] x) => (float[N,4,P,Q] y) { y = Conv(x, w) }", WEIGHTS)
    assert free_images(free) == ("x",)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, w) }",
        "g (float[N,T,8] x) => (float[N,T,8] y) { y = Relu(x) }",
    ],
    ids=["fixed", "no image"],
)
def test_other_models_are_left_as_they_are(text: str) -> None:
    assert free_images(model(text, *([WEIGHTS] if "Conv" in text else []))) == ()


def test_all_sizes_but_the_batch_are_fixed() -> None:
    free = model(
        "g (float[N,3,H,W] x, float[N,W] z) => (float[N,4,P,Q] y, float[N,W] v) { y = Conv(x, w) v = Relu(z) }",
        WEIGHTS,
    )
    fixed = fix_inner_sizes(free, {"x": (1, 3, 8, 10), "z": (1, 10)})
    x, z = fixed.graph.inputs
    assert x.shape is not None
    assert z.shape is not None
    assert list(x.shape)[1:] == [3, 8, 10]
    assert list(z.shape)[1:] == [10]
    assert isinstance(x.shape[0], ir.SymbolicDim)
    (y, v) = fixed.graph.outputs
    assert y.shape is not None
    assert v.shape is not None
    assert list(y.shape)[1:] == [4, 6, 8]
    assert isinstance(y.shape[0], ir.SymbolicDim)
    assert list(v.shape)[1:] == [10]


def test_computed_sizes_are_written_down() -> None:
    text = (
        "g (float[N,4,6] x) => (float[N,24] y) "
        "{ s = Shape(x) n = Gather(s, zero) one = Unsqueeze(n, axes) c = Cast<to=6>(one) d = Cast<to=7>(c) "
        "t = Concat<axis=0>(d, rest) y = Reshape(x, t) }"
    )
    tensors = [
        ir.tensor(np.array(0, np.int64), name="zero"),
        ir.tensor(np.array([0], np.int64), name="axes"),
        ir.tensor(np.array([24], np.int64), name="rest"),
    ]
    found = model(text, *tensors)
    resolve_shapes(found)
    (reshape,) = (node for node in found.graph if node.op_type == "Reshape")
    sizes = reshape.inputs[1]
    assert sizes is not None
    assert sizes.const_value is not None
    # The batch stays what it is.
    assert sizes.const_value.numpy().tolist() == [0, 24]


def test_a_compile_says_what_it_fixed(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from greencc.compiler.compile import compile_model
    from greencc.compiler.options import CompileOptions, Effort, Precision
    from greencc.targets.tvm_cpu import TvmCpuTarget

    if (reason := TvmCpuTarget().missing()) is not None:
        pytest.skip(reason)
    free = model("g (float[N,3,H,W] x) => (float[N,4,P,Q] y) { y = Conv(x, w) }", WEIGHTS)
    onnx.save(ir.to_proto(free), tmp_path / "free.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(8, 3, 8, 10)).astype(np.float32))
    options = CompileOptions(
        target="tvm-cpu:threads=1",
        precision=Precision.FP32,
        evaluation=str(tmp_path / "data.npz"),
        effort=Effort.QUICK,
    )
    with compile_model(tmp_path / "free.onnx", options, output=tmp_path / "free.greencc") as bundle:
        assert any("x [N, 3, 8, 10]" in text for text in bundle.report.warnings)
        (shape,) = (spec.shape for spec in bundle.engine().inputs)
        assert shape is not None
        assert shape[1:] == (3, 8, 10)
