"""A 2.7 GB external-data transformer goes through clean-up and weight quantization in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

LAYERS = 53
WIDTH = 1024
HIDDEN = 5 * WIDTH + 128
GIGABYTE = 1_000_000_000

JOB = """
import json, re, sys, threading, time
from pathlib import Path
import numpy as np
from greencc.core.model import infer_shapes, load_model
from greencc.core.passes import Context
from greencc.core.pipeline import Pipeline
from greencc.passes import QuantizeWeights, default_cleanup
from greencc.targets import make_target

def anonymous():
    # Pages of mapped files can be dropped at any time; what counts is memory that nothing backs.
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

start = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
target = make_target("cpu")
model = load_model(Path(sys.argv[1]))
infer_shapes(model)
feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, int(sys.argv[3]))).astype(np.float32)}
ctx = Context(target.capabilities(), target.reference, [feeds])
model, records = Pipeline(ctx).run(model, (*default_cleanup(ctx.capabilities), QuantizeWeights()))
artifact = target.build(target.lower(model), Path(sys.argv[2]))
done.set()
watcher.join()
print(json.dumps({
    "growth": max(peak, anonymous()) - start,
    "size": sum(file.stat().st_size for file in artifact.parent.iterdir()),
    "quantized": records[-1].changed,
    "error": records[-1].error,
    "rolled_back": [record.name for record in records if record.rolled_back],
}))
"""


def write_transformer(folder: Path) -> Path:
    """Transformer-like layers with distinct random weights, 2.7 GB in one external data file."""
    nodes, tensors, offset = [], [], 0
    block = np.random.default_rng(0).normal(scale=0.02, size=WIDTH * HIDDEN).astype(np.float32)
    with (folder / "weights.bin").open("wb") as stream:

        def weight(name: str, *dims: int) -> str:
            nonlocal offset
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
            tensor.data_location = TensorProto.EXTERNAL
            length = 4 * dims[0] * dims[1]
            for key, value in (("location", "weights.bin"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            # A rotation makes every tensor different, or common subexpressions would be merged.
            stream.write(np.roll(block, len(tensors) * 977)[: dims[0] * dims[1]].tobytes())
            offset += length
            tensors.append(tensor)
            return name

        value = "x"
        for layer in range(LAYERS):
            names = [f"{name}{layer}" for name in ("q", "k", "score", "mix", "up", "act", "down", "out")]
            q, k, score, mix, up, act, down, out = names
            nodes += [
                helper.make_node("MatMul", [value, weight(f"wq{layer}", WIDTH, WIDTH)], [q]),
                helper.make_node("MatMul", [q, weight(f"wk{layer}", WIDTH, WIDTH)], [k]),
                helper.make_node("Softmax", [k], [score], axis=-1),
                helper.make_node("Add", [score, value], [mix]),
                helper.make_node("MatMul", [mix, weight(f"wu{layer}", WIDTH, HIDDEN)], [up]),
                helper.make_node("Relu", [up], [act]),
                helper.make_node("MatMul", [act, weight(f"wd{layer}", HIDDEN, WIDTH)], [down]),
                helper.make_node("Tanh", [down], [out]),
            ]
            value = out
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", "T", WIDTH])],
        tensors,
    )
    path = folder / "large.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.full
def test_clean_up_and_weight_quantization_beyond_two_gigabytes(tmp_path: Path) -> None:
    source = write_transformer(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(source), str(tmp_path / "out"), str(WIDTH)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    weights = 4 * LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    assert weights > 2.6 * GIGABYTE
    assert facts["quantized"] == 4 * LAYERS
    assert facts["rolled_back"] == []
    assert 0.0 < facts["error"] < 0.1
    assert facts["size"] < 0.26 * weights
    assert facts["growth"] < 1.5 * GIGABYTE + 4 * WIDTH * HIDDEN
