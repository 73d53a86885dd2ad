"""Opset upgrades keep the function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import UsageError
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.upgrade_opset import UpgradeOpset


def test_changed_operators_keep_their_meaning(kit: Any, parse: Any, random: Any) -> None:
    """Softmax coerced to two dimensions before opset 13; Squeeze and Unsqueeze took axes as attributes."""
    model = parse(
        """
        g (float[2, 3, 4] x) => (float[2, 3, 4] y) {
          u = Unsqueeze <axes=[1]> (x)
          s = Squeeze <axes=[1]> (u)
          r = ReduceSum <axes=[2], keepdims=1> (s)
          d = Div (s, r)
          y = Softmax <axis=1> (d)
        }""",
        opset=11,
    )
    x = {"x": np.abs(random(2, 3, 4)) + 1}
    expected = kit.run(model, x)[0]
    outcome = UpgradeOpset().apply(model, kit.context(None))
    assert outcome.changed == 1
    assert model.opset_imports[""] == 17
    np.testing.assert_allclose(kit.run(model, x)[0], expected, rtol=1e-6)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_weights_survive_and_become_per_channel(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", opset=11, w=random(64, 64))
    x = {"x": random(8, 64)}
    expected = kit.run(model, x)[0]
    assert UpgradeOpset(target=13).apply(model, kit.context(None)).changed == 1
    np.testing.assert_array_equal(kit.run(model, x)[0], expected)
    QuantizeInt8().apply(model, kit.context(x))
    assert model.graph.initializers["w_scale"].shape == [64]


def test_recent_models_and_old_targets_are_left_alone(kit: Any, parse: Any, random: Any) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
    recent = parse(text, opset=13)
    assert UpgradeOpset().apply(recent, kit.context(None)).changed == 0
    assert recent.opset_imports[""] == 13
    context = kit.context(None)
    context = replace(context, capabilities=replace(context.capabilities, max_opset=12))
    old = parse(text, opset=11)
    assert UpgradeOpset().apply(old, context).changed == 1
    assert old.opset_imports[""] == 12


def test_a_failed_conversion_changes_nothing_and_says_why(kit: Any, parse: Any) -> None:
    model = parse(
        'g (float[N, 4] x) => (float[N, 4] y) { y = Upsample <mode="nearest"> (x, s) }',
        opset=9,
        s=np.ones(2, np.float32),
    )
    next(iter(model.graph)).op_type = "Scatter3"
    before = kit_bytes(model)
    outcome = UpgradeOpset().apply(model, kit.context(None))
    assert outcome.changed == 0
    assert outcome.findings[0].kind == "refused"
    assert "opset 9 could not be raised to 17" in outcome.findings[0].message
    assert kit_bytes(model) == before


def kit_bytes(model: Any) -> bytes:
    import onnx_ir as ir

    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


@pytest.mark.parametrize("options", [{"target": 12}, {"target": 99}, {"target": 13, "below": 14}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        UpgradeOpset(**options)
