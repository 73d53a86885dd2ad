"""What is emitted for whole networks, read and built ahead of time by TensorRT for RTX, which needs no GPU for it.

The examples, and the models of the folder $BENCH_MODELS (NAME/model.onnx with NAME/calibration.npz), as for the
benchmarks. It is a check of parsing and of building: no engine is run.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.engine import Shipment
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.shapes import bind_dims
from greencc.targets import TensorRtRtxTarget, make_target
from greencc.targets._tensorrt.gpus import RTX_CARDS
from greencc.targets._tensorrt.rtx import BUILDS_FOR, build_rtx, missing_rtx, parse_rtx
from greencc.targets._tensorrt.target import EmittedTarget

pytestmark = pytest.mark.full

if missing := missing_rtx():
    pytest.skip(missing, allow_module_level=True)


def _cases(root: Path) -> list[Path]:
    """Folders with a model and inputs of it."""
    return [
        path.parent
        for path in sorted(root.glob("*/model.onnx"))
        if (path.parent / "calibration.npz").is_file()
    ]


EXAMPLES = _cases(Path(__file__).resolve().parents[3] / "examples")
MORE = os.environ.get("BENCH_MODELS")


def _model(case: Path) -> ir.Model:
    model = load_model(case / "model.onnx")
    ensure_names(model)
    return model


@pytest.mark.parametrize("gpu", RTX_CARDS)
@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.name)
def test_examples_are_built_ahead_of_time(case: Path, gpu: str, tmp_path: Path) -> None:
    target = TensorRtRtxTarget(gpu=gpu)
    artifact = target.build(target.lower(_model(case)), tmp_path)
    assert target.card.sm in BUILDS_FOR
    shapes = target.settings(load_model(artifact)).shapes
    # The same build gives the same bytes most times, but not always.
    answer = build_rtx(artifact, target.card.sm, shapes, tmp_path / "engine.plan")
    assert answer.good, answer.reason
    assert (tmp_path / "engine.plan").stat().st_size > 1000


@pytest.mark.parametrize(
    "case", [*EXAMPLES, *(_cases(Path(MORE)) if MORE else ())], ids=lambda case: case.name
)
@pytest.mark.parametrize("spec", ["jetson-nano", "jetson", "jetson-thor", "tensorrt-rtx"])
def test_whole_networks_are_read(spec: str, case: Path, tmp_path: Path) -> None:
    with np.load(case / "calibration.npz") as data:
        shapes = {name: (1, *data[name].shape[1:]) for name in data.files}
    target = make_target(spec)
    assert isinstance(target, EmittedTarget)
    artifact = target.build(target.lower(bind_dims(_model(case), shapes)), tmp_path)
    answer = parse_rtx(artifact)
    assert answer.good, answer.reason
    if isinstance(target, TensorRtRtxTarget):
        # What goes out is the engine as well.
        target.ship(artifact, Shipment(case.name, [], []))
        assert (tmp_path / "engine.plan").stat().st_size > 1000
