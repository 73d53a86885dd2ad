"""Weight-only INT8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import UsageError
from greencc.passes.quantize_weights import QuantizeWeights

TEXT = """
lm (int64[N, T] ids) => (float[N, T, 50] y) {
  e = Gather (table, ids)
  h = MatMul (e, w1)
  g = Tanh (h)
  y = MatMul (g, w2)
}"""


@pytest.fixture
def model(parse: Any, random: Any) -> Any:
    return parse(TEXT, table=random(100, 32), w1=random(32, 64, scale=0.1), w2=random(64, 50, scale=0.1))


def test_products_and_tables(kit: Any, model: Any) -> None:
    ids = {"ids": np.random.default_rng(0).integers(0, 100, (4, 7))}
    expected = kit.run(model, ids)[0]
    size = kit.save(model, "before.onnx").stat().st_size
    names = {value.name for node in model.graph for value in node.outputs}
    outcome = QuantizeWeights(min_elements=1000).apply(model, kit.context(None))
    assert outcome.changed == 3
    assert not outcome.findings
    assert kit.save(model, "after.onnx").stat().st_size < 0.35 * size
    assert names <= {value.name for node in model.graph for value in node.outputs}
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.outputs[0].dtype is ir.DataType.INT8
    got = kit.run(model, ids)[0]
    assert np.max(np.abs(got - expected)) < 0.02 * np.max(np.abs(expected))


def test_table_rows_are_exactly_the_dequantized_ones(kit: Any, parse: Any, random: Any) -> None:
    table = random(50, 8) * np.geomspace(1e-3, 1e3, 8, dtype=np.float32)
    model = parse("g (int64[N] i) => (float[N, 8] y) { y = Gather (t, i) }", t=table)
    QuantizeWeights(min_elements=1).apply(model, kit.context(None))
    ids = np.arange(50)
    scale = np.abs(table).max(0) / np.float32(127)
    got = kit.run(model, {"i": ids})[0]
    np.testing.assert_allclose(got, np.rint(table / scale) * scale, rtol=1e-6)
    assert model.graph.outputs[0].name == "y"


def test_what_stays_in_float_is_named(kit: Any, parse: Any, random: Any) -> None:
    weight = random(32, 32)
    broken = random(32, 32)
    broken[0, 0] = np.nan
    model = parse(
        """
        g (float[N, 32] x) => (float[N, 32] y) {
          a = MatMul (x, shared)
          t = Transpose (shared)
          b = MatMul (a, t)
          c = MatMul (b, broken)
          d = MatMul (c, kept)
          e = MatMul (d, both)
          y = Gemm <transB=1> (e, both)
        }""",
        shared=weight,
        broken=broken,
        kept=random(32, 32),
        both=random(32, 32),
    )
    name = next(str(node.name) for node in model.graph if node.outputs[0].name == "d")
    outcome = QuantizeWeights(min_elements=1, exclude=(name,)).apply(model, kit.context(None))
    assert outcome.changed == 0
    reasons = {finding.message.split("'")[1]: finding.message for finding in outcome.findings}
    assert "Transpose" in reasons["shared"]
    assert "not finite" in reasons["broken"]
    assert "excluded" in reasons["kept"]
    assert "different axes" in reasons["both"]


def test_small_weights_old_opsets_and_limits(kit: Any, model: Any, parse: Any, random: Any) -> None:
    assert QuantizeWeights().apply(model.clone(), kit.context(None)).changed == 0
    assert QuantizeWeights(min_elements=1).apply(model.clone(), kit.context(None, limit=2)).changed == 2
    old = parse("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", opset=12, w=random(4, 4))
    outcome = QuantizeWeights(min_elements=1).apply(old, kit.context(None))
    assert outcome.changed == 0
    assert "upgrade-opset" in outcome.findings[0].message
    with pytest.raises(UsageError, match="'Relu'"):
        QuantizeWeights(ops=("Relu",))


def test_external_weights_are_not_changed(kit: Any, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    ir.save(model, path, external_data="big.data", size_threshold_bytes=0)
    before = (tmp_path / "big.data").read_bytes()
    loaded = ir.load(path)
    clone = loaded.clone()
    assert QuantizeWeights(min_elements=1).apply(clone, kit.context(None)).changed == 3
    assert (tmp_path / "big.data").read_bytes() == before
    # The clone released the mapping it shared with the original, which maps itself again.
    np.testing.assert_array_equal(
        loaded.graph.initializers["w1"].const_value.numpy(),
        model.graph.initializers["w1"].const_value.numpy(),
    )


@pytest.mark.full
def test_peak_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    """32 weights of 16 MB from disk: 512 MB of float32 must never be in memory together."""
    import subprocess
    import sys

    weights = np.memmap(tmp_path / "w.data", np.float32, "w+", shape=(32, 2048, 2048))
    weights[:] = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    weights.flush()
    script = """
import resource, sys
import numpy as np, onnx_ir as ir
from greencc.core.capabilities import Capabilities
from greencc.core.passes import Context
from greencc.passes.quantize_weights import QuantizeWeights
x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 2048]))
nodes, values, current = [], [], x
for index in range(32):
    tensor = ir.ExternalTensor("w.data", index * 2048 * 2048 * 4, 2048 * 2048 * 4, ir.DataType.FLOAT,
        shape=ir.Shape([2048, 2048]), name=f"w{index}", base_dir=sys.argv[1])
    values.append(ir.Value(name=f"w{index}", type=ir.TensorType(ir.DataType.FLOAT), shape=tensor.shape,
        const_value=tensor))
    nodes.append(ir.node("MatMul", [current, values[-1]], name=f"n{index}"))
    current = nodes[-1].outputs[0]
    current.name = f"y{index}"
graph = ir.Graph([x], [current], nodes=nodes, initializers=values, opset_imports={"": 17}, name="g")
model = ir.Model(graph, ir_version=8)
facts = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), False)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
changed = QuantizeWeights().apply(model, Context(facts, None, [])).changed
print(changed, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    changed, grown = map(int, result.stdout.split())
    assert changed == 32
    # 128 MB of INT8, one float tensor, the block's temporaries.
    assert grown < 128 + 16 + 80
