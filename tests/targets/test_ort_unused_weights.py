"""A weight that nothing reads must not keep a model from loading."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from greencc.targets.cpu import CpuTarget


def test_large_unused_initializers_are_ignored() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "unused",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "unused")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    engine = CpuTarget().reference(model)
    try:
        (output,) = engine.run({"x": np.full((1, 4), -1, np.float32)}).values()
    finally:
        engine.close()
    np.testing.assert_array_equal(output, np.zeros((1, 4), np.float32))
    assert "unused" in model.graph.initializers
