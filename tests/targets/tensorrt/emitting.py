"""Small networks to emit, how they are quantized and run, and graphs as short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper, parser

from greencc.core.data import Array
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.passes import default_cleanup
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget
from greencc.targets._tensorrt.capabilities import tensorrt_capabilities
from greencc.targets._tensorrt.emit import emit
from greencc.targets._tensorrt.lint import errors, lint
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture

from ..networks import Samples

VERSIONS = ("8.2", "8.5", "8.6", "10.3", "10.13", "11.4")
Feeds = Mapping[str, Array]

CNN = """
cnn (float[N, 3, 16, 16] x) => (float[N, 10] logits, float[N, 16, 16, 16] up) {
  stem = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
  r0 = Relu (stem)
  c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r0, w1, b1)
  n1 = BatchNormalization (c1, g, b1, m, v)
  a1 = Add (n1, r0)
  r1 = Relu (a1)
  d = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=16> (r1, w2, b1)
  s = HardSwish (d)
  p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s)
  q = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (p)
  c3 = Conv <kernel_shape=[1,1]> (p, w3)
  both = Concat <axis=1> (c3, q)
  up = ConvTranspose <kernel_shape=[2,2], strides=[2,2], group=2> (both, w4, b1)
  f = GlobalAveragePool (both)
  e = Flatten (f)
  logits = Gemm <transB=1> (e, w5, b5)
}"""
BLOCK = """
block (float[N, 8, 32] x, float[N, 1, 8, 8] mask) => (float[N, 8, 32] y) {
  n = LayerNormalization <axis=-1, epsilon=1e-5> (x, s, b)
  q = MatMul (n, wq)
  k = MatMul (n, wk)
  v = MatMul (n, wv)
  q4 = Reshape (q, heads)
  k4 = Reshape (k, heads)
  v4 = Reshape (v, heads)
  qt = Transpose <perm=[0,2,1,3]> (q4)
  kt = Transpose <perm=[0,2,3,1]> (k4)
  vt = Transpose <perm=[0,2,1,3]> (v4)
  z = MatMul (qt, kt)
  scaled = Mul (z, half)
  masked = Add (scaled, mask)
  a = Softmax <axis=-1> (masked)
  o = MatMul (a, vt)
  ot = Transpose <perm=[0,2,1,3]> (o)
  o3 = Reshape (ot, flat)
  r = Add (o3, x)
  h = MatMul (r, w1)
  h1 = Add (h, b1)
  t = Div (h1, root)
  er = Erf (t)
  e1 = Add (er, one)
  u = Mul (h1, e1)
  g = Mul (u, half)
  y0 = MatMul (g, w2)
  y = Add (y0, r)
}"""


def machine(version: str, sm: int = 87, *, rtx: bool = False, dla: int = 0) -> TensorRtMachine:
    return TensorRtMachine(TensorRtVersion.parse(version), architecture(sm), dla, rtx=rtx)


def parse(text: str, opset: int = 17, ir_version: int = 8, **weights: Array) -> ir.Model:
    """A model from ONNX's text form, with weights by name."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    proto = parser.parse_model(head + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def cnn() -> ir.Model:
    """Stem, residual, depthwise, pools, concatenation, transposed convolution in groups, a classifier."""
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1)}
    shapes |= {"w4": (32, 8, 2, 2), "w5": (10, 32)}
    weights = {
        name: normal(*shape, seed=len(name) + index, scale=1 / np.sqrt(np.prod(shape[1:])))
        for index, (name, shape) in enumerate(shapes.items())
    }
    weights |= {name: normal(16, seed=9, scale=0.1) for name in ("b0", "b1", "m")}
    ones = np.ones(16, np.float32)
    return parse(CNN, **weights, b5=normal(10, seed=8), g=ones, v=ones)


def block() -> ir.Model:
    """Layer normalization, attention with a mask, residuals, an MLP with GELU written out."""
    names = ("wq", "wk", "wv", "w1", "w2")
    shapes = {"w1": (32, 64), "w2": (64, 32)}
    weights = {
        name: normal(*shapes.get(name, (32, 32)), seed=index, scale=0.15) for index, name in enumerate(names)
    }
    return parse(
        BLOCK,
        **weights,
        s=np.ones(32, np.float32),
        b=normal(32, seed=7),
        b1=normal(64, seed=8),
        heads=np.array([0, 8, 2, 16]),
        flat=np.array([0, 8, 32]),
        half=np.float32(0.5),
        root=np.float32(np.sqrt(2)),
        one=np.float32(1),
    )


