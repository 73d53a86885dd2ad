"""Whole float graphs in machine code, against ONNX Runtime; and what cannot be lowered, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.targets.cpu import CpuTarget

from .kernels.product_runs import MACHINES, runnable
from .lowered import compile_model, lowered, parsed

RNG = np.random.default_rng(7)


def float32(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def int64(*values: int) -> Array:
    return np.array(values, np.int64)


# Named by shape or by what they are; a graph takes those that it names.
WEIGHTS: dict[str, Array] = {
    "w8": float32(8, 3, 3, 3) / 5,
    "v8": float32(8, 8, 1, 1) / 3,
    "d8": float32(8, 1, 3, 3) / 3,
    "b8": float32(8),
    "m8": float32(8),
    "var8": np.abs(float32(8)) + 0.2,
    "slope": float32(8, 1, 1),
    "slope_one": float32(1),
    "c1811": float32(1, 8, 1, 1),
    "c811": float32(8, 1, 1),
    "c1166": float32(1, 1, 6, 6),
    "c6": float32(6),
    "c866": float32(8, 6, 6),
    "dense": float32(8, 5),
    "two": np.array(2.0, np.float32),
    "low": np.array(-0.4, np.float32),
    "high": np.array(0.7, np.float32),
    "half": np.array(0.5, np.float32),
    "zero": int64(0),
    "zero_scalar": np.array(0, np.int64),
    "one": int64(1),
    "two_sizes": int64(2),
    "minus": int64(-1),
    "rest": int64(-1, 6),
    "heads": int64(2, 4),
    "spatial": int64(2, 3),
    "table": float32(11, 4),
    "transposed": float32(3, 5, 2, 2),
    "row": float32(4, 3, 3),
    "unit": np.array(1.0, np.float32),
    "three": np.array(3, np.uint8),
}
IMAGE = "float[N,3,6,6] x"
CONV = "c = Conv<pads=[1,1,1,1]>(x, w8, b8) "


@dataclass(frozen=True)
class Graph:
    """A graph, in ONNX's text."""

    body: str
    outputs: str
    inputs: str = IMAGE
    opset: int = 17


