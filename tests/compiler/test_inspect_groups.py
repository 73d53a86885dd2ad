"""The table of prune groups: what hangs on a channel is what a real cut takes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler.inspect_groups import GroupLink, GroupTable, prune_groups, table_of
from greencc.core.describe import describe
from greencc.core.errors import InputError
from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes, load_model


def residual(folder: Path) -> Path:
    """stem -> (c1 -> c2) + shortcut -> c3 with the stem's own channels on both sides -> head."""
    rng = np.random.default_rng(0)
    weights = []

    def conv(
        name: str, source: str, outs: int, ins: int, kernel: int, bias: bool = True
    ) -> list[onnx.NodeProto]:
        shape = (outs, ins, kernel, kernel)
        weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"{name}_w"))
        inputs = [source, f"{name}_w"]
        if bias:
            weights.append(numpy_helper.from_array(rng.standard_normal(outs).astype(np.float32), f"{name}_b"))
            inputs.append(f"{name}_b")
        return [
            helper.make_node("Conv", inputs, [f"{name}_y"], name=name, pads=[kernel // 2] * 4),
        ]

    nodes = [
        *conv("stem", "x", 8, 3, 3),
        helper.make_node("Relu", ["stem_y"], ["s"], name="relu"),
        *conv("c1", "s", 6, 8, 1),
        helper.make_node("Relu", ["c1_y"], ["a"], name="relu1"),
        *conv("c2", "a", 8, 6, 3, bias=False),
        helper.make_node("Add", ["c2_y", "s"], ["r"], name="join"),
        *conv("c3", "r", 8, 8, 3),
        helper.make_node("Add", ["c3_y", "r"], ["r2"], name="join2"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc_w"], ["y"], name="fc"),
    ]
    weights.append(numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "fc_w"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    path = folder / "residual.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    found = load_model(residual(tmp_path))
    infer_shapes(found)
    return found


def sample() -> dict[str, np.ndarray]:
    return {"x": np.zeros((1, 3, 10, 10), np.float32)}


@pytest.mark.parametrize("count", [1, 3])
def test_a_cut_takes_what_the_table_says(model: ir.Model, count: int) -> None:
    table = table_of(model, analyse(model), sample())
    assert [row.name for row in table.groups if row.reason is None] == ["stem", "c1"]
    for row in table.groups:
        if row.reason is not None:
            continue
        smaller = model.clone()
        cut(smaller, analyse(smaller), {row.name: range(count)})
        infer_shapes(smaller)
        after = describe(smaller)
        lost = table.params - after.params
        assert table.macs is not None
        assert after.macs is not None
        assert row.macs is not None
        if count == 1:
            assert (lost, table.macs - after.macs) == (row.params, row.macs)
        else:
            # Rows and columns of c3 cross, so three channels take less than thrice one.
            assert lost <= count * row.params
    (stem,) = (row for row in table.groups if row.name == "stem")
    assert (stem.channels, stem.width, stem.kind) == (8, 1, "channels")
    # All of its channels are all there is but the bias of c1.
    assert stem.params_share == pytest.approx((table.params - 6) / table.params)
    assert stem.macs_share == pytest.approx(1.0)


def test_layers_join_groups(model: ir.Model) -> None:
    table = table_of(model, analyse(model), sample())
    assert table.links == (
        GroupLink("stem", "c1", "c1"),
        GroupLink("c1", "stem", "c2"),
        GroupLink("stem", "stem", "c3"),
        GroupLink("stem", "fc", "fc"),
    )
    (fc,) = (row for row in table.groups if row.name == "fc")
    assert fc.reason is not None
    assert "output" in fc.reason


def test_groups_are_found_after_the_clean_up(tmp_path: Path) -> None:
    """A BatchNormalization after a convolution is folded first: its parameters are no tensors of the group."""
    path = residual(tmp_path)
    proto = onnx.load(path)
    ones = numpy_helper.from_array(np.full(8, 2.0, np.float32), "two")
    proto.graph.initializer.append(ones)
    node = helper.make_node("BatchNormalization", ["stem_y", "two", "two", "two", "two"], ["bn"], name="bn")
    proto.graph.node.insert(1, node)
    proto.graph.node[2].input[0] = "bn"
    onnx.save(proto, path)
    table = prune_groups(path, "cpu:threads=1")
    assert isinstance(table, GroupTable)
    assert table.groups[0].name == "stem"
    assert table.groups[0].tensors == 7
    assert table.params == describe(load_model(residual(tmp_path))).params


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError):
        prune_groups(path)
