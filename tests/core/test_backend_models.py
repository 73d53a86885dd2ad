"""ONNX's own operator tests, as a corpus of valid models: they load, and survive a round trip."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import onnx
import pytest

from greencc.core.describe import describe
from greencc.core.errors import GreenccError
from greencc.core.model import digest, infer_shapes, load_model, save_model
from greencc.core.validation import MAX_OPSET, MIN_OPSET


def corpus() -> list[onnx.ModelProto]:
    with warnings.catch_warnings():
        # Generating the expected outputs overflows on purpose.
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    return [case.model for case in cases if case.model is not None]


@pytest.mark.full
def test_operator_models_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    outcomes: Counter[str] = Counter()
    for proto in corpus():
        path.write_bytes(proto.SerializeToString())
        opset = max((entry.version for entry in proto.opset_import if not entry.domain), default=0)
        tensors = all(
            value.type.HasField("tensor_type") for value in (*proto.graph.input, *proto.graph.output)
        )
        try:
            model = load_model(path)
        except GreenccError:
            outcomes[
                "refused although supported" if MIN_OPSET <= opset <= MAX_OPSET and tensors else "refused"
            ] += 1
            continue
        identity = digest(model)
        infer_shapes(model)
        describe(model)
        assert digest(model) == identity, proto.graph.name
        assert digest(load_model(save_model(model, tmp_path / "out.onnx")[0])) == identity, proto.graph.name
        outcomes["loaded"] += 1
    assert outcomes["loaded"] > 500
    # ONNX's inference cannot expand a few of its own functions at old operator sets.
    assert outcomes["refused although supported"] <= 5, outcomes
