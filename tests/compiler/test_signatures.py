"""Operation signatures and the joint models that they are measured in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.compiler.micro import BALLAST, ballast, joint_model, operand_bytes, split, working_set
from greencc.compiler.signatures import Absorbed, Operand, Signature, signatures
from greencc.core.data import Feeds
from greencc.core.graph import ensure_names
from greencc.core.model import check_model, infer_shapes
from greencc.core.shapes import bind_dims
from greencc.targets import CpuTarget

from .conftest import SIZE, detector

BODY = """
    c1 = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w3, b8)
    r1 = Relu (c1)
    c2 = Conv <group = 2, pads = [1, 1, 1, 1]> (r1, v3, b8)
    r2 = Relu (c2)
    c3 = Conv (r2, w1)
    s3 = Sigmoid (c3)
    m3 = Mul (c3, s3)
    c4 = Conv (m3, w1)
    k4 = Clip (c4, zero, six)
    c5 = Conv (k4, w1)
    a5 = Add (c5, k4)
    p = GlobalAveragePool (a5)
    f = Flatten (p)
    t = MatMul (f, wm)
    u = Add (t, bm)
    h = HardSwish (u)
    y = Gemm <transB = 1> (h, wg, bg)
"""
WEIGHTS = {
    "w3": (8, 4, 3, 3), "v3": (8, 4, 3, 3), "b8": (8,), "w1": (8, 8, 1, 1), "wm": (8, 6), "bm": (6,),
    "wg": (3, 6), "bg": (3,),
}  # fmt: skip


def network(opset: int = 17, batch: str = "n", body: str = BODY) -> ir.Model:
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{batch}, 8, 6, 6] x) => (float[{batch}, 3] y)'
        f"{{{body}}}"
    )
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in WEIGHTS.items()}
    arrays |= {"zero": np.float32(0), "six": np.float32(6)}
    named = {
        value.name: value
        for node in model.graph
        for value in node.inputs
        if value is not None and value.name in arrays
    }
    for name, value in named.items():
        tensor = ir.tensor(np.asarray(arrays[str(name)]), name=name)
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
        model.graph.register_initializer(value)
    ensure_names(model)
    infer_shapes(model)
    return model


FEEDS: Feeds = {"x": np.zeros((1, 8, 6, 6), np.float32)}


def older() -> dict[str, Signature]:
    """At an opset without HardSwish."""
    return signatures(network(12, body=BODY.replace("HardSwish", "Relu")), FEEDS)


@pytest.fixture
def named() -> dict[str, Signature]:
    return signatures(network(), FEEDS)


def test_every_weighted_node_has_one_with_what_its_kernel_absorbs(named: dict[str, Signature]) -> None:
    assert list(named) == ["Conv_c1", "Conv_c2", "Conv_c3", "Conv_c4", "Conv_c5", "MatMul_t", "Gemm_y"]
    absorbed = {
        name: [(item.op_type, item.gated) for item in found.absorbed] for name, found in named.items()
    }
    assert absorbed == {
        "Conv_c1": [("Relu", False)],
        "Conv_c2": [("Relu", False)],
        "Conv_c3": [("Sigmoid", True)],
        "Conv_c4": [("Clip", False)],
        "Conv_c5": [],
        "MatMul_t": [("Add", False), ("HardSwish", False)],
        "Gemm_y": [],
    }
    (clip,) = named["Conv_c4"].absorbed
    assert [operand.values for operand in clip.operands if operand] == [(0.0,), (6.0,)]


def test_equal_patterns_share_a_signature_whatever_the_weights(named: dict[str, Signature]) -> None:
    assert named["Conv_c1"] == named["Conv_c2"]
    assert named["Conv_c1"].text == named["Conv_c2"].text
    others = [named[name] for name in ("Conv_c1", "Conv_c3", "Conv_c4", "Conv_c5")]
    assert len(set(others)) == 4


def test_shapes_are_those_of_the_feeds_and_open_sizes_are_told(named: dict[str, Signature]) -> None:
    first = named["Conv_c1"].operands[0]
    assert first == Operand("FLOAT", (1, 8, 6, 6), constant=False, open_axes=(0,))
    fixed = signatures(network(batch="1"), FEEDS)["Conv_c1"].operands[0]
    assert fixed == Operand("FLOAT", (1, 8, 6, 6), constant=False)
    four = signatures(network(), {"x": np.zeros((4, 8, 6, 6), np.float32)})
    assert four["Gemm_y"].operands[0] == Operand("FLOAT", (4, 6), constant=False, open_axes=(0,))


def test_opsets_that_make_no_difference_share_signatures(named: dict[str, Signature]) -> None:
    assert signatures(network(15), FEEDS) == named
    assert older()["Gemm_y"] != named["Gemm_y"]
    assert older()["Gemm_y"] == replace(named["Gemm_y"], opset=12)


def test_a_label_is_for_people(named: dict[str, Signature]) -> None:
    assert named["Conv_c1"].label == "Conv g2 1x8x6x6 * 8x4x3x3 + Relu"
    assert named["MatMul_t"].label == "MatMul 1x8 * 8x6 + Add + HardSwish"


def test_weights_that_are_computed_have_no_signature() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] a, float[3, 4] b) => (float[2, 4] y) {y = MatMul (a, b)}"""
    )
    ensure_names(model)
    infer_shapes(model)
    feeds = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((3, 4), np.float32)}
    assert signatures(model, feeds) == {}


