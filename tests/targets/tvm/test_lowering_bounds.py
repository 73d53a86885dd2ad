"""Nothing that a model is given, declares or computes makes generated code leave its memory, or change its types."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.targets._tvm import lowering
from greencc.targets._tvm.arguments import unfit
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.sizes import Known, Sizes
from greencc.targets.cpu import CpuTarget

from .lowered import compile_model, lowered, parsed

RNG = np.random.default_rng(3)
FAR = [10**11, -(10**11), 5, -6]
DATA = RNG.normal(size=(5, 4)).astype(np.float32)
UPDATES = RNG.normal(size=(2, 4)).astype(np.float32)

# Body, inputs, outputs, feeds with indices outside, and the same run with those that they stand for.
INDICES: dict[str, tuple[str, str, str, dict[str, Array], dict[str, Array]]] = {
    "Gather": (
        "y = Gather(x, i)",
        "float[N,4] x, int64[M] i",
        "float[M,4] y",
        {"x": DATA, "i": np.array([*FAR, -5, 3])},
        {"i": np.array([4, 0, 4, 0, 0, 3])},
    ),
    "Gather by numbers of 32 bits": (
        "y = Gather<axis=1>(x, i)",
        "float[N,4] x, int32 i",
        "float[N] y",
        {"x": DATA, "i": np.array(2**31 - 1, np.int32)},
        {"i": np.array(3, np.int32)},
    ),
    "GatherElements": (
        "y = GatherElements<axis=1>(x, i)",
        "float[N,4] x, int64[N,2] i",
        "float[N,2] y",
        {"x": DATA, "i": np.array([*FAR, -1, -2, 0, 3, -4, 1]).reshape(5, 2)},
        {"i": np.array([3, 0, 3, 0, 3, 2, 0, 3, 0, 1]).reshape(5, 2)},
    ),
    "GatherND": (
        "y = GatherND(x, i)",
        "float[5,4] x, int64[M,2] i",
        "float[M] y",
        {"x": DATA, "i": np.array([[10**11, -1], [-(10**11), 10**9], [-5, 2]])},
        {"i": np.array([[4, 3], [0, 3], [0, 2]])},
    ),
    "ScatterElements": (
        "y = ScatterElements(x, i, u)",
        "float[5,4] x, int64[2,4] i, float[2,4] u",
        "float[5,4] y",
        {"x": DATA, "i": np.array([[*FAR], [-4, 2, 1, -3]]), "u": UPDATES},
        {"i": np.array([[4, 0, 4, 0], [1, 2, 1, 2]])},
    ),
    "ScatterND": (
        "y = ScatterND(x, i, u)",
        "float[5,4] x, int64[2,1] i, float[2,4] u",
        "float[5,4] y",
        {"x": DATA, "i": np.array([[10**11], [-(10**9)]]), "u": UPDATES},
        {"i": np.array([[4], [0]])},
    ),
    "RoiAlign": (
        "y = RoiAlign<output_height=2, output_width=2>(x, r, i)",
        "float[N,2,6,6] x, float[K,4] r, int64[K] i",
        "float[K,2,2,2] y",
        {
            "x": RNG.normal(size=(2, 2, 6, 6)).astype(np.float32),
            "r": np.array([[0, 0, 4, 4], [1, 1, 5, 4]], np.float32),
            "i": np.array([10**6, 0]),
        },
        {"i": np.array([1, 0])},
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_stay_within_their_axes(name: str, machine: Machine, tmp_path: Path) -> None:
    body, inputs, outputs, feeds, within = INDICES[name]
    model = parsed(body, {}, inputs, outputs)
    compiled = compile_model(model, machine, tmp_path)
    reference = CpuTarget(threads=1).reference(model)
    expected = reference.run(feeds | within)["y"]
    np.testing.assert_allclose(compiled.run(feeds)["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compiled.run(feeds | within)["y"], expected, rtol=1e-5, atol=1e-6)
    compiled.engine.close()


REFUSED = {
    "a constant index": (
        "y = Gather<axis=1>(x, five)",
        "float[N,4] x",
        "float[N] y",
        r"\(Gather\) has index 5 for an axis of 4",
    ),
    "a constant pair of indices": (
        "y = ScatterND(x, pairs, u)",
        "float[5,4] x, float[2] u",
        "float[5,4] y",
        r"\(ScatterND\) has index -6 for an axis of 5",
    ),
    "more rows of indices than of data": (
        "y = GatherElements<axis=1>(x, i)",
        "float[N,4] x, int64[M,2] i",
        "float[M,2] y",
        r"\(GatherElements\): its operands' sizes \[n0_N, .* cannot be shown to fit",
    ),
    "fewer updates than indices": (
        "y = ScatterND(x, i, u)",
        "float[5,4] x, int64[K,1] i, float[L,4] u",
        "float[5,4] y",
        r"\(ScatterND\): its operands' sizes .* cannot be shown to fit",
    ),
    "an operator that nothing checks": (
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)",
        "float[1,1,2,2] x, int64[1,1,2,2] i",
        "float[1,1,4,4] y",
        r"\(MaxUnpool\) reads or writes where its data says",
    ),
    "a sum with a part of the batch": (
        "o = Slice(z, zero, one, zero) t = Conv(x, kernel) y = Add(t, o)",
        "float[N,3,5,5] x, float[N,4,5,5] z",
        "float[N,4,5,5] y, float[N,4,5,5] o",
        r"\(Add\): 'o' has .* which cannot be shown to be the \[n0_N, 5, 5, 4\]",
    ),
    "a product with a part of the batch": (
        "o = Slice(z, zero, one, zero) y = MatMul(x, o)",
        "float[N,2,3] x, float[N,3,4] z",
        "float[N,2,4] y, float[N,3,4] o",
        r"\(MatMul\): 'o' has .* which cannot be shown to be the \[n0_N, 3, 4\]",
    ),
    "a division by zero": (
        "s = Shape(x) t = Div(s, zero) y = Reshape(x, t)",
        "float[N,4] x",
        "float[A,B] y",
        r"\(Div\) divides by zero",
    ),
    "sizes that may be negative, divided": (
        "s = Shape(x) t = Sub(s, five_of) q = Div(t, two) y = Identity(q)",
        "float[N,4] x",
        "int64[2] y",
        r"\(Div\)",
    ),
    "a window that does not fit": (
        "y = Conv(x, large)",
        "float[N,3,2,2] x",
        "float[N,4,0,0] y",
        r"\(Conv\): its window of 3x3 does not fit into images of 2x2",
    ),
}
WEIGHTS: dict[str, Array] = {
    "five": np.array(5),
    "five_of": np.array([5]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "nine": np.array([2, 9]),
    "pairs": np.array([[0, 1], [-6, 1]]),
    "kernel": np.ones((4, 3, 1, 1), np.float32),
    "large": np.ones((4, 3, 3, 3), np.float32),
    "bytes": np.array([200, 3], np.uint8),
    "more": np.array([100, 3], np.uint8),
    "depth": np.array(4),
    "values": np.array([0, 1], np.float32),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_leave_its_memory_is_refused(name: str, machine: Machine) -> None:
    body, inputs, outputs, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        lowered(parsed(body, WEIGHTS, inputs, outputs), machine)


def test_an_entry_that_sizes_do_not_have() -> None:
    """ONNX's inference refuses such a model itself where it follows the sizes."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (int64 y) { s = Shape(x) y = Gather(s, i) }'

    def gathered(index: int) -> Known | None:
        shape, gather = ir.from_onnx_text(text, initializers=[ir.tensor(np.array(index), name="i")]).graph
        sizes = Sizes(lambda size: True)
        assert sizes.follow(shape, [3, 4])
        assert sizes.follow(gather, None)
        return sizes.of(gather.outputs[0])

    for index in (2, -3):
        with pytest.raises(InputError, match=rf"\(Gather\) has index {index} for an axis of 2"):
            gathered(index)
    known = gathered(-1)
    assert known is not None
    assert (known.entries.item(), known.dtype) == (4, np.int64)


