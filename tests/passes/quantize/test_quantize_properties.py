"""Random networks: weights within half a step, pairs complete, outputs within what the steps allow, QOperator equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from greencc.core.model import check_model, infer_shapes
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.quantize_int8 import QuantizeInt8

CHANNELS = 4
STEPS = ("conv", "depthwise", "relu", "clip", "leaky", "sigmoid", "add", "mul", "concat", "max", "average")


class Network:
    """A random network of (2, 4, 6, 6) values with a linear head; `inputs_of` says what each value is made of."""

    def __init__(self, steps: list[tuple[str, int, int]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {"zero": np.float32(0), "three": np.float32(3)}
        values = ["x"]
        for number, (kind, one, two) in enumerate(steps):
            first, second = values[-1 - one % len(values)], values[-1 - two % len(values)]
            name = f"v{number}"
            if kind in ("conv", "depthwise"):
                shape = (CHANNELS, CHANNELS, 3, 3) if kind == "conv" else (CHANNELS, 1, 3, 3)
                spread = np.exp(rng.normal(size=(CHANNELS, 1, 1, 1)))
                self._weighted(name, "Conv", first, rng.normal(size=shape) * 0.2 * spread, rng,
                               pads=[1] * 4, group=1 if kind == "conv" else CHANNELS)  # fmt: skip
            elif kind == "concat":
                self._add("Concat", [first, second], f"{name}_both", axis=1)
                self._weighted(
                    name, "Conv", f"{name}_both", rng.normal(size=(CHANNELS, 2 * CHANNELS, 1, 1)) * 0.3, rng
                )
            elif kind == "clip":
                self._add("Clip", [first, "zero", "three"], name)
            elif kind in ("max", "average"):
                pool = "MaxPool" if kind == "max" else "AveragePool"
                self._add(pool, [first], name, kernel_shape=[3, 3], pads=[1] * 4)
            elif kind in ("add", "mul"):
                self._add(kind.capitalize(), [first, second], name)
            else:
                operator = {"relu": "Relu", "leaky": "LeakyRelu", "sigmoid": "Sigmoid"}[kind]
                self._add(operator, [first], name)
            values.append(name)
        self._add("GlobalAveragePool", [values[-1]], "pooled")
        self._add("Flatten", ["pooled"], "flat")
        self._weighted("y", "Gemm", "flat", rng.normal(size=(CHANNELS, 5)), rng)
        self.x = rng.normal(size=(2, CHANNELS, 6, 6)).astype(np.float32)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"n_{output}", **attributes))

    def _weighted(
        self,
        name: str,
        kind: str,
        source: str,
        weight: np.ndarray,
        rng: np.random.Generator,
        **attributes: Any,
    ) -> None:
        outputs = weight.shape[0] if kind == "Conv" else weight.shape[1]
        self.weights[f"{name}_w"] = weight.astype(np.float32)
        self.weights[f"{name}_b"] = rng.normal(size=outputs).astype(np.float32)
        self._add(kind, [source, f"{name}_w", f"{name}_b"], name, **attributes)

    def model(self) -> ir.Model:
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", floats, [2, CHANNELS, 6, 6])],
            [helper.make_tensor_value_info("y", floats, [2, 5])],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(
    model: ir.Model, feeds: dict[str, np.ndarray], outputs: list[str] | None = None
) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    for name in outputs or []:
        proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def step_of(model: ir.Model, name: str) -> float:
    """The step that a value is rounded to, 0 where it stays float."""
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[0].name == name:
            return float(node.inputs[1].const_value.numpy())
    return 0.0


def weight_error(model: ir.Model, network: Network, name: str) -> np.ndarray:
    """Difference of a dequantized weight from the float one, as (inputs, outputs)."""
    weight = network.weights[name]
    stored = model.graph.initializers.get(f"{name}_quantized")
    if stored is None:
        return np.zeros((weight.size // CHANNELS, 1))
    scale = model.graph.initializers[f"{name}_scale"].const_value.numpy()
    axis = 0 if weight.ndim == 4 else 1
    shaped = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    error = stored.const_value.numpy() * shaped - weight
    assert (np.abs(error) <= shaped * np.float32(0.5 * (1 + 1e-5))).all()
    return np.moveaxis(error, axis, -1).reshape(-1, weight.shape[axis])


def bound(model: ir.Model, network: Network, seen: dict[str, np.ndarray]) -> float:
    """The largest difference at the output that rounding every value, weight and bias by its step can make."""
    errors: dict[str, float] = {"x": step_of(model, "x")}
    for node in network.nodes:
        kind, inputs, output = node.op_type, list(node.input), node.output[0]
        first = errors[inputs[0]]
        largest = float(np.abs(seen[inputs[0]]).max())
        if kind in ("Conv", "Gemm"):
            difference = weight_error(model, network, inputs[1])
            weight = network.weights[inputs[1]]
            matrix = np.moveaxis(weight, 0 if kind == "Conv" else 1, -1).reshape(-1, difference.shape[1] or 1)
            error = (
                np.abs(matrix + difference).sum(0).max() * first + np.abs(difference).sum(0).max() * largest
            )
            bias = model.graph.initializers.get(f"n_{output}_bias_scale")
            error += 0.0 if bias is None else float(np.max(bias.const_value.numpy()))
        elif kind in ("Add", "Concat"):
            second = errors[inputs[1]]
            error = first + second if kind == "Add" else max(first, second)
        elif kind == "Mul":
            second = errors[inputs[1]]
            error = first * np.abs(seen[inputs[1]]).max() + second * largest + first * second
        else:
            # The others change a value by no more than their input changes.
            error = first
        # Half a step for the rounding, half where the zero point moves the range.
        errors[output] = float(error) * (1 + 1e-4) + step_of(model, output)
    return errors["y"]


networks = st.builds(
    Network,
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(0, 2**16),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(network=networks, bits=st.sampled_from([7, 8]))
def test_random_networks(kit: Any, network: Network, bits: int) -> None:
    model = network.model()
    x = {"x": network.x}
    names = [node.output[0] for node in network.nodes if node.output[0] != "y"]
    seen = x | run(model, x, names)
    outcome = QuantizeInt8().apply(model, kit.context(x, ops=kit.int8.ops | {"Sigmoid"}, weight_bits=bits))
    assert not [finding for finding in outcome.findings if finding.kind == "left-in-float"]
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert {use.node.op_type for use in node.outputs[0].uses()} == {"DequantizeLinear"}
    infer_shapes(model)
    check_model(model)
    got = run(model, x)["y"]
    assert np.max(np.abs(got - seen["y"])) <= bound(model, network, seen)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(network=networks)
def test_random_networks_as_integer_operators(kit: Any, network: Network) -> None:
    model = network.model()
    x = {"x": network.x}
    context = kit.context(x, ops=kit.int8.ops | {"Sigmoid"})
    QuantizeInt8().apply(model, context)
    pairs = run(model, x)["y"]
    outcome = ConvertQOperator().apply(model, kit.context(x))
    assert outcome.changed > 0
    infer_shapes(model)
    check_model(model)
    # What nobody reads has no QuantizeLinear behind it.
    left = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert not [node for node in left if node.outputs[0].uses() or node.outputs[0].is_graph_output()]
    # ONNX Runtime makes the same operators of the pairs when it loads them.
    np.testing.assert_array_equal(run(model, x)["y"], pairs)


def test_the_bound_is_not_trivial(kit: Any) -> None:
    network = Network([("conv", 0, 0), ("relu", 0, 0), ("conv", 0, 0), ("add", 0, 1)], 3)
    model = network.model()
    x = {"x": network.x}
    seen = x | run(model, x, [node.output[0] for node in network.nodes if node.output[0] != "y"])
    QuantizeInt8().apply(model, kit.context(x))
    allowed = bound(model, network, seen)
    assert allowed < 10 * np.abs(seen["y"]).max()
    model.graph.initializers["v2_w_scale"].const_value = ir.tensor(
        model.graph.initializers["v2_w_scale"].const_value.numpy() * 4
    )
    with pytest.raises(AssertionError):
        weight_error(model, network, "v2_w")