def test_a_joint_model_computes_what_the_signatures_say(named: dict[str, Signature]) -> None:
    micro = joint_model(list(dict.fromkeys(named.values())))
    check_model(micro.model)
    bound = bind_dims(micro.model, {name: array.shape for name, array in micro.feeds.items()})
    again = signatures(micro.model, micro.feeds)
    assert {again[name] for name in micro.nodes.values()} == set(named.values())
    assert len(bound.graph.outputs) == len(micro.nodes) == len(set(named.values()))
    outputs = CpuTarget(threads=1).reference(micro.model).run(micro.feeds)
    assert all(np.isfinite(array).all() for array in outputs.values())
    (clipped,) = (array for name, array in outputs.items() if "Clip" in name)
    assert clipped.min() >= 0.0


def test_a_joint_model_is_the_same_every_time(named: dict[str, Signature]) -> None:
    first, second = (joint_model(list(dict.fromkeys(named.values()))) for _ in range(2))
    weights = [
        {name: value.const_value.numpy() for name, value in micro.model.graph.initializers.items()}
        for micro in (first, second)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_batches_keep_to_their_limits_and_to_one_opset(named: dict[str, Signature]) -> None:
    everything = [*dict.fromkeys(named.values()), *dict.fromkeys(older().values())]
    batches = split(everything, 1 << 30, 3)
    assert max(map(len, batches)) <= 3
    assert all(len({item.opset for item in batch}) == 1 for batch in batches)
    assert sorted(item.text for batch in batches for item in batch) == sorted(
        item.text for item in everything
    )
    limit = 2 * max(map(operand_bytes, everything))
    small = split(everything, limit, 100)
    assert all(sum(map(operand_bytes, batch)) <= limit for batch in small)
    assert [len(batch) for batch in split(everything, 0, 100)] == [1] * len(everything), "too large: alone"


def test_the_working_set_has_all_weights_and_the_largest_activations(named: dict[str, Signature]) -> None:
    assert working_set([]) == working_set(named.values()) == 1 << 20
    large = replace(
        named["Gemm_y"],
        operands=(Operand("FLOAT", (1, 1024), constant=False), Operand("FLOAT", (1024, 1024), constant=True)),
    )
    assert working_set([large]) == 1 << 22
    assert working_set([large] * 3) == 1 << 24, "12 MiB and a little"
    assert working_set([large] * 1000) == 1 << 26


def test_ballast_fills_the_working_set_in_the_measure_of_the_arithmetic(named: dict[str, Signature]) -> None:
    micro = joint_model(list(dict.fromkeys(named.values())))
    small = sum(map(operand_bytes, micro.nodes))
    assert ballast(micro.model.clone(), micro, small) is None
    model = micro.model.clone()
    added = ballast(model, micro, 1 << 20)
    assert added is not None
    name, values = added
    assert 2 * values.nbytes == pytest.approx((1 << 20) - small, abs=8)
    check_model(model)
    assert f"{BALLAST}_out" in CpuTarget(threads=1).reference(model).run({**micro.feeds, name: values})
    halved = micro.model.clone()
    for value in list(halved.graph.initializers.values()):
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
    less = ballast(halved, micro, 1 << 20)
    assert less is not None
    assert less[1].size == pytest.approx(values.size / 2, abs=1)


def test_a_real_graph_with_a_shared_pattern(tmp_path: Path) -> None:
    from greencc.core.model import load_model

    model = load_model(detector(tmp_path))
    ensure_names(model)
    found = signatures(model, {"image": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    assert found["body1"] == found["body2"] == found["body3"] != found["body0"]
    assert found["body0"].absorbed == (Absorbed("Relu"),)
    assert found["box_head"] == found["score_head"]
