"""Running models, feeding them wrongly, and fixed batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from greencc.core.errors import InputError
from greencc.targets import CpuTarget
from greencc.targets._ort_errors import translate

MakeModel = Callable[..., onnx.ModelProto]
TARGET = CpuTarget(threads=1)


def x(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)


def by_hand(model: onnx.ModelProto, values: np.ndarray) -> np.ndarray:
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    return np.maximum(values @ weights["w1"] + weights["b1"], 0) @ weights["w2"]


def test_reference_and_artifact_agree_with_numpy(make_mlp: MakeModel, mlp_file: Path) -> None:
    values = x(5)
    expected = by_hand(make_mlp(), values)
    model = ir.load(mlp_file)
    engines = TARGET.reference(model), TARGET.calibration_engine(model), TARGET.open(mlp_file)
    for engine in engines:
        np.testing.assert_allclose(engine.run({"x": values})["y"], expected, rtol=1e-4, atol=1e-4)
        engine.close()


def test_the_reference_leaves_the_model_unchanged(mlp_ir: ir.Model) -> None:
    before = ir.to_proto(mlp_ir).SerializeToString()
    TARGET.reference(mlp_ir, ["h", "y"]).run({"x": x(2)})
    assert ir.to_proto(mlp_ir).SerializeToString() == before


def test_specs_name_dtype_and_dimensions(mlp_ir: ir.Model) -> None:
    engine = TARGET.reference(mlp_ir)
    (spec,) = engine.inputs
    assert (spec.name, spec.dtype, spec.shape, spec.batch) == ("x", np.float32, ("N", 8), None)
    assert [output.name for output in engine.outputs] == ["y"]


def test_inner_values_weights_and_inputs_can_be_asked_for(mlp_ir: ir.Model) -> None:
    values = x(3)
    got = TARGET.reference(mlp_ir, ["a", "h", "x", "w2"]).run({"x": values})
    assert list(got) == ["a", "h", "x", "w2"]
    np.testing.assert_array_equal(got["a"], np.maximum(got["h"], 0))
    np.testing.assert_array_equal(got["x"], values)
    assert got["w2"].shape == (64, 4)


def test_inner_values_with_a_stale_shape_are_still_right(mlp_ir: ir.Model) -> None:
    for node in mlp_ir.graph:
        node.outputs[0].shape = ir.Shape([7, 7])
    mlp_ir.graph.outputs[0].shape = ir.Shape(["N", 4])
    assert TARGET.reference(mlp_ir, ["h"]).run({"x": x(3)})["h"].shape == (3, 64)


def test_nodes_that_no_wanted_value_needs_are_not_run(make_model: MakeModel) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "impossible"], ["y"]),
    ]
    model = make_model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        {"impossible": np.array([3, 5])},
    )
    assert TARGET.reference(ir.from_proto(model), ["a"]).run({"x": x(2)})["a"].shape == (2, 8)


def test_an_unknown_inner_value_is_named_with_a_suggestion(mlp_ir: ir.Model) -> None:
    with pytest.raises(InputError, match=r"no value 'w3'.*did you mean 'w") as caught:
        TARGET.reference(mlp_ir, ["w3"])
    assert caught.value.hint is not None


def test_weights_in_a_file_are_not_copied_into_the_message(tmp_path: Path, make_mlp: MakeModel) -> None:
    from greencc.targets._ort_model import share

    model = ir.from_proto(make_mlp(width=4096))
    path = tmp_path / "big.onnx"
    ir.save(model, path, external_data="big.data", size_threshold_bytes=16)
    loaded = ir.load(path)
    shared = share(loaded)
    assert (shared.names, shared.folder) == ((), tmp_path.resolve())
    assert len(shared.proto) < 3000
    # A pass replaced one weight: that one is in memory, the others still come from the file.
    changed = loaded.clone()
    changed.graph.initializers["w2"].const_value = ir.tensor(np.zeros((4096, 4), np.float32), name="w2")
    assert share(changed).names == ("w2",)
    assert not TARGET.reference(changed).run({"x": x(2)})["y"].any()
    values = x(2)
    np.testing.assert_allclose(
        TARGET.reference(loaded).run({"x": values})["y"],
        by_hand(make_mlp(width=4096), values),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_closed_engine_says_so(mlp_ir: ir.Model) -> None:
    engine = TARGET.reference(mlp_ir)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run({"x": x(1)})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no values for input 'x'"),
        ({"x": np.zeros((1, 8), np.float32), "z": np.zeros(1, np.float32)}, "no input 'z'"),
        ({"x": np.zeros((1, 8))}, r"dtype float64, the model takes float32.*astype\('float32'\)"),
        ({"x": np.zeros(8, np.float32)}, r"shape \(8,\), the model takes \[N, 8\]"),
        (
            {"x": np.zeros((1, 9), np.float32)},
            r"shape \(1, 9\), the model takes \[N, 8\] \(axis 1 must be 8\)",
        ),
        ({"x": [[0.0] * 8]}, "is a list, not a NumPy array"),
    ],
)
def test_wrong_feeds_are_input_errors(mlp_ir: ir.Model, feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TARGET.reference(mlp_ir).run(feeds)


def test_an_unknown_output_is_named(mlp_ir: ir.Model) -> None:
    with pytest.raises(InputError, match="no output 'z'"):
        TARGET.reference(mlp_ir).run({"x": x(1)}, outputs=["z"])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_fixed_batch_takes_any_number_of_samples(make_mlp: MakeModel, batch: int, count: int) -> None:
    fixed = make_mlp(batch)
    values = x(count)
    engine = TARGET.reference(ir.from_proto(fixed), ["y", "h"])
    got = engine.run({"x": values})
    assert got["h"].shape == (count, 64)
    np.testing.assert_allclose(got["y"], by_hand(fixed, values), rtol=1e-4, atol=1e-4)


def test_a_fixed_batch_refuses_no_samples(make_mlp: MakeModel) -> None:
    with pytest.raises(InputError, match="0 samples"):
        TARGET.reference(ir.from_proto(make_mlp(4))).run({"x": x(0)})


def two_inputs(make_model: MakeModel) -> ir.Model:
    """Two inputs of a fixed batch of 2, and an output that sums over it."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "v"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0),
    ]
    return ir.from_proto(
        make_model(
            nodes,
            [info("x", TensorProto.FLOAT, [2, 8]), info("v", TensorProto.FLOAT, [2, 8])],
            [info("y", TensorProto.FLOAT, [2, 8]), info("total", TensorProto.FLOAT, [])],
            {},
        )
    )