GRAPHS = {
    # Layouts
    "NHWC in and out": Graph(
        "t = Transpose<perm=[0,3,1,2]>(x) c = Conv<pads=[1,1,1,1]>(t, w8, b8) r = Relu(c) "
        "d = Conv<group=8>(r, d8) y = Transpose<perm=[0,2,3,1]>(d)",
        "float[N,4,4,8] y",
        "float[N,6,6,3] x",
    ),
    "Concats": Graph(
        CONV + "d = Conv(c, v8) a = Concat<axis=1>(c, d) b = Concat<axis=-1>(d, c) e = Concat<axis=2>(c, c) "
        "f = Concat<axis=0>(c, d)",
        "float[N,16,6,6] a, float[N,8,6,12] b, float[N,8,12,6] e, float[M,8,6,6] f",
    ),
    "constants of all shapes": Graph(
        CONV
        + "a = Mul(c, c1811) b = Add(a, c811) d = Sub(c1166, b) e = Div(d, two) f = Mul(c6, e) g = Add(f, c866) "
        "y = Conv(g, v8)",
        "float[N,8,6,6] y, float[N,8,6,6] c, float[N,8,6,6] f",
    ),
    "PRelu": Graph(
        CONV + "a = PRelu(c, slope) b = PRelu(a, slope_one) y = Conv(b, v8) z = PRelu(x, slope_one)",
        "float[N,8,6,6] y, float[N,3,6,6] z",
    ),
    "bounds in the wrong order": Graph(
        CONV + "a = Clip(c, high, low) b = Clip(x, high, low)", "float[N,8,6,6] a, float[N,3,6,6] b"
    ),
    "bounds": Graph(
        CONV
        + "a = Clip(c, low, high) b = Clip(c, low) d = Clip(c, , high) e = Clip(c, l) f = Clip(x, low, high)",
        "float[N,8,6,6] a, float[N,8,6,6] b, float[N,8,6,6] d, float[N,8,6,6] e, float[N,3,6,6] f",
        f"{IMAGE}, float l",
    ),
    "element-wise on images": Graph(
        CONV + "a = Max(c, c1811, half) b = Min(a, c) d = Pow(b, two) e = Sqrt(d) f = Softplus(e) g = Elu(f) "
        "h = Max(x, half)",
        "float[N,8,6,6] g, float[N,3,6,6] h",
    ),
    "a sum of both layouts": Graph(
        CONV + "d = Conv(c, v8) s = Add(c, d) t = Add(s, z) y = Relu(t)",
        "float[N,8,6,6] y",
        f"{IMAGE}, float[N,8,6,6] z",
    ),
    # Sizes
    "sizes of a free batch": Graph(
        "s = Shape(x) n = Gather<axis=0>(s, zero_scalar) u = Unsqueeze(n, zero) t = Concat<axis=0>(u, rest) "
        "a = Reshape(x, t) k = Slice(s, zero, one) m = Mul(k, two_sizes) h = Div(m, two_sizes) j = Cast<to=7>(h) "
        "l = Concat<axis=0>(j, minus) b = Reshape(a, l) y = Relu(b)",
        "float[N,108] y, int64[4] s",
    ),
    "heads": Graph(
        "r = Reshape(x, sizes) a = Transpose<perm=[0,2,1,3]>(r) b = Transpose<perm=[0,2,3,1]>(r) p = MatMul(a, b) "
        "q = Softmax<axis=-1>(p) o = MatMul(q, a) t = Transpose<perm=[0,2,1,3]>(o) s = Shape<end=2>(t) "
        "all = Concat<axis=0>(s, minus) y = Reshape(t, all)",
        "float[N,5,8] y",
        "float[N,5,8] x",
    ),
    "a size as a number": Graph(
        "s = Shape(x) n = Gather(s, zero_scalar) f = Cast<to=1>(n) y = Div(x, f)", "float[N,3,6,6] y, int64 n"
    ),
    # Reductions and normalisations
    "means": Graph(
        CONV + "a = ReduceMean<axes=[2,3]>(c) b = ReduceMean<axes=[-1,-2], keepdims=0>(c) d = Gemm(b, dense) "
        "e = ReduceMean<axes=[1], keepdims=0>(c) f = ReduceMean<keepdims=0>(x)",
        "float[N,8,1,1] a, float[N,5] d, float[N,6,6] e, float f",
    ),
    "means, axes as an input": Graph(
        CONV + "a = ReduceMean(c, spatial) b = ReduceMean<keepdims=0>(c, spatial) s = Relu(b)",
        "float[N,8,1,1] a, float[N,8] s",
        opset=18,
    ),
    "sums of means": Graph(
        CONV + "a = ReduceMean<axes=[2,3], keepdims=0>(c) b = Add(a, z) d = Relu(b) e = Gemm(z, square) "
        "f = ReduceMean<axes=[2,3], keepdims=0>(x) y = Add(f, g) h = Flatten(y)",
        "float[N,8] d, float[N,8] e, float[N,3] h",
        f"{IMAGE}, float[N,8] z, float[N,3] g",
    ),
    "normalisations": Graph(
        CONV
        + "a = BatchNormalization(c, b8, m8, b8, var8) r = Relu(a) b = BatchNormalization(z, m8, b8, m8, var8) "
        "d = Conv(r, v8) e = Relu(d) f = BatchNormalization(e, b8, b8, m8, var8)",
        "float[N,8,6,6] f, float[N,8,6,6] b",
        f"{IMAGE}, float[N,8,6,6] z",
    ),
    "functions": Graph(
        CONV
        + "g = Sigmoid(c) s = Mul(c, g) d = Conv(s, v8) h = HardSigmoid<alpha=0.16666667>(d) m = Mul(h, d) "
        "e = Conv(m, v8) k = HardSwish(e) l = LeakyRelu<alpha=0.3>(x) f = Sigmoid(x) i = Mul(x, f)",
        "float[N,8,6,6] k, float[N,3,6,6] l, float[N,3,6,6] i",
    ),
    # Products and windows
    "products": Graph(
        "a = MatMul(x, dense) b = Relu(a) t = Transpose<perm=[0,2,1]>(b) p = MatMul(t, x) "
        "f = Flatten(x) g = Gemm<alpha=0.5, transA=1>(f, f)",
        "float[N,5,8] p, float[32,32] g",
        "float[N,4,8] x",
    ),
    "a bias per row": Graph("y = Gemm(x, dense, per_row)", "float[5,5] y", "float[5,8] x"),
    "windows": Graph(
        "a = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) b = AveragePool<kernel_shape=[3,2], "
        'auto_pad="SAME_UPPER", strides=[2,1]>(x) c = AveragePool<kernel_shape=[2,2], pads=[1,0,0,1], '
        "count_include_pad=1>(x) d = ConvTranspose<strides=[2,2]>(x, transposed) e = GlobalMaxPool(x)",
        "float[N,3,3,3] a, float[N,3,3,6] b, float[N,3,6,6] c, float[N,5,12,12] d, float[N,3,1,1] e",
    ),
    "one row": Graph("y = Conv<pads=[1,1], strides=[2]>(x, row)", "float[N,4,3] y", "float[N,3,6] x"),
    "numbers in a table": Graph(
        "e = Gather(table, x) y = LayerNormalization<axis=-1>(e, scale)", "float[N,3,4] y", "int64[N,3] x"
    ),
    # Inputs and outputs
    "outputs": Graph(
        CONV + "r = Relu(c) d = Conv(r, v8) e = Conv(d, v8) k = Identity(b8)",
        "float[N,8,6,6] r, float[N,8,6,6] d, float[N,3,6,6] x, float[8] b8, float[N,8,6,6] e, float[8] k",
        f"{IMAGE}, float[N] idle",
    ),
    "nothing to do": Graph("dead = Relu(x)", "float[N,3,6,6] x"),
    "quantized halves": Graph(
        "q = QuantizeLinear(x, unit, three) d = DequantizeLinear(q, unit, three) y = Relu(d)",
        "uint8[N,3,6,6] q, float[N,3,6,6] y",
    ),
    "a fixed batch": Graph(CONV + "y = Conv(c, v8)", "float[2,8,6,6] y", "float[2,3,6,6] x"),
}
WEIGHTS |= {"per_row": float32(5, 1), "square": float32(8, 8)}
WEIGHTS |= {"sizes": int64(0, 5, 2, 4), "scale": float32(4)}


