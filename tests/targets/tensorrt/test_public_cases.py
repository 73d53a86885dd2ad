"""What is emitted for whole networks, read and built by TensorRT-RTX.

The shipped example, and the models of the folder $BENCH_MODELS (NAME/model.onnx with NAME/calibration.npz), as for the
benchmarks. It is a check of parsing and of building: no engine is run.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from greencc.core.engine import Shipment
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.shapes import bind_dims
from greencc.targets import TensorRtRtxTarget, make_target
from greencc.targets._tensorrt import rtx
from greencc.targets._tensorrt.target import EmittedTarget

pytestmark = pytest.mark.full

_EXAMPLE = Path(__file__).parents[3] / "examples" / "fashion_mnist"


def _cases() -> list[Path]:
    more = os.environ.get("BENCH_MODELS")
    found = sorted(Path(more).glob("*/model.onnx")) if more else []
    return [_EXAMPLE, *(path.parent for path in found if (path.parent / "calibration.npz").is_file())]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("spec", ["jetson-nano", "jetson", "jetson-thor", "tensorrt-rtx"])
def test_a_public_case_is_read_and_built(spec: str, case: Path, tmp_path: Path) -> None:
    if missing := rtx.missing_rtx():
        pytest.skip(missing)
    model = load_model(case / "model.onnx")
    ensure_names(model)
    with np.load(case / "calibration.npz") as data:
        shapes = {name: (1, *data[name].shape[1:]) for name in data.files}
    target = make_target(spec)
    assert isinstance(target, EmittedTarget)
    artifact = target.build(target.lower(bind_dims(model, shapes)), tmp_path)
    answer = rtx.parse_rtx(artifact)
    assert answer.good, answer.reason
    if isinstance(target, TensorRtRtxTarget):
        # What goes out is the engine as well.
        target.ship(artifact, Shipment(case.name, [], []))
        assert (tmp_path / "engine.plan").stat().st_size > 1000