def test_inputs_that_disagree_about_the_samples_are_named(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"'x' wants 2, got 4, 'v' wants 2, got 6"):
        TARGET.reference(two_inputs(make_model)).run({"x": x(4), "v": x(6)})


def test_an_output_without_the_batch_cannot_be_split(make_model: MakeModel) -> None:
    engine = TARGET.reference(two_inputs(make_model))
    with pytest.raises(InputError, match="output 'total' has shape"):
        engine.run({"x": x(4), "v": x(4)})
    assert engine.run({"x": x(4), "v": x(4)}, outputs=["y"])["y"].shape == (4, 8)
    assert engine.run({"x": x(2), "v": x(2)})["total"].shape == ()


def test_an_input_that_fits_goes_along_with_every_part(make_model: MakeModel) -> None:
    values, shared = x(6), x(2)
    got = TARGET.reference(two_inputs(make_model)).run({"x": values, "v": shared}, outputs=["y"])["y"]
    np.testing.assert_allclose(got, values + np.tile(shared, (3, 1)), rtol=1e-6)


def test_a_shape_problem_at_run_time_names_the_node(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="bad_reshape")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        {"shape": np.array([3, 5])},
    )
    with pytest.raises(InputError, match="at Reshape node 'bad_reshape'"):
        TARGET.reference(ir.from_proto(model)).run({"x": x(2)})


