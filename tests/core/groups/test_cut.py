"""The cut itself: tensors are read once, mapped files are let go, clones keep theirs; labels on their own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.groups import Role, analyse, cut
from greencc.core.groups.labels import Labels


def _model(graph: Any) -> ir.Model:
    g = graph()
    x = g.op(
        "Conv", g.input("x", [1, 3, 4, 4]), g.random(8, 3, 1, 1, name="w1"), g.random(8, name="b1"), name="a"
    )
    x = g.op("Relu", g.op("Conv", x, g.random(6, 8, 1, 1, name="w2"), name="b"))
    return g.model(g.op("Conv", x, g.random(2, 6, 1, 1, name="w3"), name="c"))


def test_a_clone_keeps_its_weights(graph) -> None:
    model = _model(graph)
    clone = model.clone()
    cut(clone, analyse(clone), {"a": [0, 7], "b": [3]})
    shapes = {name: tuple(value.const_value.shape) for name, value in clone.graph.initializers.items()}
    assert shapes == {"w1": (6, 3, 1, 1), "b1": (6,), "w2": (5, 6, 1, 1), "w3": (2, 5, 1, 1)}
    assert tuple(model.graph.initializers["w2"].const_value.shape) == (6, 8, 1, 1)
    old, new = (m.graph.initializers["w2"].const_value.numpy() for m in (model, clone))
    np.testing.assert_array_equal(new, old[[0, 1, 2, 4, 5]][:, 1:7])


def test_the_sites_of_a_group(graph) -> None:
    structure = analyse(_model(graph))
    group = structure.groups[0]
    assert [(site.tensor, site.axis, site.role) for site in group.sites] == [
        ("w1", 0, Role.PRODUCER),
        ("b1", 0, Role.PARAMETER),
        ("w2", 1, Role.CONSUMER),
    ]
    assert [(reader.node, reader.axis) for reader in group.readers] == [("b", 1)]
    assert group.having(Role.PARAMETER)[0].positions.tolist() == [[i] for i in range(8)]


def test_analysis_reads_no_weights_and_a_cut_reads_each_once(graph) -> None:
    reads: dict[str, int] = {}

    class Counted(ir.Tensor):
        def numpy(self) -> Any:
            reads[str(self.name)] = reads.get(str(self.name), 0) + 1
            return super().numpy()

    model = _model(graph)
    for name, value in model.graph.initializers.items():
        value.const_value = Counted(value.const_value.numpy(), name=name)
    structure = analyse(model)
    assert reads == {}
    cut(model, structure, {"a": [1], "b": [2]})
    assert reads == {"w1": 1, "b1": 1, "w2": 1, "w3": 1}


def test_memory_mapped_weights_are_let_go(graph, tmp_path) -> None:
    model = _model(graph)
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "model.onnx")
    tensors = {name: value.const_value for name, value in loaded.graph.initializers.items()}
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors.values())
    cut(loaded, analyse(loaded), {"a": [1]})
    assert all(tensor.raw is None for tensor in tensors.values())
    np.testing.assert_array_equal(
        loaded.graph.initializers["w1"].const_value.numpy(),
        np.delete(model.graph.initializers["w1"].const_value.numpy(), 1, axis=0),
    )


def test_element_types_stay(graph) -> None:
    """Half precision of both kinds, which NumPy does not know by itself."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        model = _model(graph)
        for name, value in model.graph.initializers.items():
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype), name=name)
        before = {name: value.const_value.dtype for name, value in model.graph.initializers.items()}
        cut(model, analyse(model), {"a": [1, 2]})
        assert {name: value.const_value.dtype for name, value in model.graph.initializers.items()} == before


def test_shapes_of_values_follow(graph) -> None:
    """Also those that inference does not know: of operators of other domains."""
    g = graph()
    x = g.op("MatMul", g.input("x", [2, 5, 4]), g.random(4, 8), name="product")
    x = g.op("QuickGelu", x, domain="com.microsoft", name="gelu")
    g.declared[x] = [2, 5, 8]
    model = g.model(g.op("MatMul", x, g.random(8, 2)))
    cut(model, analyse(model), {"product": [0, 1, 2]})
    node = next(node for node in model.graph if node.name == "gelu")
    assert node.outputs[0].shape == [2, 5, 5]


class _Naive:
    """Sets of labels, united one pair after another."""

    def __init__(self, count: int) -> None:
        self.sets = [{i} for i in range(count)]

    def unite(self, a: int, b: int) -> None:
        union = self.sets[a] | self.sets[b]
        for item in union:
            self.sets[item] = union


@settings(max_examples=100)
@given(
    count=st.integers(1, 20),
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=8), max_size=8
    ),
    locked=st.lists(st.integers(0, 19), max_size=3),
)
def test_labels_are_united_like_sets(count, steps, locked) -> None:
    labels, naive = Labels(), _Naive(count)
    every = labels.fresh(count)
    for step in steps:
        pairs = np.array(step, np.int64) % count
        labels.unite(pairs[:, 0], pairs[:, 1])
        for a, b in pairs.tolist():
            naive.unite(a, b)
    for number, item in enumerate(locked):
        labels.lock(np.array([item % count]), f"lock {number}")
    roots = labels.roots(every)
    for item in range(count):
        assert set(np.flatnonzero(roots == roots[item]).tolist()) == naive.sets[item]
        reasons = [f"lock {n}" for n, lock in enumerate(locked) if lock % count in naive.sets[item]]
        assert labels.reason(int(roots[item])) == (reasons[0] if reasons else None)
