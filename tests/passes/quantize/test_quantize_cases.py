"""Random networks of every operator the quantizer knows, against the integer reference and against their float selves.

Exactly equal to ONNX Runtime's integer kernels: Conv, Gemm, MatMul with Relu and Clip, movements, Concat. Within one
step, each value given the inputs the runtime had: Add, averages and functions; and all of them when the pairs are
simulated in float, because the optimiser is off or because biases are float.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from greencc.core.capabilities import ElementType
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Pass
from greencc.passes import default_cleanup
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.equalize_layers import EqualizeLayers
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.smooth_quant import SmoothQuant
from greencc.passes.split_outlier_channels import SplitOutlierChannels
from greencc.targets.cpu import CpuTarget
from greencc.verify.integer_reference import run_integer

# Without VNNI, sums of products of 8 by 8 bits saturate on x86, unless the runtime is asked for another kernel.
SATURATES = CpuTarget(threads=1).capabilities().int8.weight_bits == 7
# Rounding of the pairs' numbers to float32, relative to a step.
SLACK = 1e-5
EXACT = frozenset(["Concat", "Conv", "Flatten", "Gemm", "MatMul", "MaxPool", "Reshape", "Transpose"])
BODY = (
    "average",
    "clip",
    "concat",
    "conv",
    "depthwise",
    "dilated",
    "grouped",
    "leaky",
    "max",
    "norm",
    "relu",
    "residual",
    "sigmoid",
    "strided",
    "turn",
)
HEADS = ("gemm", "matmul", "pooled-gemm", "pooled-gemm-transposed")
FORMS: dict[str, dict[str, Any]] = {
    "u8s8": {},
    "u8s8 in 7 bits": {"weight_bits": 7},
    "s8s8 with float bias": {
        "activation": ElementType.INT8,
        "symmetric_activations": True,
        "bias": ElementType.FLOAT,
    },
}


@dataclass
class Builder:
    """A network in the making; `value` is the last value, `shape` its shape."""

    seed: int
    rank: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.shape = [2, 4, *([7, 6][: self.rank])]
        self.start = list(self.shape)
        self.value = "x"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes))
        return output

    def random(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.normal(size=shape) * scale).astype(np.float32)
        return name

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def conv(self, group: int = 1, kernel: int = 3, **attributes: Any) -> str:
        channels = self.shape[1]
        shape = (channels, channels // group, *([kernel] * self.rank))
        weight = self.random(*shape, scale=1.5 / np.sqrt(np.prod(shape[1:])))
        self.weights[weight] *= np.exp(self.rng.normal(size=(channels, *([1] * (1 + self.rank))))).astype(
            np.float32
        )
        operands = [self.value, weight]
        if self.rng.random() < 0.7:
            operands.append(self.random(channels))
        return self.op("Conv", *operands, group=group, **attributes)

    def step(self, kind: str) -> None:
        same = [1] * (2 * self.rank)
        before = self.value
        match kind:
            case "conv":
                self.value = self.conv(pads=same)
            case "depthwise":
                self.value = self.conv(group=self.shape[1], pads=same)
            case "grouped":
                self.value = self.conv(group=2, pads=same)
            case "dilated":
                self.value = self.conv(dilations=[2] * self.rank, pads=[2] * (2 * self.rank))
            case "strided":
                self.value = self.conv(strides=[2] * self.rank, pads=same)
                self.shape[2:] = [(size + 1) // 2 for size in self.shape[2:]]
            case "norm":
                channels = self.shape[1]
                operands = [self.random(channels) for _ in range(3)]
                operands.append(self.constant(self.rng.uniform(0.5, 2, channels).astype(np.float32)))
                self.value = self.op("BatchNormalization", self.conv(pads=same), *operands)
            case "relu":
                self.value = self.op("Relu", before)
            case "clip":
                bounds = [self.constant(np.float32(bound)) for bound in (0, 2)]
                self.value = self.op("Clip", before, *bounds)
            case "leaky":
                self.value = self.op("LeakyRelu", before, alpha=0.1)
            case "sigmoid":
                self.value = self.op("Sigmoid", before)
            case "residual":
                self.value = self.op("Add", self.conv(pads=same), before)
            case "concat":
                branch = self.op("MaxPool", before, kernel_shape=[3] * self.rank, pads=same)
                self.value = self.op("Concat", self.conv(pads=same), branch, axis=1)
                self.shape[1] *= 2
            case "max":
                self.value = self.op("MaxPool", before, kernel_shape=[2] * self.rank)
                self.shape[2:] = [max(1, size - 1) for size in self.shape[2:]]
            case "average":
                self.value = self.op("AveragePool", before, kernel_shape=[3] * self.rank, pads=same)
            case "turn":
                # To channels last, flat, and back.
                last = [0, *range(2, 2 + self.rank), 1]
                there = self.op("Transpose", before, perm=last)
                flat = self.op("Reshape", there, self.constant(np.array([2, -1, self.shape[1]])))
                size = [2, *self.shape[2:], self.shape[1]]
                back = self.op("Reshape", flat, self.constant(np.array(size)))
                self.value = self.op("Transpose", back, perm=[0, 1 + self.rank, *range(1, 1 + self.rank)])

    def head(self, kind: str) -> None:
        features = self.shape[1]
        if kind.startswith("pooled"):
            self.value = self.op("GlobalAveragePool", self.value)
        else:
            features *= int(np.prod(self.shape[2:]))
        flat = self.op("Flatten", self.value)
        if kind == "matmul":
            product = self.op("MatMul", flat, self.random(features, 5))
            self.value = self.op("Add", product, self.random(5))
        elif kind == "pooled-gemm-transposed":
            operands = (flat, self.random(5, features), self.random(5))
            self.value = self.op("Gemm", *operands, transB=1, alpha=0.5, beta=2.0)
        else:
            self.value = self.op("Gemm", flat, self.random(features, 5), self.random(5))

    def model(self) -> ir.Model:
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", floats, self.start)],
            [helper.make_tensor_value_info(self.value, floats, [2, 5])],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@dataclass(frozen=True)
class Network:
    """A random network and inputs for it."""

    rank: int
    steps: list[str]
    head: str
    seed: int

    def build(self) -> tuple[ir.Model, dict[str, np.ndarray]]:
        builder = Builder(self.seed, self.rank)
        for kind in self.steps:
            builder.step(kind)
        builder.head(self.head)
        return builder.model(), {"x": builder.rng.normal(size=builder.start).astype(np.float32)}


def networks(steps: tuple[str, ...] = BODY, heads: tuple[str, ...] = HEADS) -> st.SearchStrategy[Network]:
    return st.builds(
        Network,
        st.sampled_from([1, 2]),
        st.lists(st.sampled_from(steps), min_size=1, max_size=6),
        st.sampled_from(heads),
        st.integers(0, 2**16),
    )


many = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(
    model: ir.Model,
    feeds: dict[str, np.ndarray],
    *,
    optimized: bool = True,
    inner: list[ir.Value] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs and `inner` values, with ONNX Runtime's integer kernels or with the nodes as they are written."""
    proto = ir.to_proto(model)
    proto.graph.output.extend(
        helper.make_tensor_value_info(str(value.name), int(value.dtype), None) for value in inner or []
    )
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if SATURATES:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def quantized(kit: Any, model: ir.Model, feeds: dict[str, np.ndarray], form: str) -> ir.Model:
    candidate = model.clone()
    outcome = QuantizeInt8().apply(candidate, kit.context(feeds, **FORMS[form]))
    assert outcome.changed
    assert not [finding for finding in outcome.findings if finding.kind in ("refused", "left-in-float")]
    infer_shapes(candidate)
    check_model(candidate)
    return candidate


