"""Cutting what a group lasso has emptied, and nothing else: no PyTorch needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import NodeProto, TensorProto, helper, numpy_helper

from greencc.core.describe import describe
from greencc.core.groups import Role, analyse
from greencc.core.model import infer_shapes, load_model
from greencc.core.pipeline import output_error, run_samples
from greencc.recover._empty import cut_empty
from greencc.targets import CpuTarget
from greencc.torch_graph.parameters import find_parameters, write_back

WIDTH = 6


def test_channels_whose_weights_are_all_zero_are_cut(float_files: Path) -> None:
    model = load_model(float_files / "model.onnx")
    values = {name: item.start.copy() for name, item in find_parameters(model).items()}
    values["w0"][[2, 5]], values["b0"][[2, 5]], values["w1"][:, [2, 5]] = 0.0, 0.0, 0.0
    # What only nobody reads, or only nobody computes, is not empty yet.
    values["w1"][:, 7] = 0.0
    values["w0"][8], values["b0"][8] = 0.0, 0.0
    write_back(model, values)
    x = {"x": np.load(float_files / "eval.npz")["x"][:4]}
    target = CpuTarget(threads=1)
    before, params = run_samples(target.reference, model, [x]), describe(model).params
    assert cut_empty(model) == 2
    assert describe(model).params < params
    assert output_error(before, run_samples(target.reference, model, [x]), 1e-9) < 1e-5
    assert cut_empty(model) == 0


def test_one_channel_of_a_group_stays(float_files: Path) -> None:
    model = load_model(float_files / "model.onnx")
    parameters = find_parameters(model)
    write_back(model, {name: np.zeros_like(item.start) for name, item in parameters.items()})
    assert cut_empty(model) == 2 * (16 - 1)
    assert find_parameters(model)["w1"].start.shape[:2] == (1, 1)


def products(first: list[NodeProto], kind: int, constants: dict[str, np.ndarray]) -> ir.Model:
    """The products of all rows of `a` with all rows of `b`: no weight reads their channels."""
    nodes = [
        *first,
        helper.make_node("Transpose", ["b"], ["bt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "bt"], ["y"], name="products"),
    ]
    shape = ["n", 3] if kind == TensorProto.INT64 else ["n", 3, 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    groups = analyse(model).prunable
    assert [group.having(Role.CONSUMER) for group in groups] == [()]
    return model


def weighted(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal((4, WIDTH)) for name in ("wa", "wb")}


BOTH = [
    helper.make_node("MatMul", ["x", "wa"], ["a"], name="left"),
    helper.make_node("MatMul", ["x", "wb"], ["b"], name="right"),
]


def test_without_readers_everything_that_computes_a_channel_must_be_zero() -> None:
    rng = np.random.default_rng(0)
    constants = weighted(rng)
    constants["wa"][:, 1] = constants["wb"][:, 1] = 0.0
    constants["wa"][:, 3] = 0.0
    model = products(BOTH, TensorProto.FLOAT, constants)
    feeds = {"x": rng.standard_normal((2, 3, 4)).astype(np.float32)}
    target = CpuTarget(threads=1)
    before = run_samples(target.reference, model, [feeds])
    assert cut_empty(model) == 1
    assert find_parameters(model)["wa"].start.shape == (4, WIDTH - 1)
    assert output_error(before, run_samples(target.reference, model, [feeds]), 1e-9) < 1e-5


def test_what_is_not_trained_is_not_empty() -> None:
    """Tables are not trained: no trained weight says that their channels are zero."""
    rng = np.random.default_rng(1)
    constants = {name: rng.standard_normal((5, WIDTH)) for name in ("ta", "tb")}
    nodes = [
        helper.make_node("Gather", ["ta", "x"], ["a"], name="left"),
        helper.make_node("Gather", ["tb", "x"], ["b"], name="right"),
    ]
    model = products(nodes, TensorProto.INT64, constants)
    assert cut_empty(model) == 0
    assert describe(model).params == 2 * 5 * WIDTH


def test_zero_weights_before_a_constant_that_is_not_trained_stay() -> None:
    constants = weighted(np.random.default_rng(2))
    constants["wa"][:] = constants["wb"][:] = 0.0
    constants["shift"] = np.ones(WIDTH)
    # A constant that is taken from an activation is not trained.
    nodes = [BOTH[0], helper.make_node("MatMul", ["x", "wb"], ["p"], name="right")]
    nodes.append(helper.make_node("Sub", ["p", "shift"], ["b"], name="shifted"))
    model = products(nodes, TensorProto.FLOAT, constants)
    assert "shift" not in find_parameters(model)
    assert cut_empty(model) == 0
