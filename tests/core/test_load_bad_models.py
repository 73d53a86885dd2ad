"""Every bad model file gives one clear `InputError` that names the file and what is wrong in it."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from greencc.core.errors import ExitCode, InputError
from greencc.core.model import load_model

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
BODY = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"


def parsed(body: str, header: str = HEADER) -> onnx.ModelProto:
    return parser.parse_model(f"{header} g {body}")


def weighted(tensor: TensorProto) -> onnx.ModelProto:
    """A model that adds an initializer to its input."""
    nodes = [helper.make_node("Add", ["x", tensor.name], ["y"], name="add")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(**fields: object) -> TensorProto:
    merged = {"name": "w", "data_type": TensorProto.FLOAT, "dims": [2, 3], **fields}
    return TensorProto(**merged)


def external(location: str | None = "w.bin", **entries: str) -> onnx.ModelProto:
    proto = tensor(data_location=TensorProto.EXTERNAL)
    if location is not None:
        entries = {"location": location, **entries}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=value)
    return weighted(proto)


def edited(
    edit: Callable[[onnx.ModelProto], object], body: str = BODY, header: str = HEADER
) -> onnx.ModelProto:
    model = parsed(body, header)
    edit(model)
    return model


def nested(depth: int) -> onnx.ModelProto:
    """An If inside an If inside ..., `depth` levels."""
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["v0"])], "b0", [], [])
    body.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, [3]))
    for level in range(1, depth):
        other = helper.make_graph([helper.make_node("Neg", ["x"], [f"n{level}"])], f"n{level}", [], [])
        other.output.append(helper.make_tensor_value_info(f"n{level}", TensorProto.FLOAT, [3]))
        node = helper.make_node("If", ["c"], [f"v{level}"], then_branch=body, else_branch=other)
        body = helper.make_graph([node], f"b{level}", [], [])
        body.output.append(helper.make_tensor_value_info(f"v{level}", TensorProto.FLOAT, [3]))
    graph = helper.make_graph(
        [*body.node, helper.make_node("Identity", [f"v{depth - 1}"], ["out"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [value],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def function_tower(height: int, calls: int = 2) -> onnx.ModelProto:
    """Functions that each call the next one several times: few nodes that stand for calls ** height."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function("f", "f0", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    ]
    for level in range(1, height):
        names = ["x", *(f"t{i}" for i in range(calls - 1)), "y"]
        nodes = [helper.make_node(f"f{level - 1}", [a], [b], domain="f") for a, b in pairwise(names)]
        functions.append(helper.make_function("f", f"f{level}", ["x"], ["y"], nodes, opsets))
    model = parsed("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = f"f{height - 1}", "f"
    model.opset_import.append(opsets[1])
    model.functions.extend(functions)
    return model


def recursive() -> onnx.ModelProto:
    model = function_tower(2)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f1", "f"
    return model


def sequence_input() -> onnx.ModelProto:
    model = parsed("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [3]))
    model.graph.input.append(helper.make_value_info("s", kind))
    return model


def map_output() -> onnx.ModelProto:
    model = parsed("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.output[0].type.CopyFrom(kind)
    return model


def sparse() -> onnx.ModelProto:
    model = parsed(BODY)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("i", TensorProto.INT64, [1], [0]),
            [3],
        )
    )
    return model


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no graph": (lambda: onnx.ModelProto(ir_version=8), "has no graph"),
    "no nodes": (lambda: edited(lambda m: m.graph.ClearField("node")), "has no nodes"),
    "no outputs": (lambda: edited(lambda m: m.graph.ClearField("output")), "has no outputs"),
    "ir version": (lambda: edited(lambda m: setattr(m, "ir_version", 2)), "IR version 2"),
    "future ir version": (lambda: edited(lambda m: setattr(m, "ir_version", 999)), "IR version 999"),
    "no opset": (lambda: edited(lambda m: m.ClearField("opset_import")), "does not say which opset"),
    "old opset": (lambda: parsed(BODY, '<ir_version: 5, opset_import: ["" : 8]>'), "uses opset 8.*9 to 23"),
    "new opset": (lambda: parsed(BODY, '<ir_version: 8, opset_import: ["" : 24]>'), "uses opset 24.*9 to 23"),
    "two opsets": (
        lambda: edited(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 13))),
        "at two versions",
    ),
    "unknown op": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = Reluu(x) }"),
        r"node 'y' \(Reluu\): ai.onnx opset 17 has no such operator.*did you mean 'Relu'",
    ),
    "op of a later opset": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = Gelu(x) }"),
        "node 'y' .*came with opset 20",
    ),
    "removed op": (
        lambda: parsed("(float[N,3] x, float[2] s) => (float[N,3] y) { y = Upsample(x, s) }"),
        "node 'y' .*removed",
    ),
    "domain not imported": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = com.microsoft.Gelu(x) }"),
        "'com.microsoft', which is not imported",
    ),
    "undefined value": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = Add(x, ghost) }"),
        r"node 'y' \(Add\) reads 'ghost', which nothing defines",
    ),
    "undefined output": (
        lambda: parsed("(float[N,3] x) => (float[N,3] z) { y = Relu(x) }"),
        "output 'z' of the graph is never written",
    ),
    "cycle": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { a = Add(x, c) b = Relu(a) c = Neg(b) y = Relu(c) }"),
        "cycle: node '[abc]'.* -> .*node '[abc]'.* -> .*node '[abc]'",
    ),
    "self loop": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = Add(x, y) }"),
        r"cycle: node 'y' \(Add\) -> node 'y'",
    ),
    "value defined twice": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { y = Relu(x) y = Neg(x) }"),
        r"node 'y' \(Neg\) writes 'y', which node 'y' \(Relu\) already defines",
    ),
    "input redefined": (
        lambda: parsed("(float[N,3] x) => (float[N,3] y) { x = Relu(x) y = Neg(x) }"),
        "writes 'x', which an input or initializer already defines",
    ),
    "input twice": (
        lambda: edited(lambda m: m.graph.input.append(m.graph.input[0])),
        "inputs of the graph: 'x' appears twice",
    ),
    "initializer twice": (
        lambda: edited(
            lambda m: m.graph.initializer.extend([helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])] * 2)
        ),
        "initializers of the graph: 'w' appears twice",
    ),
    "initializer without name": (
        lambda: edited(lambda m: m.graph.initializer.append(tensor(name="", dims=[0]))),
        "an initializer of the graph has no name",
    ),
    "input without type": (
        lambda: edited(lambda m: m.graph.input[0].ClearField("type")),
        "input 'x' has no type",
    ),
    "sequence input": (sequence_input, "input 's' is a sequence, not a tensor"),
    "map output": (map_output, "output 'y' is a map, not a tensor.*zipmap"),
    "sparse initializer": (sparse, "initializer 's' is sparse"),
    "deep nesting": (lambda: nested(25), "nested deeper than 16"),
    "recursive function": (recursive, "function f::f[01] calls itself"),
    "function bomb": (lambda: function_tower(16, calls=8), "more than 2,000,000 nodes"),
    "deep functions": (lambda: function_tower(40, calls=1), "functions are nested deeper than 16"),
    "function twice": (
        lambda: edited(lambda m: m.functions.append(m.functions[0]), "(float[N,3] x) => (float[N,3] y) "
                       "{ y = f.f(x) } <domain: \"f\", opset_import: [\"\" : 17]> f (a) => (b) { b = Relu(a) }",
                       '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'),
        "function f::f is defined twice",
    ),
    "inconsistent shapes": (
        lambda: parsed("(float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul(x, w) }"),
        "shape inference failed at a MatMul node",
    ),
    "inconsistent types": (
        lambda: parsed("(float[2,3] x, int64[2,3] w) => (float[2,3] y) { y = Add(x, w) }"),
        "shape inference failed at a Add node",
    ),
    "unknown attribute": (
        lambda: parsed("(float[2,3] x) => (float[2,3] y) { y = Relu <slope = 1.0> (x) }"),
        "Unrecognized attribute: slope",
    ),
    "tensor without data": (
        lambda: weighted(tensor(dims=[1_000_000, 1_000_000])),
        r"initializer 'w' of type FLOAT and shape \[1000000, 1000000\] needs 1,000,000,000,000 values but has 0",
    ),
    "raw data too short": (
        lambda: weighted(tensor(raw_data=b"\0" * 20)),
        "initializer 'w' .*needs 24 bytes but has 20",
    ),
    "raw data too long": (lambda: weighted(tensor(raw_data=b"\0" * 28)), "needs 24 bytes but has 28"),
    "raw and typed data": (
        lambda: weighted(tensor(raw_data=b"\0" * 24, float_data=[0.0] * 6)),
        "both raw_data and float_data",
    ),
    "data in the wrong field": (
        lambda: weighted(tensor(int64_data=[1] * 6)),
        "of type FLOAT has its data in int64_data",
    ),
    "negative dimension": (lambda: weighted(tensor(dims=[-1, 3])), "negative dimension"),
    "element type": (lambda: weighted(tensor(data_type=99)), "element type 99"),
    "no element type": (lambda: weighted(tensor(data_type=0)), "element type 0"),
    "too many axes": (lambda: weighted(tensor(dims=[1] * 40, float_data=[1.0])), "has 40 axes"),
    "attribute tensor": (
        lambda: edited(
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("value", tensor(name=""))),
            "() => (float[2,3] y) { y = Constant() }",
        ),
        r"attribute 'value' of node 'y' \(Constant\) .*needs 6 values but has 0",
    ),
    "external, nowhere": (lambda: external(None), "does not say which file"),
    "external, absolute": (lambda: external("/etc/passwd"), "absolute path '/etc/passwd'"),
    "external, drive": (lambda: external("C:\\w.bin"), "absolute path"),
    "external, parent": (lambda: external("../w.bin"), "outside the folder, at '../w.bin'"),
    "external, inner parent": (lambda: external("a/../../w.bin"), "outside the folder"),
    "external, backslashes": (lambda: external("..\\w.bin"), "outside the folder"),
    "external, missing": (lambda: external("gone.bin"), "'gone.bin', which is missing"),
    "external, folder": (lambda: external("folder"), "not a regular file"),
    "external, fifo": (lambda: external("fifo"), "not a regular file"),
    "external, link": (lambda: external("link.bin"), "a link that leaves the folder"),
    "external, hard link": (lambda: external("hard.bin"), "several hard links"),
    "external, link loop": (lambda: external("loop"), "'loop', which is missing"),
    "external, short": (lambda: external("w.bin", offset="8"), "needs bytes 8 to 32 of 'w.bin', which has 24"),
    "external, far": (lambda: external("w.bin", offset="9" * 18), "which has 24"),
    "external, negative": (lambda: external("w.bin", offset="-4"), "the external data offset '-4'"),
    "external, words": (lambda: external("w.bin", length="many"), "the external data length 'many'"),
    "external, wrong length": (
        lambda: external("w.bin", length="20"),
        "needs 24 bytes but its external data says 20",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_bad_model(case: str, tmp_path: Path) -> None:
    build, message = MODELS[case]
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 24)
    (folder / "w.bin").write_bytes(b"\0" * 24)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "hard.bin").hardlink_to(tmp_path / "secret.bin")
    path = folder / "bad.onnx"
    path.write_bytes(build().SerializeToString())
    _refused(path, message)


