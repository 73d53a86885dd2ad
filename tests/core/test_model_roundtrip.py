"""Loading and saving keep everything a model has, wherever its weights are stored."""

from __future__ import annotations

import errno
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from greencc.core.errors import InputError
from greencc.core.model import check_model, digest, infer_shapes, load_model, save_model

FEATURES = {
    "subgraphs": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[N,3] x, float[2,3] s) => (float[N,3] y, float[2,3] z) {
            y = If (c) <
                then_branch = t () => (float[N,3] a) {
                    w = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
                    a = Add(x, w)
                },
                else_branch = e () => (float[N,3] b) { b = Neg(x) }
            >
            n = Constant <value = int64 {4}> ()
            go = Constant <value = bool {1}> ()
            z = Loop (n, go, s) <
                body = l (int64 i, bool k, float[2,3] v) => (bool k2, float[2,3] v2) { k2 = Identity(k) v2 = Add(v, v) }
            >
        }""",
    "functions": """
        <ir_version: 10, opset_import: ["" : 18, "lib" : 1]>
        g (float[N,3] x) => (float[N,3] y) { t = lib.scaled <alpha = 2.0> (x) y = lib.scaled <alpha = 3.0> (t) }
        <domain: "lib", opset_import: ["" : 18]>
        scaled <alpha> (a) => (b) { c = Constant <value_float : float = @alpha> () b = Mul(a, c) }""",
    "custom domains": """
        <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "acme" : 7]>
        g (float[N,3] x) => (float[N,3] y, float[N,4] z) <float[N,4] a> {
            a = acme.Wonder <mode = "fast", levels = [1, 2]> (x)
            b = com.microsoft.Gelu (x)
            y = Relu(b)
            z = Neg(a)
        }""",
    "unranked": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[] x) => (float[] y) { y = Relu(x) }""",
    "strings": """
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        g (int64[N] x) => (string[N] y) {
            y = ai.onnx.ml.LabelEncoder <keys_int64s = [1, 2], values_strings = ["a", "b"]> (x)
        }""",
}


def annotated() -> onnx.ModelProto:
    """Metadata on everything that can have it, a quantization annotation, doc strings."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17], producer_name: "test", producer_version: "3", model_version: 4,
            domain: "acme", doc_string: "a model", metadata_props: ["key" : "value", "a" : "b"]>
        g (float[N,4] x) => (float[N,4] y)
        <float[4] w = {1.0, 2.0, 3.0, 4.0}, float s = {0.5}> { z = Mul(x, w) y = Relu(z) }"""
    )
    model.graph.metadata_props.add(key="graph", value="1")
    model.graph.node[0].metadata_props.add(key="node", value="2")
    model.graph.node[0].doc_string = "multiplies"
    model.graph.input[0].metadata_props.add(key="input", value="3")
    model.graph.initializer[0].metadata_props.add(key="tensor", value="4")
    model.graph.initializer[0].doc_string = "weights"
    annotation = model.graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    return model


def typed_weights() -> onnx.ModelProto:
    """One initializer of each kind of storage: raw, typed fields, packed, strings, empty, scalar."""
    rng = np.random.default_rng(0)
    arrays = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal(4).astype(np.float16),
        "bf16": rng.standard_normal(6).astype(ml_dtypes.bfloat16),
        "f8": rng.standard_normal(6).astype(ml_dtypes.float8_e4m3fn),
        "i4": np.array([-8, 7, 3], dtype=ml_dtypes.int4),
        "u4": np.arange(5).astype(ml_dtypes.uint4),
        "i64": np.array([1, -2], dtype=np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "scalar": np.array(3.5, dtype=np.float64),
        "complex": np.array([1 + 2j], dtype=np.complex64),
    }
    tensors = [ir.to_proto(ir.tensor(array, name=name)) for name, array in arrays.items()]
    tensors.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [0.25, 4.0]))
    tensors.append(helper.make_tensor("typed16", TensorProto.BFLOAT16, [3], [1.0, 2.0, 3.0]))
    tensors.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"one", b"t\xc3\xb6"]))
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"]) for tensor in tensors]
    outputs = [
        helper.make_tensor_value_info(f"{tensor.name}_out", tensor.data_type, list(tensor.dims))
        for tensor in tensors
    ]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def proto_of(name: str) -> onnx.ModelProto:
    builders = {"annotated": annotated, "typed weights": typed_weights}
    return builders[name]() if name in builders else parser.parse_model(FEATURES[name])


