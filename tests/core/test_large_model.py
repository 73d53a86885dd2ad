"""A model beyond protobuf's 2 GiB is loaded, inferred, checked, identified and saved in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

LAYERS = 53
WIDTH = 1024
GIGABYTE = 1_000_000_000

JOB = """
import json, resource, sys
from pathlib import Path
from greencc.core.describe import describe
from greencc.core.model import check_model, digest, infer_shapes, load_model, save_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

start = peak()
source, target = Path(sys.argv[1]), Path(sys.argv[2])
model = load_model(source)
infer_shapes(model)
check_model(model)
facts = describe(model, {"T": 16})
before = digest(model)
files = save_model(model, target)
again = load_model(target)
print(json.dumps({
    "growth": peak() - start,
    "macs": facts.macs,
    "weight_bytes": facts.weight_bytes,
    "files": [str(file) for file in files],
    "same": digest(again) == before,
}))
"""


def write_transformer(folder: Path) -> Path:
    """Attention-free transformer layers: two projections and a wide feed-forward block each.

    The data file is sparse: all weights are zeros that take no space on disk.
    """
    nodes, tensors, offset = [], [], 0

    def weight(name: str, *dims: int) -> str:
        nonlocal offset
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * dims[0] * dims[1]
        for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        offset += length
        tensors.append(tensor)
        return name

    value = "x"
    for layer in range(LAYERS):
        names = [f"{name}{layer}" for name in ("q", "k", "score", "mix", "up", "act", "down")]
        q, k, score, mix, up, act, down = names
        nodes += [
            helper.make_node("MatMul", [value, weight(f"wq{layer}", WIDTH, WIDTH)], [q]),
            helper.make_node("MatMul", [q, weight(f"wk{layer}", WIDTH, WIDTH)], [k]),
            helper.make_node("Softmax", [k], [score], axis=-1),
            helper.make_node("Add", [score, value], [mix]),
            helper.make_node("MatMul", [mix, weight(f"wu{layer}", WIDTH, 5 * WIDTH + 128)], [up]),
            helper.make_node("Relu", [up], [act]),
            helper.make_node("MatMul", [act, weight(f"wd{layer}", 5 * WIDTH + 128, WIDTH)], [down]),
        ]
        value = down
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", "T", WIDTH])],
        tensors,
    )
    path = folder / "large.onnx"
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    with (folder / "weights.bin").open("wb") as stream:
        stream.truncate(offset)
    return path


@pytest.mark.full
def test_memory_of_a_model_beyond_two_gigabytes(tmp_path: Path) -> None:
    source = write_transformer(tmp_path)
    target = tmp_path / "out" / "large.onnx"
    target.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(source), str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    largest = 4 * WIDTH * (5 * WIDTH + 128)
    weights = 4 * LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * (5 * WIDTH + 128))
    assert weights > 2.6 * GIGABYTE
    assert facts["weight_bytes"] == weights
    assert facts["macs"] == 16 * weights // 4
    assert facts["same"]
    assert facts["files"] == [str(target), f"{target}.data"]
    assert target.stat().st_size < 1_000_000
    assert Path(f"{target}.data").stat().st_size == weights
    # The budget is 1.5 GB over the largest tensor; streaming needs a small part of it.
    assert facts["growth"] < 0.2 * GIGABYTE + largest
    onnx.checker.check_model(str(target))