def check(graph: Graph, folder: Path, batches: tuple[int, ...] = (5, 1)) -> None:
    """The same shapes, types and numbers as ONNX Runtime's."""
    check_model(parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs, opset=graph.opset), folder, batches)


def check_model(model: ir.Model, folder: Path, batches: tuple[int, ...]) -> None:
    compiled = compile_model(model, MACHINES[runnable()[0]], folder)
    reference = CpuTarget(threads=1).reference(model)
    for batch in batches:
        feeds = {spec.name: values(spec.shape, spec.dtype, batch) for spec in compiled.engine.inputs}
        got = compiled.run(feeds)
        wanted = reference.run(feeds)
        assert list(got) == list(wanted)
        for name, array in wanted.items():
            assert got[name].dtype == array.dtype, name
            assert got[name].shape == array.shape, name
            if array.dtype.kind == "f":
                np.testing.assert_allclose(got[name], array, rtol=2e-5, atol=2e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(got[name], array, err_msg=name)


def values(shape: tuple[int | str | None, ...], dtype: np.dtype, batch: int) -> Array:
    """Multiples of a half among them: they show how ties are rounded."""
    sizes = [size if isinstance(size, int) else batch for size in shape]
    if dtype.kind == "i":
        return RNG.integers(0, 11, sizes).astype(dtype)
    halves = RNG.integers(-12, 12, sizes) / 2
    return np.where(RNG.random(sizes) < 0.3, halves, RNG.normal(size=sizes)).astype(dtype)


@pytest.mark.parametrize("name", GRAPHS)
def test_same_as_the_reference(name: str, tmp_path: Path) -> None:
    check(GRAPHS[name], tmp_path, batches=(2,) if name == "a fixed batch" else (5, 1))


def test_empty_batches(tmp_path: Path) -> None:
    graph = Graph(
        CONV + "p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, dense)", "float[N,5] y, float[N,8,6,6] c"
    )
    check(graph, tmp_path, batches=(0, 1, 5, 0))


def test_weights_that_nothing_reads(tmp_path: Path) -> None:
    model = parsed(CONV + "y = Relu(c)", WEIGHTS, IMAGE, "float[N,8,6,6] y")
    model.graph.register_initializer(
        ir.Value(name="unread", const_value=ir.tensor(float32(64, 64)), type=ir.TensorType(ir.DataType.FLOAT))
    )
    check_model(model, tmp_path, (2,))
    assert (tmp_path / "weights.bin").stat().st_size < 4096


def test_names_in_any_script(tmp_path: Path) -> None:
    model = parsed(CONV + "y = Relu(c) z = Softplus(x)", WEIGHTS, IMAGE, "float[N,8,6,6] y, float[N,3,6,6] z")
    for node in model.graph:
        node.name = f"卷积é_{node.op_type}"
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = f"größe_{value.name}"
    model.graph.inputs[0].shape = ir.Shape(["größe", 3, 6, 6])
    check_model(model, tmp_path, (2,))


def test_layouts_that_cancel_out_move_nothing() -> None:
    graph = GRAPHS["NHWC in and out"]
    text = str(
        lowered(parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs), MACHINES["vnni512"]).module["main"]
    )
    assert "permute_dims" not in text
    graph = GRAPHS["Concats"]
    text = str(
        lowered(parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs), MACHINES["vnni512"]).module["main"]
    )
    # Once the input, and once each output.
    assert text.count("permute_dims(") == 5