def rounded(model: ir.Model) -> list[ir.Value]:
    """The integers of the activations."""
    return [node.outputs[0] for node in model.graph if node.op_type == "QuantizeLinear"]


def computed_by(integers: ir.Value) -> str:
    """The operator whose value the integers stand for, a Relu or Clip behind it looked through; "" for an input."""
    node = integers.producer()
    assert node is not None
    source = node.inputs[0].producer()
    while source is not None and source.op_type in ("Clip", "Relu"):
        source = source.inputs[0].producer()
    return "" if source is None else source.op_type


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(np.int64) - second.astype(np.int64)).max())


def compare(
    model: ir.Model,
    values: list[ir.Value],
    got: dict[str, np.ndarray],
    feeds: dict[str, np.ndarray],
    *,
    exact: bool,
) -> None:
    """Judge every quantized value on the runtime's own inputs."""
    given = {str(value.name): got[str(value.name)] for value in values}
    expected = run_integer(model, feeds, list(got), given=given)
    for value in values:
        steps = difference(expected[str(value.name)], got[str(value.name)])
        kind = computed_by(value)
        assert steps <= (0 if exact and kind in EXACT else 1), (str(value.name), kind, steps)
    for output in model.graph.outputs:
        name = str(output.name)
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5 * size + 1e-6)


@many
@given(network=networks(), bits=st.sampled_from([7, 8]))
def test_dequantized_weights_are_within_half_a_step(kit: Any, network: Network, bits: int) -> None:
    model, feeds = network.build()
    outcome = QuantizeInt8().apply(after := model.clone(), kit.context(feeds, weight_bits=bits))
    assert not [finding for finding in outcome.findings if finding.kind == "left-in-float"]
    nodes = {node.name: node for node in after.graph}
    seen = 0
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        alpha, beta = (
            node.attributes[name].as_float() if name in node.attributes else 1.0 for name in ("alpha", "beta")
        )
        for index, factor in ((1, alpha), (2, beta)):
            if index >= len(node.inputs):
                continue
            dequantize = nodes[node.name].inputs[index].producer()
            assert dequantize is not None
            integers, scale = (constant_of(dequantize.inputs[place]) for place in (0, 1))
            transposed = node.op_type == "Gemm" and node.attributes.get("transB") is not None
            axis = 0 if node.op_type == "Conv" or transposed or index == 2 else 1
            assert scale.shape == (integers.shape[axis],)
            shaped = scale.reshape([-1 if place == axis else 1 for place in range(integers.ndim)])
            expected = constant_of(node.inputs[index]) * np.float32(factor)
            error = np.abs(integers.astype(np.float64) * shaped - expected)
            assert (error <= 0.5 * (1 + SLACK) * shaped).all()
            if index == 1:
                assert np.abs(integers.astype(int)).max() <= (127 if bits == 8 else 64)
            seen += 1
    assert seen


