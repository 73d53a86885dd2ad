"""ReLU6 becomes ReLU where its bound does nothing, which lets equalization through."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.model import check_model
from greencc.passes.equalize_layers import EqualizeLayers, Objective
from greencc.passes.relax_clips import RelaxClips
from tests.passes.conftest import Graph
from tests.passes.quantize.conftest import Kit


def build(g: Graph, scale: float) -> ir.Model:
    weight = g.rng.standard_normal((4, 3, 1, 1)) * scale
    x = g.op("Conv", g.input("x", ["N", 3, 4, 4]), g.const(weight))
    x = g.op("Clip", x, g.const(np.float32(0)), g.const(np.float32(6)), name="relu6")
    return g.model(g.op("Conv", x, g.random(2, 4, 1, 1)))


def data() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)}


def test_a_bound_that_never_binds_goes(kit: Kit, graph: type[Graph]) -> None:
    model = build(graph(), 0.5)
    assert RelaxClips().apply(model, kit.context(data())).changed == 1
    check_model(model)
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Conv"]
    assert EqualizeLayers(Objective.WEIGHTS).apply(model, kit.context(None)).changed == 1


@pytest.mark.parametrize(("share", "excess"), [(0.0, 100.0), (0.9, 1.0)])
def test_a_bound_that_binds_stays_with_figures(
    kit: Kit, graph: type[Graph], share: float, excess: float
) -> None:
    model = build(graph(), 5.0)
    outcome = RelaxClips(share=share, excess=excess).apply(model, kit.context(data()))
    assert outcome.changed == 0
    assert "binds on" in outcome.findings[0].message
    assert outcome.findings[0].node == "relu6"
    assert RelaxClips(share=0.9, excess=100.0).apply(model.clone(), kit.context(data(), limit=0)).changed == 0
    assert RelaxClips(share=0.9, excess=100.0).apply(model, kit.context(data())).changed == 1


def test_data_are_required_and_options_checked(kit: Kit, graph: type[Graph]) -> None:
    with pytest.raises(InputError):
        RelaxClips().apply(build(graph(), 1.0), kit.context(None))
    for options in ({"share": 1.0}, {"excess": 0.5}, {"batch": 0}):
        with pytest.raises(UsageError):
            RelaxClips(**options)  # type: ignore[arg-type]