def test_numbers_that_their_type_does_not_hold_are_no_sizes() -> None:
    body = "s = Shape(x) y = Cast<to=6>(s)"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (int32[2] y) {{ {body} }}'
    shape, cast = ir.from_onnx_text(text).graph
    sizes = Sizes(lambda size: True)
    assert sizes.follow(shape, [2**31, 4])
    assert not sizes.follow(cast, None)


TYPES = {
    "sizes of 32 bits": (
        "s = Shape(x) c = Cast<to=6>(s) y = Add(c, z) o = Identity(c)",
        "float[N,2] x, int32[2] z",
        "int32[2] y, int32[2] o",
        {"z": np.array([1, 2], np.int32)},
    ),
    "one size of 32 bits": (
        "s = Shape(x) c = Cast<to=6>(s) g = Gather(c, first) y = Mul(g, z)",
        "float[N,2] x, int32[N] z",
        "int32[N] y",
        {"z": np.array([1, 2, 5], np.int32)},
    ),
    "bytes wrap around": (
        "t = Add(bytes, more) u = Cast<to=1>(t) y = Add(u, x)",
        "float[N,2] x",
        "float[N,2] y",
        {},
    ),
    "division towards zero": (
        "s = Shape<start=1>(x) t = Sub(s, five_of) q = Div(t, two) f = Cast<to=1>(q) y = Add(f, x)",
        "float[N,2] x",
        "float[N,2] y",
        {},
    ),
    "a Reshape of sizes that keeps them": (
        "s = Shape(x) t = Reshape(s, zero) y = Reshape(x, t)",
        "float[N,2] x",
        "float[N,2] y",
        {},
    ),
    "the larger sizes": ("s = Shape(x) y = Max(s, nine)", "float[N,2] x", "int64[2] y", {}),
    "OneHot": (
        "y = OneHot(i, depth, values) z = Mul(y, y)",
        "int64[M] i",
        "float[M,4] y, float[M,4] z",
        {"i": np.array([-1, 3, 0])},
    ),
    "a sum with a mean": (
        "m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Add(m, z)",
        "float[N,3,5,5] x, float[N,3] z",
        "float[N,3] y",
        {
            "x": RNG.normal(size=(2, 3, 5, 5)).astype(np.float32),
            "z": RNG.normal(size=(2, 3)).astype(np.float32),
        },
    ),
}
WEIGHTS["first"] = np.array(0)


