"""Weight-only INT8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import UsageError
from greencc.core.model import check_model, infer_shapes, load_model, save_model
from greencc.passes._block_quantize import BlockWeight, Grid, nearest
from greencc.passes.quantize_weights import QuantizeWeights, WeightForm

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


ORT = frozenset(
    {
        "com.microsoft::MatMulNBits",
        "com.microsoft::MatMulNBits:8",
        "com.microsoft::GatherBlockQuantized",
        "com.microsoft::GatherBlockQuantized:8",
        "ai.onnx::DequantizeLinear:int4",
    }
)
STANDARD = frozenset({"ai.onnx::DequantizeLinear:int4"})


def context(kit: Any, operators: frozenset[str] = ORT, limit: int | None = None) -> Any:
    ctx = kit.context(None, limit)
    return replace(ctx, capabilities=replace(ctx.capabilities, fused_ops=operators))


def rounded(matrix: Any, step: QuantizeWeights, packed: bool = False) -> Any:
    search = step.search and step.bits == 4
    grid = Grid(step.bits, step.block_size, step.symmetric, search, negative=packed and search)
    weight: BlockWeight = nearest(matrix, grid)
    return weight.dequantize()


ALL_PRODUCTS = """
g (float[N, T, 72] x, float[N, 72] v) => (float[N, T, 24] y, float[N, 24] z, float[N, 24] u) {
  y = MatMul (x, w)
  z = Gemm <transB=1> (v, t, row)
  u = Gemm (v, w, matrix)
}"""


@pytest.mark.parametrize("operators", [ORT, STANDARD])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 64), (4, 128), (8, 16), (8, 32)])
def test_both_forms_are_what_numpy_dequantizes(
    kit: Any, parse: Any, random: Any, operators: frozenset[str], symmetric: bool, bits: int, block: int
) -> None:
    """72 inputs are no multiple of any block size but 8; `w` is shared by two products."""
    weights = {"w": random(72, 24), "t": random(24, 72), "row": random(24), "matrix": random(1, 24)}
    model = parse(ALL_PRODUCTS, opset=21, **weights)
    step = QuantizeWeights(
        bits=bits, block_size=block, symmetric=symmetric, min_elements=1000, accuracy_level=0
    )
    outcome = step.apply(model, context(kit, operators))
    assert outcome.changed == 2
    kinds = [node.op_type for node in model.graph if node.op_type != "Add"]
    if operators is ORT:
        assert kinds == ["MatMulNBits"] * 3
        assert not any("accuracy_level" in finding.message for finding in outcome.findings)
        # The row is an input of MatMulNBits, the matrix is added.
        assert sum(node.op_type == "Add" for node in model.graph) == 1
    else:
        assert sorted(kinds) == ["DequantizeLinear"] * 2 + ["Gemm"] * 2 + ["MatMul"]
    infer_shapes(model)
    check_model(model)
    x, v = random(2, 3, 72), random(5, 72)
    w = rounded(weights["w"].T, step, operators is ORT).T
    t = rounded(weights["t"], step, operators is ORT)
    expected = [x @ w, v @ t.T + weights["row"], v @ w + weights["matrix"]]
    got = kit.run_as_written(model, {"x": x, "v": v}, ["y", "z", "u"])
    for array, name in zip(expected, "yzu", strict=True):
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operators", [ORT, STANDARD])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_tables_in_blocks(
    kit: Any, parse: Any, random: Any, operators: frozenset[str], symmetric: bool, bits: int
) -> None:
    table = random(50, 72)
    model = parse("g (int64[N, T] i) => (float[N, T, 72] y) { y = Gather (table, i) }", table=table, opset=21)
    step = QuantizeWeights(bits=bits, block_size=32, symmetric=symmetric, min_elements=1)
    assert step.apply(model, context(kit, operators)).changed == 1
    kinds = {node.op_type for node in model.graph}
    expected = {"GatherBlockQuantized"} if operators is ORT else {"Gather", "DequantizeLinear"}
    assert kinds == expected
    infer_shapes(model)
    check_model(model)
    ids = np.arange(50).reshape(5, 10)
    got = kit.run(model, {"i": ids})[0]
    np.testing.assert_allclose(got, rounded(table, step, operators is ORT)[ids], rtol=1e-6, atol=1e-6)
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize("operators", [ORT, STANDARD])
@pytest.mark.parametrize("columns", [64, 72])
def test_tied_embeddings(kit: Any, parse: Any, random: Any, operators: frozenset[str], columns: int) -> None:
    table = random(50, columns)
    model = parse(
        f"""
        g (int64[N] i, float[M, {columns}] h) => (float[N, {columns}] e, float[M, 50] y) {{
          e = Gather (table, i)
          y = Gemm <transB=1> (h, table)
        }}""",
        table=table,
        opset=21,
    )
    step = QuantizeWeights(bits=4, block_size=32, min_elements=1, accuracy_level=0)
    assert step.apply(model, context(kit, operators)).changed == 1
    infer_shapes(model)
    check_model(model)
    kept = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if operators is ORT and columns == 64:
        # One copy of the codes, two of the scales.
        assert kept < 50 * columns // 2 + 2 * 4 * 50 * 2 + 20
    feeds = {"i": np.array([3, 49, 0]), "h": random(4, columns)}
    got = kit.run_as_written(model, feeds, ["e", "y"])
    values = rounded(table, step, operators is ORT)
    np.testing.assert_allclose(got["e"], values[feeds["i"]], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["y"], feeds["h"] @ values.T, rtol=1e-4, atol=1e-4)


def test_four_bits_per_channel_and_saved_to_a_file(kit: Any, parse: Any, random: Any, tmp_path: Path) -> None:
    weights = {"k": random(6, 3, 3, 3), "d": random(3, 5, 2, 2), "w": random(31, 7)}
    text = """
    g (float[N, 3, 8, 8] x, float[N, 31] v) => (float[N, 6, 6, 6] a, float[N, 5, 9, 9] b, float[N, 7] c) {
      a = Conv (x, k)
      b = ConvTranspose (x, d)
      c = MatMul (v, w)
    }"""
    for symmetric in (True, False):
        model = parse(text, opset=21, **weights)
        step = QuantizeWeights(
            ops=("Conv", "ConvTranspose", "MatMul"), bits=4, min_elements=1, symmetric=symmetric
        )
        outcome = step.apply(model, context(kit))
        assert outcome.changed == 3
        assert any("2 convolutions or tables only store" in finding.message for finding in outcome.findings)
        kinds = {value.const_value.dtype.name for value in model.graph.initializers.values()}
        assert kinds == {"FLOAT", "INT4" if symmetric else "UINT4"}
        assert model.ir_version >= 10
        save_model(model, tmp_path / "four.onnx")
        feeds = {"x": random(2, 3, 8, 8), "v": random(2, 31)}
        got = kit.run_as_written(load_model(tmp_path / "four.onnx"), feeds, ["a", "b", "c"])
        # Convolutions rounded to nearest keep the range that holds all their weights.
        plain = replace(step, search=False)
        moved = rounded(np.moveaxis(weights["d"], 1, 0).reshape(5, -1), plain).reshape(5, 3, 2, 2)
        floats = {
            "k": rounded(weights["k"].reshape(6, -1), plain).reshape(6, 3, 3, 3),
            "d": np.ascontiguousarray(np.moveaxis(moved, 0, 1)),
            "w": np.ascontiguousarray(rounded(weights["w"].T, step).T),
        }
        expected = kit.run_as_written(parse(text, opset=21, **floats), feeds, ["a", "b", "c"])
        for name in "abc":
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_broken_blocks_stay_right(kit: Any, parse: Any, random: Any) -> None:
    """A block of zeros, a huge outlier, and weights that are not finite."""
    weight = random(64, 8)
    weight[:32, 0] = 0.0
    weight[40, 1] = 3e38
    bad = random(64, 8)
    bad[3, 3] = -np.inf
    model = parse(
        "g (float[N, 64] x) => (float[N, 8] y, float[N, 8] z) { y = MatMul (x, w)  z = MatMul (x, bad) }",
        w=weight,
        bad=bad,
    )
    step = QuantizeWeights(bits=4, block_size=32, min_elements=1, accuracy_level=0)
    outcome = step.apply(model, context(kit))
    assert outcome.changed == 1
    assert "weight 'bad': it is not finite" in outcome.findings[0].message
    x = np.zeros((1, 64), np.float32)
    x[0, :32] = random(32)
    got = kit.run_as_written(model, {"x": x}, ["y"])["y"]
    np.testing.assert_allclose(got, x @ rounded(weight.T, step, packed=True).T, rtol=1e-4, atol=1e-4)
    assert got[0, 0] == 0.0


def test_refusals_say_what_to_do(kit: Any, parse: Any, random: Any) -> None:
    text = """
    g (float[N, 64] x, float[64] v, int64[N] i) => (float[N, 64] y, float[K] z, float[N, 64] e) {
      y = MatMul (x, w)
      z = MatMul (v, w2)
      e = Gather (t, i)
    }"""
    weights = {"w": random(64, 64), "w2": random(64, 64), "t": random(64, 64)}

    def reasons(step: QuantizeWeights, operators: frozenset[str], opset: int) -> dict[str, str]:
        outcome = step.apply(parse(text, opset=opset, **weights), context(kit, operators))
        left = [finding.message for finding in outcome.findings if finding.kind == "left-in-float"]
        assert len(left) + outcome.changed == 3
        return {message.split("'")[1]: message for message in left}

    blocks = QuantizeWeights(bits=4, block_size=32, min_elements=1)
    old = reasons(blocks, ORT, 17)
    assert set(old) == {"w2"}
    assert "run upgrade-opset with target = 21 and below = 21" in old["w2"]
    assert set(reasons(blocks, ORT, 21)) == set()
    assert set(reasons(replace(blocks, form=WeightForm.DEQUANTIZE), ORT, 17)) == {"w", "w2", "t"}
    assert "no DequantizeLinear for 4-bit" in reasons(blocks, frozenset(), 21)["w"]
    only = reasons(replace(blocks, form=WeightForm.MATMUL_NBITS), ORT, 21)
    assert set(only) == {"w2"}
    assert "vector" in only["w2"]
    none = reasons(replace(blocks, form=WeightForm.MATMUL_NBITS, bits=8), STANDARD, 21)
    assert "the target has no MatMulNBits for 8 bits" in none["w"]
    assert set(none) == {"w", "w2"}
    assert "need a block size" in reasons(replace(blocks, block_size=0), ORT, 21)["t"]


def test_stacked_weights_and_shared_layouts(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[2, N, 32] x, int64[N] i) => (float[2, N, 32] y, float[N, 32] e, float[2, N, 32] z) {
          y = MatMul (x, stacked)
          e = Gather (tied, i)
          z = MatMul (x, tied)
        }""",
        stacked=random(2, 32, 32),
        tied=random(32, 32),
    )
    step = QuantizeWeights(bits=4, block_size=32, min_elements=1)
    outcome = step.apply(model.clone(), context(kit))
    assert outcome.changed == 0
    assert "stacked" in outcome.findings[0].message
    assert "different axes" in outcome.findings[1].message
    # One scale per output channel and column fits both.
    assert QuantizeWeights(min_elements=1).apply(model, context(kit)).changed == 2


