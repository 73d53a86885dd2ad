"""The openvino target: what it claims of its kernels, what it compiles with, messages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from greencc.core.capabilities import ElementType
from greencc.core.errors import InputError, UnavailableError
from greencc.core.machine import parse_cpuinfo
from greencc.targets import OpenVinoTarget, format_spec, make_target
from greencc.targets._cpu_capabilities import int8_support as cpu_support
from greencc.targets._openvino_capabilities import INPUT_OPS, MOVE_OPS, int8_support, openvino_capabilities
from greencc.targets._openvino_errors import translate
from greencc.targets._openvino_facts import PluginFacts
from greencc.targets._ort_facts import RuntimeFacts

from .networks import chain

MakeModel = Callable[..., onnx.ModelProto]
X86 = parse_cpuinfo(
    "processor : 0\nvendor_id : GenuineIntel\nmodel name : CPU\nflags : avx2 avx512f avx512_vnni\n"
)
OLD = parse_cpuinfo("processor : 0\nvendor_id : GenuineIntel\nmodel name : CPU\nflags : avx2 fma\n")
ARM = parse_cpuinfo("processor : 0\nFeatures : fp asimd asimddp i8mm fphp asimdhp\nCPU implementer : 0x41\n")
RUNTIME = RuntimeFacts("1.99.0", 25, 12, frozenset({"com.microsoft::Gelu"}), frozenset({"Conv"}))
PLUGIN = PluginFacts("2099.1.0", integers=True, fused_ops=frozenset({"ai.onnx::Swish"}))

here = pytest.mark.skipif(OpenVinoTarget().missing() is not None, reason=str(OpenVinoTarget().missing()))


# without the package


def test_specs_in_both_directions() -> None:
    assert make_target("openvino:threads=2") == OpenVinoTarget(threads=2)
    assert format_spec(OpenVinoTarget(threads=2)) == "openvino:threads=2"
    assert format_spec(OpenVinoTarget()) == "openvino"


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert OpenVinoTarget().missing() == "openvino is not installed: pip install 'greencc[openvino]'"
    for use in (OpenVinoTarget().versions, OpenVinoTarget().capabilities):
        with pytest.raises(
            UnavailableError, match="openvino target cannot run here: openvino is not installed"
        ):
            use()
    with pytest.raises(UnavailableError, match="is not installed"):
        OpenVinoTarget().open(Path("model.onnx"))


def test_int8_quantizes_inputs_with_the_bits_of_the_cpu() -> None:
    support = int8_support(cpu_support(X86), X86)
    assert support is not None
    assert (support.activation, support.weight_bits) == (ElementType.UINT8, 8)
    assert (support.quantize_outputs, support.quantize_skips, support.bias) == (
        False,
        True,
        ElementType.FLOAT,
    )
    saturating = int8_support(cpu_support(OLD), OLD)
    assert saturating is not None
    assert saturating.weight_bits == 7


def test_nothing_is_claimed_of_integers_where_none_were_tried() -> None:
    assert openvino_capabilities(ARM, PLUGIN, RUNTIME).int8 is None
    without = PluginFacts("2099.1.0", integers=False, fused_ops=frozenset())
    assert openvino_capabilities(X86, without, RUNTIME).int8 is None


def test_the_plugin_is_held_to_float32() -> None:
    capabilities = openvino_capabilities(ARM, PLUGIN, RUNTIME)
    assert capabilities.float16 == capabilities.bfloat16 == frozenset()
    assert capabilities.max_opset == 25
    assert capabilities.runs("", "Swish")
    assert not capabilities.runs("com.microsoft", "Gelu")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "Exception from src/inference/src/cpp/core.cpp:84:\nCheck 'false' failed at src/a.cpp:151:\n"
            "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted.\nSummary:\n"
            "-- No conversion rule found for operations: MaxUnpool-17, my.domain.Other\n",
            InputError,
            "loading m.onnx: OpenVINO has no operator 'MaxUnpool' (and 1 more: my.domain.Other) (compile for cpu",
        ),
        (
            "Exception from src/inference/src/cpp/infer_request.cpp:224:\nException from src/node.cpp:794:\n"
            "[CPU] Reshape node with name 'y' Check 'a == b' failed at src/reshape.cpp:77:\n"
            "[cpu]reshape: the shape of input data (4) conflicts with the reshape pattern (3.5)\n",
            InputError,
            "at Reshape node 'y': [CPU] Reshape node with name 'y' [cpu]reshape: the shape of input data (4)",
        ),
        (
            "std::bad_alloc",
            UnavailableError,
            "loading m.onnx: OpenVINO ran out of memory (use a smaller batch",
        ),
        ("x" * 1000, InputError, "x..."),
    ],
)
def test_messages_of_the_runtime(text: str, kind: type[Exception], message: str) -> None:
    error = translate(RuntimeError(text), "loading m.onnx")
    assert isinstance(error, kind)
    assert message in str(error)
    assert ".cpp" not in str(error)
    assert len(str(error)) < 500


# with it


def kernels(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Operator types of the executed graph, which views are a part of, by the names of the ONNX nodes."""
    from greencc.targets._openvino import properties, read_model
    from greencc.targets._openvino_profile import Nodes, describe_nodes

    onnx.save(model, path)
    return dict(describe_nodes(read_model(path).compile(properties(1)), Nodes(path)).values())


