"""Times of layers, by the node of the model that a runtime's node came from."""

from __future__ import annotations

from pathlib import Path

from greencc.compiler.layers import NOT_ATTRIBUTABLE, layer_times
from greencc.core.engine import NodeTime
from greencc.core.model import load_model
from tests.agent.backend_support import net


def test_what_has_no_origin_and_no_operator_is_called_so(tmp_path: Path) -> None:
    source = load_model(net(tmp_path / "net.onnx"))
    # As TensorRT tells its layers: some by the names of nodes, some by names of its own without an operator.
    before = [NodeTime("conv", "Conv", 8.0), NodeTime("Reformatting CopyNode for Input Tensor 0", "", 2.0)]
    after = [
        NodeTime("conv", "Conv", 4.0),
        NodeTime("{ForeignNode[a...b]}", "", 1.0),
        NodeTime("x", "Cast", 0.5),
    ]
    rows = {
        row.name: (row.op_type, row.baseline_us, row.artifact_us)
        for row in layer_times(source, before, after)
    }
    assert rows == {
        "conv": ("Conv", 8.0, 4.0),
        NOT_ATTRIBUTABLE: ("", 2.0, 1.0),
        "(Cast, by the runtime)": ("Cast", None, 0.5),
    }
    assert NOT_ATTRIBUTABLE == "(not attributable to a layer)"
