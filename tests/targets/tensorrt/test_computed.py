"""What runs here rounds where the engine does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.targets import make_target
from greencc.targets._tensorrt.computed import as_computed
from greencc.targets._tensorrt.files import read_settings
from tests.targets.networks import images, residual


def told(*flags: str, wide: Sequence[str] = ()) -> dict[str, Any]:
    """As ``device.json`` has it."""
    return {"builder_flags": ["INT8", *flags], "float32_nodes": list(wide)}


def scores(model: ir.Model) -> np.ndarray:
    return make_target("cpu:threads=1").calibration_engine(model).run(images(16, seed=3))["scores"]


def test_a_file_that_says_nothing_is_computed_as_it_is_written() -> None:
    assert as_computed(residual(), told()) is None


@pytest.mark.parametrize(("precision", "least", "most"), [("FP16", 1e-5, 3e-3), ("BF16", 1e-4, 3e-2)])
def test_values_are_rounded(precision: str, least: float, most: float) -> None:
    exact = scores(residual())
    model = as_computed(residual(), told(precision))
    assert model is not None
    error = np.abs(scores(model) - exact).max() / np.abs(exact).max()
    assert least < error < most


def test_what_stays_float32_is_not_rounded() -> None:
    names = [node.name for node in residual().graph]
    model = as_computed(residual(), told("FP16", wide=names))
    assert model is not None
    np.testing.assert_array_equal(scores(model), scores(residual()))


def test_an_overflow_of_fp16_is_seen() -> None:
    model = residual()
    computed = as_computed(model, told("FP16"))
    assert computed is not None
    feeds = {"image": np.full((1, 3, 12, 12), 1e5, np.float32)}
    target = make_target("cpu:threads=1")
    assert np.isfinite(target.calibration_engine(model).run(feeds)["scores"]).all()
    assert not np.isfinite(target.calibration_engine(computed).run(feeds)["scores"]).all()


def test_what_a_dla_builds_is_certified_and_nothing_better(tmp_path: Path) -> None:
    """It computes in FP16 and INT8 alone: a form that says float32, and nodes that should be, are FP16 there."""
    model, feeds = residual(), images(16, seed=3)
    found = {}
    for spec in ("jetson-agx-orin:jetpack=6.2", "jetson-agx-orin:jetpack=6.2,dla=true"):
        target = make_target(spec)
        artifact = target.build(target.lower(model), tmp_path / str(len(found)))
        flags = read_settings(artifact.parent)["builder_flags"]
        assert ("FP16" in flags) is ("dla" in spec)
        engine = target.open(artifact)
        found[spec] = engine.run(feeds)["scores"]
        engine.close()
    gpu, dla = found.values()
    error = np.abs(dla - gpu).max() / np.abs(gpu).max()
    assert 1e-5 < error < 3e-3