ALL = [*FEATURES, "annotated", "typed weights"]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("feature", ALL)
def test_round_trip_keeps_everything(feature: str, external: bool, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    if external:
        proto = proto_of(feature)
        onnx.external_data_helper.convert_model_to_external_data(
            proto, location="in.bin", size_threshold=0, convert_attribute=True
        )
        onnx.save_model(proto, source)
    else:
        source.write_bytes(proto_of(feature).SerializeToString())
    model = load_model(source)
    [saved] = save_model(model, tmp_path / "out.onnx")
    again = load_model(saved)
    assert digest(again) == digest(model)
    assert lines(onnx.load(saved)) == lines(proto_of(feature))


def lines(proto: onnx.ModelProto) -> list[str]:
    """The model as text, without inferred types, with all tensors raw."""
    for graph in every_graph(proto.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            as_raw(tensor)
        for node in graph.node:
            node_as_raw(node)
    for function in proto.functions:
        del function.value_info[:]
        for node in function.node:
            node_as_raw(node)
    # An empty domain may be written or not, and metadata has no order.
    return sorted(line for line in str(proto).splitlines() if line.strip() != 'domain: ""')


def node_as_raw(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            as_raw(attribute.t)
            attribute.t.ClearField("name")


def as_raw(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.STRING:
        raw = ir.from_proto(tensor).tobytes()
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.raw_data = raw


def every_graph(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(found for body in inner for found in every_graph(body))]


@pytest.mark.parametrize("opset", range(11, 24))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    model = parser.parse_model(
        f"""<ir_version: 7, opset_import: ["" : {opset}]>
        g (float[N,3,8,8] x) => (float[N,4] y)
        <float[4,3,3,3] w, float[4] b = {{0.0, 0.0, 0.0, 0.0}}> {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu(c)
            p = GlobalAveragePool(r)
            y = Flatten(p)
        }}"""
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.zeros(4, np.float32), "b"),
        ]
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = load_model(path)
    assert loaded.opset_imports[""] == opset
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    conv = loaded.graph[0].outputs[0]
    assert conv.shape == ["N", 4, 8, 8]
    assert conv.dtype == ir.DataType.FLOAT


def test_initializers_that_are_inputs_become_constants(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 3, opset_import: ["" : 11]>
        g (float[N,2] x, float[2] w) => (float[N,2] y) <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }"""
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = load_model(path)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert loaded.ir_version >= 4
    assert load_model(save_model(loaded, tmp_path / "out.onnx")[0]).graph.initializers.keys() == {"w"}


def test_unsorted_graphs_are_sorted(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[3] x, bool c) => (float[3] y) {
            y = If (c) <
                then_branch = t () => (float[3] p) { p = Neg(a) },
                else_branch = e () => (float[3] q) { q = Abs(a) }
            >
            a = Relu(x)
        }"""
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert [node.op_type for node in load_model(path).graph] == ["Relu", "If"]


def test_dimensions_written_as_unknown_are_independent(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,H,W] x) => (float[N,H,W] y) { y = Relu(x) }"""
    )
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[1].dim_param, dims[2].dim_param = -1, "?", "?"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    [value] = load_model(path).graph.inputs
    assert value.shape is not None
    assert [dim.value for dim in value.shape if isinstance(dim, ir.SymbolicDim)] == [None, None, None]


def test_external_file_is_aligned_and_relative(tmp_path: Path) -> None:
    model = big_enough()
    files = save_model(model, tmp_path / "out.onnx", external_threshold=1000)
    assert files == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(files[0], load_external_data=False).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    assert [entry["location"] for entry in entries] == ["out.onnx.data"] * 2
    assert [int(entry["offset"]) for entry in entries] == [0, 8192]
    for name, value in load_model(files[0]).graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), weights()[name])


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "a": rng.standard_normal((33, 33)).astype(np.float32),
        "b": rng.standard_normal((33, 40)).astype(np.float32),
        "c": np.ones(40, np.float32),
    }


def big_enough() -> ir.Model:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,33] x) => (float[N,40] y) { t = MatMul(x, a) u = MatMul(t, b) y = Add(u, c) }"""
    )
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights().items())
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def test_bytes_and_digest_do_not_depend_on_where_the_weights_are(tmp_path: Path) -> None:
    inline = save_model(big_enough(), tmp_path / "inline.onnx")[0]
    first = save_model(load_model(inline), tmp_path / "m.onnx", external_threshold=1000)
    (tmp_path / "second").mkdir()
    second = save_model(load_model(first[0]), tmp_path / "second" / "m.onnx", external_threshold=1000)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    third = save_model(load_model(second[0]), tmp_path / "third.onnx")
    assert third[0].read_bytes() == inline.read_bytes()
    digests = {
        digest(big_enough()),
        *(digest(load_model(file)) for file in (inline, first[0], second[0], third[0])),
    }
    assert len(digests) == 1
    onnx.checker.check_model(str(first[0]), full_check=True)
    onnx.checker.check_model(str(inline), full_check=True)


def test_digest_sees_weights_attributes_and_names(tmp_path: Path) -> None:
    base = big_enough()
    seen = [digest(base)]
    changed = base.clone()
    changed.graph.initializers["c"].const_value = ir.tensor(np.full(40, 2, np.float32), name="c")
    seen.append(digest(changed))
    changed = base.clone()
    changed.graph[0].name = "other"
    seen.append(digest(changed))
    changed = base.clone()
    changed.opset_imports[""] = 18
    seen.append(digest(changed))
    assert len(set(seen)) == 4
    assert digest(base) == seen[0] == digest(base.clone())


def test_saving_leaves_the_model_alone(tmp_path: Path) -> None:
    model = big_enough()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    save_model(model, tmp_path / "a.onnx")
    save_model(model, tmp_path / "b.onnx", external_threshold=0)
    digest(model)
    check_model(model)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors


def test_own_weights_are_not_overwritten(tmp_path: Path) -> None:
    path = save_model(big_enough(), tmp_path / "m.onnx", external_threshold=0)[0]
    before = path.with_name("m.onnx.data").read_bytes()
    with pytest.raises(InputError, match="reads its weights from"):
        save_model(load_model(path), path, external_threshold=0)
    assert path.with_name("m.onnx.data").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    for threshold in (0, 1 << 30):
        path = tmp_path / f"m{threshold}.onnx"
        path.symlink_to("/dev/full")
        with pytest.raises(OSError) as caught:
            save_model(big_enough(), path, external_threshold=threshold)
        assert caught.value.errno == errno.ENOSPC


def test_external_data_survives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(big_enough(), tmp_path / "m.onnx", external_threshold=0)
    monkeypatch.chdir(tmp_path)
    model = load_model(Path("m.onnx"))
    monkeypatch.chdir("/")
    assert digest(model) == digest(big_enough())