@here
@pytest.mark.parametrize("op", sorted(INPUT_OPS | MOVE_OPS))
def test_every_claimed_operator_runs_on_integers(op: str, tmp_path: Path) -> None:
    found = kernels(chain(op), tmp_path / "m.onnx")
    assert found["before"] == "Convolution:int8"
    assert found["probe"].endswith(":int8"), found
    assert found["after"].endswith(":int8"), found


@here
@pytest.mark.parametrize("op", ["Softmax", "SpaceToDepth"])
def test_what_is_not_claimed_runs_in_float(op: str, tmp_path: Path) -> None:
    attributes = {"blocksize": 2} if op == "SpaceToDepth" else {"axis": -1}
    found = kernels(chain(op, **attributes), tmp_path / "m.onnx")
    assert found["before"] == "Convolution:int8"
    assert op in found["probe"]
    assert not found["probe"].endswith(":int8"), found


@here
def test_a_residual_sum_is_a_part_of_the_convolution(tmp_path: Path) -> None:
    model = chain("Transpose")
    nodes = {node.name: node for node in model.graph.node}
    nodes["after"].output[0] = "branch"
    # With a fixed batch the plugin may prefer a fused kernel of its own for the sum.
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    # The skip is read quantized, the convolution's own result is not.
    model.graph.node.append(helper.make_node("Add", ["branch", "r_d"], ["y"], name="skip"))
    found = kernels(model, tmp_path / "m.onnx")
    assert found["after"] == "Convolution:int8"
    assert "skip" not in found, found


@here
def test_a_folded_batch_normalization_counts_to_its_convolution(
    tmp_path: Path, make_model: MakeModel
) -> None:
    rng = np.random.default_rng(0)
    ones = {name: rng.uniform(0.5, 1, 8).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    model = make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *ones], ["n"], name="norm"),
            helper.make_node("Relu", ["n"], ["y"], name="relu"),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        {"w": rng.normal(size=(8, 4, 3, 3)).astype(np.float32)} | ones,
    )
    assert kernels(model, tmp_path / "m.onnx")["conv"] == "Convolution"


@here
def test_nothing_computes_in_less_than_float32(tmp_path: Path, mlp_file: Path) -> None:
    from greencc.targets._openvino import properties, read_model

    compiled = read_model(mlp_file).compile(properties(1))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
    assert not compiled.get_property("ENABLE_CPU_PINNING")


@here
def test_a_type_numpy_lacks_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1]) for name in "xy"]
    onnx.save(
        make_model([helper.make_node("Identity", ["x"], ["y"])], values[:1], values[1:], {}),
        tmp_path / "m.onnx",
    )
    with pytest.raises(InputError, match="input 'x' has type bf16"):
        OpenVinoTarget().open(tmp_path / "m.onnx")


@here
def test_an_unsupported_operator_is_named_with_its_node(make_model: MakeModel, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in "xy"]
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="lower")
    onnx.save(make_model([node], values[:1], values[1:], {}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"no operator 'StringNormalizer' \(node 'lower'\)"):
        OpenVinoTarget().open(tmp_path / "m.onnx")


@here
def test_a_shape_problem_at_run_time_names_the_node(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        {"shape": np.array([3, 5])},
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"running m\.onnx: OpenVINO refused at Reshape node"):
        OpenVinoTarget().open(tmp_path / "m.onnx").run({"x": np.zeros(4, np.float32)})


@here
def test_an_output_that_is_an_input_or_a_constant(make_model: MakeModel, tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Identity", ["y"], ["again"]),
            helper.make_node("Identity", ["w"], ["fixed"]),
        ],
        [info("x", TensorProto.FLOAT, [2]), info("unused", TensorProto.FLOAT, [2])],
        [info(name, TensorProto.FLOAT, [2]) for name in ("y", "same", "again", "fixed")],
        {"w": np.array([7, 8], np.float32)},
    )
    onnx.save(model, tmp_path / "m.onnx")
    values = np.array([-1, 2], np.float32)
    found = OpenVinoTarget().open(tmp_path / "m.onnx").run({"x": values, "unused": values})
    values[:] = 0
    assert {name: array.tolist() for name, array in found.items()} == {
        "y": [0, 2], "same": [-1, 2], "again": [0, 2], "fixed": [7, 8]
    }  # fmt: skip


@here
def test_the_installed_plugin_is_probed() -> None:
    from greencc.targets._openvino_facts import plugin_facts

    facts = plugin_facts()
    assert {"com.microsoft::SkipLayerNormalization", "ai.onnx::LayerNormalization"} <= facts.fused_ops
    assert "ai.onnx::QLinearConv" not in facts.fused_ops
    assert facts.version == OpenVinoTarget().versions()["openvino"]


@here
def test_products_that_the_plugin_computes_in_float_are_left_to_it() -> None:
    int8 = OpenVinoTarget().capabilities().int8
    if int8 is None:
        pytest.skip("no integer kernels are claimed on this CPU")
    assert not int8.activation_products
    assert not int8.stacked_weights
