"""Which graphs are proven to treat every sample by itself: what mixes samples never is."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.core.data import Array
from greencc.targets._tvm.resolving import resolve_shapes
from greencc.targets._tvm.samplewise import is_samplewise

from .lowered import parsed

_RNG = np.random.default_rng(0)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


WEIGHTS: dict[str, Array] = {
    "kernel": _RNG.normal(size=(4, 4, 3, 3)).astype(np.float32),
    "matrix": _RNG.normal(size=(6, 5)).astype(np.float32),
    "square": _RNG.normal(size=(4, 4)).astype(np.float32),
    "stack": _RNG.normal(size=(2, 6, 5)).astype(np.float32),
    "one_stack": _RNG.normal(size=(1, 4, 6, 5)).astype(np.float32),
    "channels": _RNG.normal(size=4).astype(np.float32),
    "one": _RNG.normal(size=(1, 4, 1, 1)).astype(np.float32),
    "two": _RNG.normal(size=(2, 4, 6, 6)).astype(np.float32),
    "table": _RNG.normal(size=(9, 4)).astype(np.float32),
    "scale": np.float32(0.1),
    "scales4": np.full(4, 0.1, np.float32),
    "zero4": np.zeros(4, np.uint8),
    "zero": np.uint8(3),
    "a0": _ints(0),
    "a1": _ints(1),
    "am4": _ints(-4),
    "a23": _ints(2, 3),
    "index": _ints(0, 2),
    "keep": _ints(0, 4, 36),
    "flat": _ints(-1, 144),
    "halved": _ints(-1, 72),
    "unknown": _ints(4, -1),
    "zeros4": np.zeros(4, np.int64),
    "pad_rows": _ints(0, 0, 1, 1, 0, 0, 1, 1),
    "pad_batch": _ints(1, 0, 0, 0, 0, 0, 0, 0),
    "larger": np.array([1, 1, 2, 2], np.float32),
    "more": np.array([2, 1, 1, 1], np.float32),
    "empty": np.zeros(0, np.float32),
}
IMAGE, VECTOR, TOKENS = "float[N,4,6,6] x", "float[N,6] x", "int64[N,3] x"
Graph = tuple[str, str, str]

PROVEN: dict[str, Graph] = {
    "conv": (IMAGE, "y = Conv<pads=[1,1,1,1]>(x, kernel)", ""),
    "pool": (IMAGE, "y = MaxPool<kernel_shape=[2,2]>(x)", ""),
    "mean of all": (IMAGE, "a = GlobalAveragePool(x) y = Flatten(a)", ""),
    "unary": (IMAGE, "a = Sigmoid(x) y = Clip(a, scale)", ""),
    "residual": (IMAGE, "a = Relu(x) b = Add(a, x) y = Mul(b, one)", ""),
    "constant behind the batch": (IMAGE, "a = Transpose<perm=[0,2,3,1]>(x) y = Add(channels, a)", ""),
    "quantized": (
        IMAGE,
        "q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero) y = Relu(d)",
        "",
    ),
    "quantized channels": (IMAGE, "q = QuantizeLinear<axis=1>(x, scales4, zero4) y = Cast<to=1>(q)", ""),
    "gemm": (VECTOR, "y = Gemm(x, matrix)", ""),
    "matmul": (VECTOR, "y = MatMul(x, matrix)", ""),
    "matmul of stacks": (IMAGE, "y = MatMul(x, one_stack)", ""),
    "attention": (IMAGE, "t = Transpose<perm=[0,1,3,2]>(x) s = MatMul(x, t) y = Softmax<axis=-1>(s)", ""),
    "softmax": (VECTOR, "y = LogSoftmax(x)", ""),
    "layer normalization": (IMAGE, "y = LayerNormalization<axis=1>(x, scale)", ""),
    "batch normalization": (
        IMAGE,
        "y = BatchNormalization(x, channels, channels, channels, channels)",
        "",
    ),
    "concat": (IMAGE, "a = Relu(x) y = Concat<axis=1>(x, a)", ""),
    "split": (IMAGE, "y, z = Split<axis=1>(x)", ""),
    "reduce": (IMAGE, "y = ReduceMean<axes=[2,3]>(x)", ""),
    "slice": (IMAGE, "y = Slice(x, a0, a1, a1)", ""),
    "gather": (IMAGE, "y = Gather<axis=1>(x, index)", ""),
    "rows of a table": (TOKENS, "y = Gather(table, x)", ""),
    "pad": (IMAGE, "y = Pad(x, pad_rows)", ""),
    "reshape": (IMAGE, "y = Reshape(x, keep)", ""),
    "reshape by size": (IMAGE, "y = Reshape(x, flat)", ""),
    "reshape by shape": (
        IMAGE,
        "s = Shape(x) b = Slice(s, a0, a1) m = Constant<value_ints=[-1]>() w = Concat<axis=0>(b, m)"
        " y = Reshape(x, w)",
        "",
    ),
    "squeeze": (VECTOR, "a = Unsqueeze(x, a1) b = Relu(a) y = Squeeze(b, a1)", ""),
    "resize": (IMAGE, "y = Resize(x, empty, larger)", ""),
    "two inputs": (IMAGE, "y = Add(x, second)", "float[N,4,6,6] second"),
    "unused mixing": (IMAGE, "m = ReduceMean(x) y = Relu(x)", ""),
}

NOT_PROVEN: dict[str, Graph] = {
    "softmax over the batch": (VECTOR, "y = Softmax<axis=0>(x)", ""),
    "softmax over the batch from behind": (VECTOR, "y = Softmax<axis=-2>(x)", ""),
    "batch folded into rows": (IMAGE, "y = Reshape(x, halved)", ""),
    "batch in another axis": (IMAGE, "y = Reshape(x, unknown)", ""),
    "mean over the batch": (IMAGE, "m = ReduceMean<axes=[0]>(x) y = Sub(x, m)", ""),
    "mean over the batch from behind": (IMAGE, "m = ReduceMean<axes=[-4]>(x) y = Sub(x, m)", ""),
    "mean over all": (IMAGE, "m = ReduceMean(x) y = Sub(x, m)", ""),
    "products of samples": (VECTOR, "t = Transpose<perm=[1,0]>(x) s = MatMul(x, t) y = MatMul(s, x)", ""),
    "matmul along the batch": (VECTOR, "y = MatMul(x, second)", "float[N,N] second"),
    "concat of samples": (IMAGE, "y = Concat<axis=0>(x, x)", ""),
    "split of samples": (IMAGE, "y, z = Split(x)", ""),
    "constant per sample": (IMAGE, "y = Add(x, two)", ""),
    "stack of matrices": (VECTOR, "y = MatMul(x, stack)", ""),
    "operands of different ranks": (
        "float[N,6] x",
        "y = Add(x, second)",
        "float[N,4,6] second",
    ),
    "gemm transposed": ("float[N,4] x", "y = Gemm<transA=1>(x, second)", "float[N,4] second"),
    "transpose": (VECTOR, "y = Transpose<perm=[1,0]>(x)", ""),
    "transpose of all axes": (VECTOR, "y = Transpose(x)", ""),
    "slice of samples": (IMAGE, "y = Slice(x, a0, a1, a0)", ""),
    "slice of the first axes": (IMAGE, "y = Slice(x, a0, a1)", ""),
    "gather of samples": (IMAGE, "y = Gather(x, index)", ""),
    "pad of samples": (IMAGE, "y = Pad(x, pad_batch)", ""),
    "squeeze of any": (VECTOR, "a = Unsqueeze(x, a1) y = Squeeze(a)", ""),
    "unsqueeze in front": (VECTOR, "y = Unsqueeze(x, a0)", ""),
    "flatten all": (IMAGE, "y = Flatten<axis=0>(x)", ""),
    "flatten two": (IMAGE, "y = Flatten<axis=2>(x)", ""),
    "resize of samples": (IMAGE, "y = Resize(x, empty, more)", ""),
    "size of the batch": (
        IMAGE,
        "s = Shape(x) b = Slice(s, a0, a1) f = Cast<to=1>(b) y = Div(x, f)",
        "",
    ),
    "scale from data": (IMAGE, "q, s, p = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, p)", ""),
    "indices of a pool": (IMAGE, "y, z = MaxPool<kernel_shape=[2,2]>(x)", ""),
    "cumulative": (VECTOR, "y = CumSum(x, a0)", ""),
    "two free sizes": ("float[N,4,H,6] x", "y = Relu(x)", ""),
    "fixed batch": ("float[2,4,6,6] x", "y = Relu(x)", ""),
    "two batches": (IMAGE, "y = Relu(x) z = Relu(second)", "float[M,4] second"),
    "a constant output": (IMAGE, "y = Relu(x) z = Identity(channels)", ""),
    "operator of a domain": (IMAGE, "y = custom.Relu(x)", ""),
}


def _proven(graph: Graph) -> bool:
    inputs, body, second = graph
    outputs = ["y", "z"] if " z = " in f" {body}" or "y, z" in body else ["y"]
    types = {"z": "int64" if "MaxPool" in body else "float"}
    ends = ", ".join(f"{types.get(name, 'float')} {name}" for name in outputs)
    model = parsed(body, WEIGHTS, ", ".join(filter(None, (inputs, second))), ends)
    resolve_shapes(model)
    return is_samplewise(model)


@pytest.mark.parametrize("name", PROVEN)
def test_proven(name: str) -> None:
    assert _proven(PROVEN[name])


@pytest.mark.parametrize("name", NOT_PROVEN)
def test_not_proven(name: str) -> None:
    assert not _proven(NOT_PROVEN[name])
