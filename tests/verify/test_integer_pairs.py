"""Sums of products in 16-bit pairs: by their definition, and as ONNX Runtime has them on a processor without VNNI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.verify._integer_pairs import lost
from greencc.verify.integer_engine import IntegerEngine
from greencc.verify.integer_reference import Sums, run_integer

EMULATOR = "qemu-x86_64-static"


def by_definition(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """VPMADDUBSW on each pair, then exact sums."""
    result = np.zeros((len(rows), columns.shape[1]), np.int64)
    for i in range(len(rows)):
        for j in range(columns.shape[1]):
            for k in range(0, rows.shape[1], 2):
                pair = sum(int(rows[i, m]) * int(columns[m, j]) for m in range(k, min(k + 2, rows.shape[1])))
                result[i, j] += min(max(pair, -32768), 32767)
    return result


@pytest.mark.parametrize(
    ("inner", "low", "high"), [(8, -127, 127), (7, -127, 127), (8, 100, 127), (8, -64, 63)]
)
def test_what_saturation_takes_off(inner: int, low: int, high: int) -> None:
    rng = np.random.default_rng(inner + high)
    rows = rng.integers(0, 256, (5, inner)).astype(np.int32)
    columns = rng.integers(low, high + 1, (inner, 6)).astype(np.int32)
    changed = lost(rows, columns)
    assert np.array_equal(rows @ columns + changed, by_definition(rows, columns))
    assert changed.any() == (high > 64), "weights of 7 bits never saturate"


def quantized(op_type: str, *, signed: bool = False, bits: int = 8, **attributes: object) -> onnx.ModelProto:
    """x -> Q/DQ -> one weighted node -> Q/DQ -> y, with large weights; convolutions on 6x6 images."""
    rng = np.random.default_rng(3)
    group = int(attributes.get("group", 1))  # type: ignore[call-overload]
    shape = {"Conv": (12, 12 // group, 3, 3), "MatMul": (24, 10), "Gemm": (10, 24)}[op_type]
    limit = 2 ** (bits - 1)
    codes = rng.integers(-limit + 1, limit, shape).astype(np.int8)
    kind, zero = (np.int8, 3) if signed else (np.uint8, 7)
    tensors = {
        "xs": np.float32(0.02), "xz": kind(zero), "w": codes, "ws": np.float32(0.01), "wz": np.int8(0),
        "ys": np.float32(0.25), "yz": kind(zero),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node(op_type, ["xd", "wd"], ["sum"], name="node", **attributes),
        helper.make_node("QuantizeLinear", ["sum", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    inputs = [2, 12, 6, 6] if op_type == "Conv" else [2, 24]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    # Mostly large values: what the training of a network with Relu6 gives, and what saturates.
    return {"x": np.random.default_rng(5).uniform(1.0, 5.0, shape).astype(np.float32)}


CASES = {
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}),
    "conv-strided": ("Conv", {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 2, 1]}),
    "conv-grouped": ("Conv", {"group": 3}),
    "conv-signed": ("Conv", {"pads": [1, 0, 1, 0], "signed": True}),
    "matmul": ("MatMul", {}),
    "gemm": ("Gemm", {"transB": 1}),
}


@pytest.mark.parametrize("name", ["conv", "matmul", "gemm", "conv-grouped"])
def test_eight_bits_saturate_and_seven_do_not(name: str) -> None:
    op_type, attributes = CASES[name]
    for bits, same in ((8, False), (7, True)):
        proto = quantized(op_type, bits=bits, **attributes)
        model, given = ir.from_proto(proto), feeds(proto)
        exact, pairs = (run_integer(model, given, sums=sums)["y"] for sums in Sums)
        assert np.array_equal(exact, pairs) is same


def test_depthwise_convolutions_do_not_saturate() -> None:
    proto = quantized("Conv", group=12)
    model, given = ir.from_proto(proto), feeds(proto)
    assert np.array_equal(*(run_integer(model, given, sums=sums)["y"] for sums in Sums))


@pytest.mark.parametrize(
    ("mode", "pads"), [("SAME_UPPER", [0, 0, 1, 1]), ("SAME_LOWER", [1, 1, 0, 0]), ("VALID", [0] * 4)]
)
def test_padding_by_name(mode: str, pads: list[int]) -> None:
    """A 6x6 image, a 3x3 kernel, stride 2: one row and one column of padding, or none."""
    named, plain = (
        quantized("Conv", strides=[2, 2], auto_pad=mode),
        quantized("Conv", strides=[2, 2], pads=pads),
    )
    results = [
        run_integer(ir.from_proto(proto), feeds(proto), sums=Sums.PAIRS)["y"] for proto in (named, plain)
    ]
    assert np.array_equal(*results)


def test_as_an_engine() -> None:
    proto = quantized("MatMul")
    model, given = ir.from_proto(proto), feeds(proto)
    engine = IntegerEngine(model, Sums.PAIRS)
    assert [spec.name for spec in engine.inputs] == ["x"]
    assert np.array_equal(engine.run(given)["y"], run_integer(model, given, sums=Sums.PAIRS)["y"])
    engine.close()


SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
for name in json.loads(sys.argv[2]):
    session = ort.InferenceSession(f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    np.save(f"{name}.out.npy", session.run(None, {"x": np.load(f"{name}.npy")})[0])
"""


@pytest.mark.full
def test_it_is_what_onnxruntime_computes_without_vnni(tmp_path: Path) -> None:
    """ONNX Runtime under an emulated Zen 2, bit for bit."""
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        pytest.skip(f"{EMULATOR} is not installed: apt-get install qemu-user-static")
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 packages are here")
    protos = {name: quantized(op_type, **attributes) for name, (op_type, attributes) in CASES.items()}
    for name, proto in protos.items():
        onnx.save(proto, tmp_path / f"{name}.onnx")
        np.save(tmp_path / f"{name}.npy", feeds(proto)["x"])
    packages = str(Path(onnxruntime.__file__).parent.parent)
    command = [emulator, "-cpu", "EPYC-Rome", str(Path(sys.executable).resolve()), "-c", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, json.dumps([packages]), json.dumps(list(protos))],
        cwd=tmp_path, timeout=240, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, proto in protos.items():
        expected = run_integer(ir.from_proto(proto), feeds(proto), sums=Sums.PAIRS)["y"]
        assert np.array_equal(np.load(tmp_path / f"{name}.out.npy"), expected), name
