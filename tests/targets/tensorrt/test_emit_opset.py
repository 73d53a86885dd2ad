"""Opsets up and down: what an older one has no place for is rewritten, or refused by name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError
from greencc.core.graph import opset_of
from greencc.targets._tensorrt.emit import emit

from .emitting import distance, emitted, feeds_of, machine, parse, unfused

X = "g (float[2, 4, 6, 6] x) => (float[A, B, C, D] y)"
DOWN = {
    "relu, which took more types": f"{X} {{ y = Relu (x) }}",
    "shape and reshape": f"{X} {{ s = Shape (x) y = Reshape (x, s) }}",
    "reduction axes": f"{X} {{ y = ReduceMean <keepdims=1> (x, axes) }}",
    "reduction of all": f"{X} {{ y0 = ReduceMax <keepdims=1> (x) y = Mul (y0, x) }}",
    "equal parts": f"{X} {{ y, z = Split <axis=1, num_outputs=2> (x) }}",
    "a smaller last part": f"{X} {{ y, z, w = Split <axis=2, num_outputs=3> (x) }}",
    "pads of some axes": f"{X} {{ y = Pad (x, pads, , axes) }}",
    "a grid": f'{X} {{ g0 = Slice (x, zero, two, three) y = GridSample <mode="linear"> (x, g0) }}',
    "a resize": f'{X} {{ y = Resize <mode="nearest"> (x, , scales) }}',
    "batch normalization": f"{X} {{ y = BatchNormalization (x, c, c, c, c) }}",
    "pools": f"{X} {{ a = AveragePool <kernel_shape=[2,2]> (x) y = MaxPool <kernel_shape=[2,2]> (a) }}",
    "a cast": f"{X} {{ i = Cast <to=7> (x) y = Cast <to=1> (i) }}",
}
CONSTANTS = {
    "axes": np.array([2, 3]),
    "pads": np.array([1, 0, 2, 1]),
    "zero": np.array([0]),
    "two": np.array([2]),
    "three": np.array([3]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "c": np.full(4, 0.5, np.float32),
}


def make(text: str, opset: int) -> ir.Model:
    used = {name: array for name, array in CONSTANTS.items() if f"{name})" in text or f"{name}," in text}
    return parse(text, opset, **used)


@pytest.mark.parametrize("version", ["8.2", "8.6"])
@pytest.mark.parametrize("case", DOWN)
def test_lowered_graphs_compute_the_same(case: str, version: str) -> None:
    model = make(DOWN[case], 20)
    if case == "a grid" and version == "8.2":
        with pytest.raises(InputError, match=r"GridSample.* did not exist at opset 13"):
            emit(model, machine(version))
        return
    result = emitted(model, machine(version))
    assert opset_of(result) == (13 if version == "8.2" else 17)
    feeds = feeds_of(model)
    assert distance(unfused(model, feeds), unfused(result, feeds)) < 1e-6


@pytest.mark.parametrize(
    ("text", "opset", "message"),
    [
        (f"{X} {{ y = Resize <antialias=1, mode=\"linear\"> (x, , scales) }}", 18, "has no attribute 'antialias'"),
        (f"{X} {{ y = AveragePool <kernel_shape=[3,3], strides=[2,2], dilations=[2,2]> (x) }}", 19, "'dilations'"),
        (
            f"{X} {{ y = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1> (x) }}",
            19,
            "divides windows",
        ),
        (f"{X} {{ m = ReduceMax (x) k = Cast <to=7> (m) a = Reshape (k, one) y = ReduceMean (x, a) }}", 18, "computed axes"),
        ("g (float[2, N] x) => (float[2, A] y) { y, z = Split <axis=1, num_outputs=2> (x) }", 18, "unknown size"),
        (f"{X} {{ y = DFT (x) }}", 20, "DFT"),
    ],
)  # fmt: skip
def test_what_cannot_be_lowered_is_named(text: str, opset: int, message: str) -> None:
    weights = {"one": np.array([1])} if "one" in text else {}
    weights |= {"scales": CONSTANTS["scales"]} if "scales" in text else {}
    if "DFT" in text:
        text = "g (float[1, 8, 2] x) => (float[1, 8, 2] y) { y = DFT (x) }"
    with pytest.raises(InputError, match=message):
        emit(parse(text, opset, **weights), machine("8.2"))


UP = {
    "clip bounds of attributes": (8, f"{X} {{ y = Clip <min=-0.5, max=0.5> (x) }}"),
    "softmax over the rest": (11, f"{X} {{ y = Softmax <axis=1> (x) }}"),
    "upsample": (9, f'{X} {{ y = Upsample <mode="nearest"> (x, scales) }}'),
    "squeeze": (11, f"{X} {{ u = Unsqueeze <axes=[0]> (x) y = Squeeze <axes=[0]> (u) }}"),
    "reductions": (11, f"{X} {{ y = ReduceMean <axes=[2, 3]> (x) }}"),
    "slices": (8, f"{X} {{ y = Slice <starts=[1], ends=[3], axes=[1]> (x) }}"),
}


@pytest.mark.parametrize("version", ["8.2", "10.3", "11.4"])
@pytest.mark.parametrize("case", UP)
def test_raised_graphs_compute_the_same(case: str, version: str) -> None:
    opset, text = UP[case]
    model = make(text, opset)
    result = emitted(model, machine(version))
    assert opset_of(result) == (19 if version == "11.4" else 13)
    feeds = feeds_of(model)
    assert distance(unfused(model, feeds), unfused(result, feeds)) < 1e-6


def test_reductions_of_nothing_have_no_older_form() -> None:
    text = f"{X} {{ y = ReduceMean <noop_with_empty_axes=1> (x) }}"
    with pytest.raises(InputError, match="reduces nothing"):
        emit(parse(text, 18), machine("8.6"))