@pytest.mark.parametrize("name", TYPES)
def test_types_and_values_are_those_of_the_reference(name: str, machine: Machine, tmp_path: Path) -> None:
    body, inputs, outputs, more = TYPES[name]
    model = parsed(body, WEIGHTS, inputs, outputs)
    feeds = {"x": RNG.normal(size=(3, 2)).astype(np.float32)} | more
    feeds = {str(value.name): feeds[str(value.name)] for value in model.graph.inputs}
    compiled = compile_model(model, machine, tmp_path)
    found, expected = compiled.run(feeds), CpuTarget(threads=1).reference(model).run(feeds)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6)
    compiled.engine.close()


def test_whatever_goes_wrong_at_a_node_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    def broken(workload: object) -> object:
        raise KeyError("nothing\nthere")

    monkeypatch.setattr(lowering, "template_of", broken)
    model = parsed("y = Conv(x, kernel)", WEIGHTS, "float[N,3,5,5] x", "float[N,4,5,5] y")
    with pytest.raises(InputError, match=r"\(Conv\): cannot be compiled: 'nothing\\nthere'"):
        lowered(model, machine)


def test_arguments_of_kernels_are_compared_with_their_code() -> None:
    from tvm import relax, te, tirx

    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    size = tirx.Var("size", "int64")
    read = te.placeholder((size, 4), "float32", name="read")
    added = te.placeholder((size * 2, 4), "float32", name="added")
    total = te.compute((size, 4), lambda i, j: read[i, j] + added[i * 2, j], name="total")
    function = te.create_prim_func([read, added, total])
    assert isinstance(relax.ShapeExpr([n, 4]).values[0], tirx.Var)
    assert unfit(function, [[n, 4], [n + n, 4], [n, 4]]) is None
    assert "is for tensors with n * " in str(unfit(function, [[n, 4], [n, 4], [n, 4]]))
    assert "where m is given" in str(unfit(function, [[n, 4], [n * 2, 4], [m, 4]]))
    assert "reads 2 axes of a tensor that has 1" in str(unfit(function, [[n], [n * 2, 4], [n, 4]]))
    assert "takes 3 arguments, 2 are given" in str(unfit(function, [[n, 4], [n * 2, 4]]))
    assert "takes a tensor in the place of another argument" in str(unfit(function, [n, [n * 2, 4], [n, 4]]))


def test_nothing_is_written_beside_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    model = parsed("a = Relu(x) y = Det(a)", {}, "float[N,2,2] x", "float[N] y")
    with pytest.raises(InputError, match="Det"):
        lowered(model, Machine("x86_64-linux-gnu", "x86-64", frozenset()))
    gc.collect()
    assert capfd.readouterr() == ("", "")