def test_what_is_slow_is_said() -> None:
    graph = Graph("d = ConvTranspose<dilations=[2,2]>(x, transposed)", "float[N,5,8,8] d")
    found = lowered(parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs), MACHINES["vnni512"]).findings
    (finding,) = found
    assert finding.startswith("'ConvTranspose_d' (ConvTranspose) has no kernel of ours")


ERRORS: Mapping[str, tuple[Graph, str]] = {
    "another domain": (
        Graph("y = custom.Special(x)", "float[N,3,6,6] y"),
        r"\(custom::Special\) is an operator of 'custom', which has no lowering for TVM",
    ),
    "no such operator": (
        Graph("y = Det(x)", "float[N,3] y"),
        r"\(Det\): TVM has no operator Det",
    ),
    "recurrent": (
        Graph("y, h = GRU<hidden_size=2>(x, gates, again)", "float[5,1,N,2] y", "float[5,N,3] x"),
        r"\(GRU\): TVM has no operator GRU",
    ),
    "a shape that depends on data": (
        Graph("y = NonZero(x)", "int64[4,M] y"),
        r"\(NonZero\): its shape depends on data",
    ),
    "a shape given as data": (
        Graph("y = Reshape(x, s)", "float[A,B] y", f"{IMAGE}, int64[2] s"),
        r"\(Reshape\)",
    ),
    "sizes that nothing shows to be equal": (
        Graph("y = Add(x, z)", "float[N,K] y", "float[N,H] x, float[N,W] z"),
        r"\(Add\): its operands' sizes follow from free sizes of the inputs \(H, W\) and cannot be shown to fit",
    ),
    "a choice": (
        Graph(
            "y = If (b) <then_branch = t () => (float[N,3,6,6] p) { p = Relu(x) }, "
            "else_branch = e () => (float[N,3,6,6] q) { q = Neg(x) }>",
            "float[N,3,6,6] y",
            f"{IMAGE}, bool b",
        ),
        r"\(If\) chooses what is computed while the model runs",
    ),
    "no rank": (Graph("y = Relu(x)", "float y", "float x"), "has no rank"),
}
WEIGHTS |= {"gates": float32(1, 6, 3), "again": float32(1, 6, 2)}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_lowered_is_named_with_its_reason(name: str) -> None:
    graph, message = ERRORS[name]
    model = parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs)
    if name == "no rank":
        model.graph.inputs[0].shape = None
    with pytest.raises(InputError, match=message) as caught:
        lowered(model, MACHINES["vnni512"])
    assert caught.value.hint


def test_the_model_is_left_as_it_is() -> None:
    graph = GRAPHS["sizes of a free batch"]
    model = parsed(graph.body, WEIGHTS, graph.inputs, graph.outputs)
    before = ir.to_proto(model)
    lowered(model, MACHINES["vnni512"])
    assert ir.to_proto(model) == before