@pytest.mark.parametrize("form", ["u8s8", "u8s8 in 7 bits"])
@many
@given(network=networks())
def test_integer_kernels_give_what_the_reference_gives(kit: Any, form: str, network: Network) -> None:
    model, feeds = network.build()
    model = quantized(kit, model, feeds, form)
    values = rounded(model)
    compare(model, values, run(model, feeds, inner=values), feeds, exact=True)


@pytest.mark.parametrize("form", FORMS)
@many
@given(network=networks())
def test_a_float_simulation_is_one_step_from_the_reference(kit: Any, form: str, network: Network) -> None:
    model, feeds = network.build()
    model = quantized(kit, model, feeds, form)
    values = rounded(model)
    compare(model, values, run(model, feeds, optimized=False, inner=values), feeds, exact=False)


@few
@given(network=networks())
def test_float_biases_with_optimisations_are_one_step_from_the_reference(kit: Any, network: Network) -> None:
    model, feeds = network.build()
    model = quantized(kit, model, feeds, "s8s8 with float bias")
    values = rounded(model)
    compare(model, values, run(model, feeds, inner=values), feeds, exact=False)


@few
@given(network=networks(("clip", "concat", "conv", "depthwise", "max", "norm", "relu", "strided", "turn"),
                        ("gemm", "matmul")))  # fmt: skip
def test_networks_of_exact_operators_are_equal_from_end_to_end(kit: Any, network: Network) -> None:
    model, feeds = network.build()
    # A BatchNormalization in float between two convolutions is not exact.
    for step in default_cleanup(kit.context(feeds).capabilities):
        step.apply(model, kit.context(feeds))
    model = quantized(kit, model, feeds, "u8s8")
    values = rounded(model)
    got = run(model, feeds, inner=values)
    expected = run_integer(model, feeds, [str(value.name) for value in values])
    for name, integers in expected.items():
        np.testing.assert_array_equal(got[name], integers)


@few
@given(network=networks())
def test_integer_operators_give_what_the_reference_gives(kit: Any, network: Network) -> None:
    model, feeds = network.build()
    model = quantized(kit, model, feeds, "u8s8")
    exported = model.clone()
    outcome = ConvertQOperator().apply(exported, kit.context(feeds))
    assert outcome.changed
    infer_shapes(exported)
    check_model(exported)
    kept = {value.name for node in exported.graph for value in node.outputs}
    values = [value for value in rounded(model) if value.name in kept]
    assert values
    for optimized in (True, False):
        got = run(exported, feeds, optimized=optimized, inner=values)
        compare(model, values, got, feeds, exact=True)


FLOAT_PASSES: dict[str, Pass] = {
    "equalize": EqualizeLayers(worth=0.0),
    "smooth": SmoothQuant(gain=0.0, insert=True, insert_gain=0.0),
    "split": SplitOutlierChannels(expand=0.5, worth=0.0),
}


@pytest.mark.parametrize("name", [*FLOAT_PASSES, "clean-up"])
@many
@given(network=networks())
def test_float_outputs_stay(kit: Any, name: str, network: Network) -> None:
    model, feeds = network.build()
    before = run(model, feeds, optimized=False)
    context = kit.context(feeds)
    cleanup = default_cleanup(context.capabilities)
    for step in (FLOAT_PASSES[name],) if name in FLOAT_PASSES else cleanup:
        step.apply(model, replace(context, rewrites=type(context.rewrites)()))
    infer_shapes(model)
    check_model(model)
    after = run(model, feeds, optimized=False)
    assert after.keys() == before.keys()
    for output, expected in before.items():
        assert np.abs(after[output] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_comparison_can_fail(kit: Any) -> None:
    model, feeds = Network(2, ["conv", "relu", "residual"], "pooled-gemm", 1).build()
    model = quantized(kit, model, feeds, "u8s8")
    values = rounded(model)
    got = run(model, feeds, inner=values)
    compare(model, values, got, feeds, exact=True)
    weight = next(value for value in model.graph.initializers.values() if value.dtype is ir.DataType.INT8)
    weight.const_value = ir.tensor((weight.const_value.numpy() // 2).astype(np.int8))
    with pytest.raises(AssertionError):
        compare(model, values, got, feeds, exact=False)
