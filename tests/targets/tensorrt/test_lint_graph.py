"""Faults of whole graphs: operators, opsets, types, shapes, control flow; what a GPU or a DLA cannot do."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from greencc.core.errors import UsageError
from greencc.targets._tensorrt.faults import Rule, Severity
from greencc.targets._tensorrt.lint import errors, lint
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.operators import SINCE, max_opset
from greencc.targets._tensorrt.spec import machine_of

from .lint_graphs import found, machine, make, quantized_net, rules, weight


def one(
    op_type: str,
    outputs: int = 1,
    *,
    domain: str = "",
    inputs: tuple[str, ...] = ("x",),
    **attributes: object,
) -> onnx.NodeProto:
    names = ["y", "y1", "y2"][:outputs]
    return helper.make_node(op_type, list(inputs), names, name="node", domain=domain, **attributes)


def float_net(opset: int = 17) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="pool"),
    ]
    return make(nodes, {"x": (1, 3, 8, 8)}, {"y": (1, 8, 1, 1)}, {"w": weight(8, 3, 3, 3)}, opset=opset)


@pytest.mark.parametrize(
    "spec",
    ["jetson", "jetson:preset=jetson-nano", "jetson-thor", "tensorrt:8.4", "tensorrt-rtx:gpu=rtx-4090"],
)
def test_a_float_graph_is_clean(spec: str) -> None:
    subject = machine_of(spec)
    assert found(float_net(opset=13), subject.machine, gpu=subject.gpu) == ()


@pytest.mark.parametrize("op_type", ["DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"])
def test_integer_operators_have_no_importer(op_type: str) -> None:
    if op_type == "DynamicQuantizeLinear":
        proto = make([one(op_type, 3)], {"x": (4, 4)}, {"y": (4, 4)})
    else:
        inputs = {"x": (1, 1, 4, 4), "v": (1, 1, 4, 4)}
        proto = make([one(op_type, inputs=("x", "v"))], inputs, {"y": (1, 1, 1, 1)}, kind=TensorProto.UINT8)
    faults = [fault for fault in found(proto, infer=False) if fault.rule is Rule.OPERATOR]
    assert rules(faults) == [(Rule.OPERATOR, "node")]
    assert "float operators between Q/DQ pairs" in faults[0].message


def test_custom_operators() -> None:
    foreign = found(
        make([one("FusedConv", domain="com.microsoft")], {"x": (4, 4)}, {"y": (4, 4)}), infer=False
    )
    assert rules(foreign) == [(Rule.CUSTOM_OPERATOR, "node")]
    assert foreign[0].severity is Severity.ERROR
    plugin = found(make([one("EfficientNMS_TRT", domain="trt")], {"x": (4, 4)}, {"y": (4, 4)}), infer=False)
    assert plugin[0].severity is Severity.WARNING


def test_operators_by_version() -> None:
    proto = make(
        [one("LayerNormalization", inputs=("x", "s"))],
        {"x": (4, 4)},
        {"y": (4, 4)},
        {"s": weight(4)},
        opset=17,
    )
    assert found(proto, machine("8.6")) == ()
    old = found(proto, machine("8.5"))
    assert rules(old) == [(Rule.OPERATOR, "node")]
    assert "8.6 or later" in old[0].hint


def test_functions_of_the_model() -> None:
    proto = make([one("Twice", domain="local")], {"x": (4,)}, {"y": (4,)})
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(
        helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    assert found(proto, machine("10.3"), infer=False) == ()
    assert rules(found(proto, machine("8.6"), infer=False)) == [(Rule.CUSTOM_OPERATOR, "node")]


@pytest.mark.parametrize("version", ["8.2", "8.6", "9.0", "10.3", "10.15"])
def test_an_opset_that_is_newer_than_the_parser(version: str) -> None:
    newest = max_opset(TensorRtVersion.parse(version))
    assert found(float_net(newest), machine(version), infer=False) == ()
    assert rules(found(float_net(newest + 1), machine(version), infer=False)) == [(Rule.OPSET, "")]


def test_every_operator_of_the_table_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    # onnx-tensorrt reads these experimental operators of ONNX's first releases.
    old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
    assert set(SINCE) - known <= old | {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


@pytest.mark.parametrize(
    ("node", "weights", "message"),
    [
        (one("MaxPool", 2, kernel_shape=[2, 2]), {}, "Indices"),
        (one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), {}, "dilated"),
        (one("Resize", inputs=("x", "", "s"), antialias=1), {"s": np.ones(4, np.float32)}, "antialias"),
        (one("TopK", 2, inputs=("x", "k")), {"k": np.array([4000], np.int64)}, "less than 3840"),
        (one("Einsum", equation="...i->...i"), {}, "ellipses"),
        (
            one("Slice", inputs=("x", "a", "b", "c")),
            {"a": np.array([0]), "b": np.array([1])},
            "axes must be a constant",
        ),
    ],
)
def test_forms_that_are_refused(node: onnx.NodeProto, weights: dict[str, np.ndarray], message: str) -> None:
    proto = make([node], {"x": (1, 1, 8, 8)}, {"y": (1, 1, 8, 8)}, weights)
    if "c" in node.input:
        proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.INT64, [1]))
    if len(node.output) > 1:
        proto.graph.output.append(helper.make_tensor_value_info("y1", TensorProto.INT64, [1, 1, 7, 7]))
    faults = [
        fault for fault in found(proto, machine("8.6"), infer=False) if fault.rule is Rule.OPERATOR_FORM
    ]
    assert len(faults) == 1
    assert message in faults[0].message
    assert faults[0].node == "node"


def test_integers_where_floats_are_listed() -> None:
    proto = make([one("MatMul", inputs=("x", "x"))], {"x": (4, 4)}, {"y": (4, 4)}, kind=TensorProto.INT32)
    assert rules(found(proto)) == [(Rule.OPERATOR_TYPE, "node")]
    sums = make([one("ReduceSum", keepdims=1)], {"x": (4, 4)}, {"y": (1, 1)}, kind=TensorProto.INT32)
    assert rules(found(sums, machine("8.6"))) == [(Rule.OPERATOR_TYPE, "node")]
    assert found(sums, machine("9.0")) == ()


@pytest.mark.parametrize(
    ("kind", "version", "severity"),
    [
        (TensorProto.INT16, "10.3", Severity.ERROR),
        (TensorProto.DOUBLE, "10.3", Severity.WARNING),
        (TensorProto.UINT8, "8.4", Severity.ERROR),
        (TensorProto.INT64, "8.6", Severity.WARNING),
        (TensorProto.INT64, "10.3", None),
        (TensorProto.UINT8, "10.3", None),
        (TensorProto.BOOL, "10.3", None),
    ],
)
def test_types_of_inputs(kind: int, version: str, severity: Severity | None) -> None:
    proto = make([one("Cast", to=TensorProto.FLOAT)], {"x": (4,)}, {"y": (4,)}, opset=13)
    proto.graph.input[0].type.tensor_type.elem_type = kind
    faults = found(proto, machine(version))
    assert [(fault.rule, fault.node, fault.severity) for fault in faults] == (
        [] if severity is None else [(Rule.ELEMENT_TYPE, "x", severity)]
    )


def test_uint8_within_the_graph() -> None:
    proto = make([one("Relu")], {"x": (4,)}, {"y": (4,)})
    proto.graph.node[0].op_type = "Add"
    proto.graph.node[0].input.append("x")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    assert rules(found(proto)) == [(Rule.ELEMENT_TYPE, "node")]


def test_int64_weights_are_clamped_before_nine() -> None:
    proto = make(
        [one("Add", inputs=("x", "big"))], {"x": (1,)}, {"y": (1,)}, {"big": np.array([2**40])}, opset=13
    )
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.INT64
    old = [fault for fault in found(proto, machine("8.6")) if fault.rule is Rule.INT64_RANGE]
    assert [fault.node for fault in old] == ["big"]
    assert found(proto, machine("9.0")) == ()
    ends = make(
        [one("Slice", inputs=("x", "a", "big", "c"))], {"x": (4,)}, {"y": (4,)},
        {"a": np.array([0]), "big": np.array([2**62]), "c": np.array([0])}, opset=13,
    )  # fmt: skip
    assert found(ends, machine("8.6")) == ()


def test_double_weights() -> None:
    proto = make(
        [one("Add", inputs=("x", "w"))], {"x": (4,)}, {"y": (4,)}, {"w": np.ones(4)}, kind=TensorProto.DOUBLE
    )
    assert (Rule.ELEMENT_TYPE, "w") in rules(found(proto))


def test_open_sizes_and_too_many_axes() -> None:
    proto = make([one("Relu")], {"x": ("N", 3, "width")}, {"y": ("N", 3, "width")})
    (fault,) = found(proto)
    assert (fault.rule, fault.node) == (Rule.DYNAMIC_SHAPE, "x")
    assert "axis 0 'N', axis 2 'width'" in fault.message
    assert "--maxShapes=x:Nx3xN" in fault.hint
    deep = make([one("Relu")], {"x": (1,) * 9}, {"y": (1,) * 9})
    assert rules(found(deep)) == [(Rule.RANK, "x"), (Rule.RANK, "node")]
    unranked = make([one("Relu")], {"x": (1,)}, {"y": (1,)})
    unranked.graph.input[0].type.tensor_type.ClearField("shape")
    (fault,) = [fault for fault in found(unranked, infer=False) if fault.node == "x"]
    assert (fault.rule, fault.severity) == (Rule.DYNAMIC_SHAPE, Severity.ERROR)


def test_sizes_that_data_tell() -> None:
    proto = make([one("NonZero")], {"x": (4, 4)}, {"y": (2, "n")})
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert rules(found(proto, machine("10.3"))) == [(Rule.DATA_DEPENDENT_SHAPE, "node")]
    assert (Rule.OPERATOR, "node") in rules(found(proto, machine("8.4"), infer=False))


def branch(name: str, shape: tuple[int, ...]) -> onnx.GraphProto:
    value = helper.make_tensor(f"{name}_value", TensorProto.FLOAT, list(shape), [1.0] * int(np.prod(shape)))
    node = helper.make_node("Constant", [], [name], value=value, name=f"make_{name}")
    return helper.make_graph(
        [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))]
    )


def conditional(first: tuple[int, ...], second: tuple[int, ...]) -> onnx.ModelProto:
    node = helper.make_node(
        "If", ["x"], ["y"], name="if", then_branch=branch("a", first), else_branch=branch("b", second)
    )
    proto = make([node], {"x": ()}, {"y": ("n",) * len(first)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    return proto


def test_branches_of_if() -> None:
    assert found(conditional((2, 2), (2, 2)), machine("8.6")) == ()
    ranks = found(conditional((2, 2), (2,)), infer=False)
    assert rules(ranks) == [(Rule.CONTROL_FLOW, "if")]
    sizes = conditional((2, 2), (2, 3))
    assert rules(found(sizes, machine("8.6"), infer=False)) == [(Rule.CONTROL_FLOW, "if")]
    assert found(sizes, machine("10.3"), infer=False) == ()


def loop(trips: str, condition: str = "yes") -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"]),
         helper.make_node("Relu", ["v"], ["scan"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
         helper.make_tensor_value_info("scan", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    node = helper.make_node("Loop", [trips, condition, "x"], ["last", "y"], name="loop", body=body)
    proto = make([node], {"x": (4,)}, {"y": ("n", 4)}, {"five": np.array(5), "yes": np.array(True)})
    proto.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, []))
    return proto


def test_loops_that_stack_an_unknown_number() -> None:
    assert found(loop("five")) == ()
    assert rules(found(loop("n"))) == [(Rule.CONTROL_FLOW, "loop")]


def test_loops_without_a_condition() -> None:
    (fault,) = found(loop("five", ""))
    assert (fault.rule, fault.node) == (Rule.CONTROL_FLOW, "loop")
    assert "condition is left out" in fault.message


def test_axes_that_are_computed_from_constants_are_known() -> None:
    nodes = [helper.make_node("Abs", ["a"], ["b"]), one("CumSum", inputs=("x", "b"))]
    proto = make(nodes, {"x": (4,)}, {"y": (4,)}, {"a": np.array(0)})
    assert found(proto, machine("10.3")) == ()
    proto.graph.node[0].op_type = "ArgMax"
    proto.graph.node[0].input[0] = "x"
    assert (Rule.OPERATOR_FORM, "node") in rules(found(proto, machine("10.3"), infer=False))


def test_what_tensorrt_rtx_lacks() -> None:
    proto = make([one("NonZero")], {"x": (4, 4)}, {"y": (2, "n")})
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert (Rule.OPERATOR, "node") in rules(found(proto, machine_of("tensorrt-rtx").machine))


def test_inputs_with_defaults() -> None:
    faults = found(float_net(), defaults=("w", "other"))
    assert rules(faults) == [(Rule.INPUT_DEFAULT, "other")]
    assert "other, w" in faults[0].message
    proto = float_net()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 3, 3, 3]))
    assert rules(found(proto)) == [(Rule.INPUT_DEFAULT, "w")]


def test_bfloat16_needs_ampere_and_version_nine() -> None:
    proto = make([one("Relu")], {"x": (4,)}, {"y": (4,)}, kind=TensorProto.BFLOAT16)
    assert found(proto, machine("10.3", 87)) == ()
    assert rules(found(proto, machine("8.6", 87))) == [(Rule.NO_HALF, "x")]
    assert rules(found(proto, machine("10.3", 75))) == [(Rule.NO_HALF, "x")]
    assert found(proto, machine("10.3", 75), gpu=False) == ()


def test_float16_on_a_gpu_without() -> None:
    proto = make([one("Relu")], {"x": (4,)}, {"y": (4,)}, kind=TensorProto.FLOAT16)
    slow = dataclasses.replace(machine().gpu, float16=False)
    assert rules(found(proto, dataclasses.replace(machine(), gpu=slow))) == [(Rule.NO_HALF, "x")]


def sparse(axis: int) -> onnx.ModelProto:
    """A convolution with two of every four weights along an axis zeroed, by magnitude."""
    array = np.moveaxis(weight(16, 16, 3, 3), axis, -1).copy()
    groups = array.reshape(-1, 4)
    groups[np.arange(len(groups))[:, None], np.argsort(np.abs(groups))[:, :2]] = 0.0
    array = np.ascontiguousarray(np.moveaxis(groups.reshape(array.shape), -1, axis))
    return make([one("Conv", inputs=("x", "w"))], {"x": (1, 16, 8, 8)}, {"y": (1, 16, 6, 6)}, {"w": array})


def test_sparsity() -> None:
    assert found(sparse(1), machine("10.3", 87)) == ()
    old = found(sparse(1), machine("8.5", 72))
    assert rules(old) == [(Rule.SPARSITY, "node")]
    assert "gains nothing" in old[0].message
    wrong = found(sparse(0), machine("10.3", 87))
    assert rules(wrong) == [(Rule.SPARSITY, "node")]
    assert "along axis 0" in wrong[0].message
    assert "sparse kernels want it along the input channels, axis 1" in wrong[0].message


def test_weights_beside_the_memory() -> None:
    size = 8 * 3 * 3 * 3 * 4
    assert found(float_net(), machine(memory_bytes=4 * size)) == ()
    (tight,) = found(float_net(), machine(memory_bytes=size + 1))
    assert (tight.rule, tight.severity) == (Rule.MEMORY, Severity.WARNING)
    (full,) = found(float_net(), machine(memory_bytes=size - 1))
    assert (full.rule, full.severity) == (Rule.MEMORY, Severity.ERROR)


def on_dla(
    *nodes: onnx.NodeProto, shape: tuple[object, ...] = (1, 16, 8, 8), **weights: np.ndarray
) -> list[tuple[Rule, str]]:
    proto = make(nodes, {"x": shape}, {"y": (1,) * 4}, weights, kind=TensorProto.FLOAT16)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return rules(found(proto, machine("10.16", dla=2), dla=True, infer=False))


def half(*shape: int) -> np.ndarray:
    return weight(*shape).astype(np.float16)


def test_a_dla_that_is_not_there() -> None:
    faults = found(float_net(), machine("10.16"), dla=True)
    assert rules(faults) == [(Rule.DLA_MISSING, "")]
    assert faults[0].severity is Severity.ERROR
    # Every target of the remedy has one.
    named = faults[0].hint.split("compile for one of: ")[1].split(", ")
    assert len(named) == 6
    assert all(machine_of(spec).dla and machine_of(spec).machine.dla for spec in named)


def test_layers_of_the_dla() -> None:
    conv = {"inputs": ("x", "w")}
    assert on_dla(one("Conv", **conv, kernel_shape=[3, 3]), w=half(16, 16, 3, 3)) == []
    assert on_dla(one("Conv", **conv, strides=[9, 9]), w=half(16, 16, 3, 3)) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("Conv", **conv), w=half(16, 16, 33, 33)) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("ConvTranspose", **conv), w=half(16, 16, 2, 2)) == []
    assert on_dla(one("ConvTranspose", **conv, pads=[1, 1, 1, 1]), w=half(16, 16, 3, 3)) == [
        (Rule.DLA_LAYER, "node")
    ]
    assert on_dla(one("MaxPool", kernel_shape=[2, 2], strides=[2, 2])) == []
    assert on_dla(one("MaxPool", kernel_shape=[9, 9])) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("Erf")) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("MatMul", inputs=("x", "x"))) == [(Rule.DLA_LAYER, "node")]
    assert on_dla(one("Relu"), shape=("N", 16, 8, 8)) == [(Rule.DLA_SHAPE, "x"), (Rule.DYNAMIC_SHAPE, "x")]


def test_fp32_layers_fall_back_from_the_dla() -> None:
    faults = found(float_net(), machine("10.16", dla=2), dla=True)
    assert rules(faults) == [(Rule.DLA_LAYER, "conv"), (Rule.DLA_LAYER, "pool")]
    assert "FP16 and INT8 alone" in faults[0].message


def test_errors_come_first_and_each_once() -> None:
    proto = quantized_net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    proto.opset_import[0].version = 21
    model = ir.from_proto(proto)
    faults = lint(model, machine("10.3"))
    assert faults[0].rule is Rule.OPSET
    assert len(set(faults)) == len(faults)
    severities = [fault.severity for fault in faults]
    assert severities == sorted(severities, key=lambda severity: severity is Severity.WARNING)
    assert errors(faults) == tuple(fault for fault in faults if fault.severity is Severity.ERROR)


def test_the_graph_is_left_as_it_was() -> None:
    model = ir.from_proto(quantized_net())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lint(model, machine())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("spec", "version", "sm", "dla"),
    [
        ("tensorrt:10.3", "10.3", None, False),
        ("tensorrt:version=8.6,gpu=sm87", "8.6", 87, False),
        ("tensorrt:version=10.3,batch=4,gpu=t4", "10.3", 75, False),
        ("tensorrt:gpu=v100", "10.4", 70, False),
        ("jetson:sparse=true,batch=4", "10.3", 87, False),
        ("tensorrt:10.3,gpu=8.9", "10.3", 89, False),
        ("tensorrt:10.3,gpu=rtx-4090", "10.3", 89, False),
        ("tensorrt:8.5,gpu=jetson-xavier-nx", "8.5", 72, False),
        ("tensorrt", "11.4", None, False),
        ("jetson", "10.3", 87, False),
        ("jetson:jetson-nano", "8.2.1", 53, False),
        ("jetson-nano", "8.2.1", 53, False),
        ("jetson:preset=jetson-agx-orin,jetpack=7.2.2,dla=true", "11.4.1", 87, True),
        ("jetson-agx-orin:dla=true", "10.3", 87, True),
        ("tensorrt-rtx:rtx-5090", "10.15", 120, False),
    ],
)
def test_specs(spec: str, version: str, sm: int | None, dla: bool) -> None:
    subject = machine_of(spec)
    assert str(subject.machine.version) == version
    assert (subject.machine.gpu.sm if subject.gpu else None) == sm
    assert subject.dla is dla


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cpu", "no TensorRT target"),
        ("tensorrt:12", "not known"),
        ("tensorrt:new", "not a TensorRT version"),
        ("tensorrt:10.3,gpu=sm54", "compute capability 54"),
        ("tensorrt:10.3,gpu=voodoo", "'voodoo' is not known"),
        ("tensorrt:10.3,color=red", "no option 'color'"),
        ("tensorrt:10.3,gpu", "has no value"),
        ("tensorrt:8.5,gpu=rtx-5090", "came with 10.8"),
        ("jetson:dla=true", "builds for no DLA"),
        ("tensorrt:10.3,version=10.4", "given twice"),
        ("jetson:preset=jetson-tk1", "jetson:preset is 'jetson-tk1'"),
        ("jetson:jetpack=3.1", "JetPack 3.1 is not known"),
        ("jetson:dla=maybe", "jetson:dla is 'maybe'"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        machine_of(spec)
    assert caught.value.hint