def test_accuracy_level_is_written_and_noted(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=random(64, 8))
    x = random(7, 64)
    expected = kit.run(model, {"x": x})[0]
    errors = {}
    for level in (0, 1, 4):
        candidate = model.clone()
        step = QuantizeWeights(bits=8, block_size=32, min_elements=1, accuracy_level=level)
        outcome = step.apply(candidate, context(kit))
        node = next(iter(candidate.graph))
        assert node.attributes["accuracy_level"].as_int() == level
        assert any("accuracy_level 4" in finding.message for finding in outcome.findings) == (level == 4)
        errors[level] = float(
            np.max(np.abs(kit.run(candidate, {"x": x})[0] - expected)) / np.max(np.abs(expected))
        )
    assert max(errors.values()) < 0.02


def test_options_are_checked() -> None:
    for options, message in (
        ({"bits": 5}, "bits is 5"),
        ({"block_size": 48}, "block_size is 48"),
        ({"accuracy_level": 2}, "accuracy_level is 2"),
        ({"form": WeightForm.MATMUL_NBITS}, "block_size is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            QuantizeWeights(**options)  # type: ignore[arg-type]


def test_a_second_run_and_limits(kit: Any, parse: Any, random: Any) -> None:
    weights = {"w": random(72, 24), "t": random(24, 72), "row": random(24), "matrix": random(1, 24)}
    model = parse(ALL_PRODUCTS, opset=17, **weights)
    step = QuantizeWeights(bits=4, block_size=32, min_elements=1000)
    limited = context(kit, limit=1)
    assert step.apply(model.clone(), limited).changed == 1
    assert len(limited.rewrites.applied) == 1
    assert step.apply(model, context(kit)).changed == 2
    assert step.apply(model, context(kit)).changed == 0


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