def test_an_unknown_operator_is_named(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("Nope", ["x"], ["y"], name="odd")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        {},
    )
    with pytest.raises(InputError, match=r"no operator 'Nope' in opset 17 at Nope node 'odd'"):
        TARGET.reference(ir.from_proto(model))


def test_an_unknown_domain_is_named(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("Special", ["x"], ["y"], name="odd", domain="vendor.special")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        {},
    )
    model.opset_import.append(helper.make_opsetid("vendor.special", 1))
    with pytest.raises(InputError, match=r"no operator '.*Special"):
        TARGET.reference(ir.from_proto(model))


def test_a_missing_kernel_is_named(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="ints")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        {"w": np.ones((1, 1, 3, 3), np.float32)},
    )
    with pytest.raises(InputError, match=r"Conv node .*ints|Conv.*\(ints\)"):
        TARGET.reference(ir.from_proto(model))


def test_sequences_are_refused(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
        {},
    )
    with pytest.raises(InputError, match=r"output 'y' has type seq"):
        TARGET.reference(ir.from_proto(model))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        TARGET.open(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        TARGET.open(tmp_path / "none.onnx")


def test_messages_are_free_of_source_locations() -> None:
    text = "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 it broke"
    assert translate(RuntimeError(text), "loading m").message == "loading m: ONNX Runtime refused: it broke"


def test_string_inputs(make_model: MakeModel) -> None:
    model = make_model(
        [helper.make_node("Identity", ["t"], ["y"])],
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["N"])],
        {},
    )
    engine = TARGET.reference(ir.from_proto(model))
    assert engine.run({"t": np.array(["a", "b"])})["y"].tolist() == ["a", "b"]
    with pytest.raises(InputError, match="takes strings"):
        engine.run({"t": np.zeros(2, np.float32)})


def test_weights_in_two_folders(tmp_path: Path, make_mlp: MakeModel) -> None:
    model = ir.from_proto(make_mlp(width=4096))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ir.save(model, tmp_path / name / "m.onnx", external_data="m.data", size_threshold_bytes=16)
    mixed, other = ir.load(tmp_path / "one/m.onnx"), ir.load(tmp_path / "two/m.onnx")
    mixed.graph.initializers["w2"].const_value = other.graph.initializers["w2"].const_value
    values = x(2)
    for engine in (TARGET.reference(mixed), TARGET.calibration_engine(mixed)):
        np.testing.assert_allclose(
            engine.run({"x": values})["y"], by_hand(make_mlp(width=4096), values), rtol=1e-3, atol=1e-3
        )


@pytest.mark.full
def test_a_model_beyond_two_gigabytes_runs_where_its_weights_are(
    tmp_path: Path, make_model: MakeModel
) -> None:
    layers, width = 9, 8192
    with (tmp_path / "w.data").open("wb") as stream:
        # A sparse file: 9 matrices of 256 MB, all zeros.
        stream.truncate(layers * width * width * 4)
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)
    ]
    info = helper.make_tensor_value_info
    proto = make_model(
        nodes,
        [info("x", TensorProto.FLOAT, ["N", width])],
        [info("y", TensorProto.FLOAT, ["N", width])],
        {},
    )
    for layer in range(layers):
        tensor = proto.graph.initializer.add(
            name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width]
        )
        tensor.data_location = TensorProto.EXTERNAL
        size = width * width * 4
        for key, value in (("location", "w.data"), ("offset", layer * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    engine = TARGET.reference(ir.load(tmp_path / "m.onnx"), ["h1", "y"])
    got = engine.run({"x": np.ones((1, width), np.float32)})
    assert not got["y"].any()
    anonymous = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if "RssAnon" in line
    )
    assert anonymous * 1024 < 1 << 30