def feeds_of(model: ir.Model, count: int = 2, seed: int = 0) -> dict[str, Array]:
    """Normal numbers for each input, whole ones for integers."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else count for dim in value.shape or ()]
        numbers = rng.normal(size=shape)
        whole = value.dtype is not None and not value.dtype.is_floating_point()
        feeds[str(value.name)] = (rng.integers(0, 4, shape) if whole else numbers).astype(value.dtype.numpy())  # type: ignore[union-attr]
    return feeds


def unfused(model: ir.Model, feeds: Feeds) -> list[Array]:
    """What the graph says, operator by operator: TensorRT's arithmetic for pairs (floats between INT8 grids)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(array) for array in session.run(None, dict(feeds))]


def run_passes(model: ir.Model, on: TensorRtMachine, steps: Sequence[Pass]) -> ir.Model:
    """A model after passes that ask a machine's capabilities, calibrated on samples of `feeds_of`."""
    samples = [feeds_of(model, 1, seed) for seed in range(4)]
    cpu = CpuTarget(threads=1)
    context = Context(
        tensorrt_capabilities(on, sparse=True),
        cpu.reference,
        samples,
        calibration=Samples(samples),
        observe=cpu.calibration_engine,
    )
    return Pipeline(context).run(model, steps)[0]


def int8(model: ir.Model, on: TensorRtMachine) -> ir.Model:
    """Cleaned up and quantized, as a compile does."""
    cleanup = default_cleanup(tensorrt_capabilities(on, sparse=False))
    return run_passes(model, on, (*cleanup, QuantizeInt8()))


def emitted(model: ir.Model, on: TensorRtMachine) -> ir.Model:
    """The emitted model, which must be valid, and clean of errors."""
    result = emit(model, on)
    check_model(result)
    assert not errors(lint(result, on))
    return result


def distance(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Largest relative error of the outputs, as a norm."""
    assert [array.shape for array in expected] == [array.shape for array in got]
    assert [array.dtype for array in expected] == [array.dtype for array in got]
    return max(
        float(np.linalg.norm((b - a).astype(np.float64)) / max(np.linalg.norm(a.astype(np.float64)), 1e-9))
        for a, b in zip(expected, got, strict=True)
    )


def text_of(model: ir.Model) -> str:
    """A graph in short: one line per node with what it reads, its attributes and the type that it gives."""
    numbers: dict[ir.Value, str] = {value: str(value.name) for value in model.graph.inputs}
    imports = ", ".join(
        f"{domain or 'ai.onnx'} {number}" for domain, number in sorted(model.opset_imports.items())
    )
    lines = [f"opset {imports}; IR {model.ir_version}"]
    lines += [f"{key} = {text}" for key, text in sorted(model.metadata_props.items())]
    lines += [f"input {value.name}: {_type(value)}" for value in model.graph.inputs]
    for index, node in enumerate(model.graph):
        reads = ", ".join(
            numbers.get(value, _type(value)) if value is not None else "-" for value in node.inputs
        )
        attributes = " ".join(f"{key}={_attribute(each)}" for key, each in sorted(node.attributes.items()))
        gives = ", ".join(value.dtype.name for value in node.outputs if value.dtype is not None)
        lines.append(f"%{index} {node.op_type}({reads}){' ' if attributes else ''}{attributes} -> {gives}")
        numbers.update(dict.fromkeys(node.outputs, f"%{index}"))
    lines += [f"output {value.name}: {_type(value)} = {numbers[value]}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def _type(value: ir.Value) -> str:
    kind = "?" if value.dtype is None else value.dtype.name
    return f"{kind}[{','.join(str(dim) for dim in value.shape or ())}]"


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(list(value)) if isinstance(value, tuple | list) else str(value)


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator is there."""
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def weights_only(model: ir.Model, steps: Sequence[Pass], *, fused: bool) -> ir.Model:
    """Weights stored as small integers, in ONNX Runtime's operators or in standard ones."""
    cpu = CpuTarget(threads=1)
    capabilities = cpu.capabilities()
    if not fused:
        standard = frozenset(name for name in capabilities.fused_ops if name.startswith("ai.onnx::"))
        capabilities = replace(capabilities, fused_ops=standard)
    stored = Pipeline(Context(capabilities, cpu.reference, [feeds_of(model)])).run(model, steps)[0]
    for node in stored.graph:
        if "accuracy_level" in node.attributes:
            # Activations in float, as they are after emission.
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    return stored