VALID = parsed(BODY).SerializeToString()

CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "random": (np.random.default_rng(1).bytes(4096), "not an ONNX model"),
    "truncated": (VALID[:-9], "truncated or damaged|has no|does not say"),
    "text": (b"hello, this is no model at all", "not an ONNX model"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS.*git lfs pull",
    ),
    "zip": (b"PK\x03\x04" + b"\0" * 64, "ZIP archive"),
    "gzip": (gzip.compress(VALID, mtime=0), "gzip-compressed"),
    "pickle": (b"\x80\x02}q\x00.", "pickle"),
    "tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 64, "TensorFlow Lite"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web or XML page"),
    "json": (b'{"irVersion": 8}', "JSON"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_not_a_model(case: str, tmp_path: Path) -> None:
    content, message = CONTENTS[case]
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    _refused(path, message)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    _refused(tmp_path / "none.onnx", "No such file")
    _refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe.onnx")
    _refused(tmp_path / "pipe.onnx", "not a regular file")


def test_larger_than_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)
    _refused(path, "more than the 2 GiB.*external data")


def test_every_truncation_is_refused_or_complete(tmp_path: Path) -> None:
    content = weighted(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])).SerializeToString()
    path = tmp_path / "cut.onnx"
    loaded = 0
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        try:
            load_model(path)
        except InputError:
            continue
        loaded += 1
    assert loaded == 0


def _refused(path: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(path)
    error = caught.value
    assert str(path) in error.message
    assert re.search(message, str(error)), str(error)
    assert error.exit_code == ExitCode.BAD_INPUT
    assert "\n" not in error.message
    assert error.hint
