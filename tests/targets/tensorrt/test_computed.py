"""What runs here rounds where the engine does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.targets import make_target
from greencc.targets._tensorrt.computed import as_computed
from greencc.targets._tensorrt.emit import FLOAT32_NODES, PRECISION
from tests.targets.networks import images, residual


def marked(precision: str, wide: str = "[]") -> ir.Model:
    model = residual()
    model.metadata_props[PRECISION] = precision
    model.metadata_props[FLOAT32_NODES] = wide
    return model


def scores(model: ir.Model) -> np.ndarray:
    return make_target("cpu:threads=1").calibration_engine(model).run(images(16, seed=3))["scores"]


def test_a_file_that_says_nothing_is_computed_as_it_is_written() -> None:
    assert as_computed(residual()) is None


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-5, 3e-3), ("bf16", 1e-4, 3e-2)])
def test_values_are_rounded(precision: str, least: float, most: float) -> None:
    exact = scores(residual())
    model = as_computed(marked(precision))
    assert model is not None
    error = np.abs(scores(model) - exact).max() / np.abs(exact).max()
    assert least < error < most


def test_what_stays_float32_is_not_rounded() -> None:
    import json

    names = [node.name for node in residual().graph]
    model = as_computed(marked("fp16", json.dumps(names)))
    assert model is not None
    np.testing.assert_array_equal(scores(model), scores(residual()))


def test_an_overflow_of_fp16_is_seen() -> None:
    model = residual()
    model.metadata_props[PRECISION] = "fp16"
    computed = as_computed(model)
    assert computed is not None
    feeds = {"image": np.full((1, 3, 12, 12), 1e5, np.float32)}
    target = make_target("cpu:threads=1")
    assert np.isfinite(target.calibration_engine(model).run(feeds)["scores"]).all()
    assert not np.isfinite(target.calibration_engine(computed).run(feeds)["scores"]).all()
