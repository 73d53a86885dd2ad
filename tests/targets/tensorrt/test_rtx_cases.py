"""Every example as an engine for an RTX card, built ahead of time by TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.targets import TensorRtRtxTarget
from greencc.targets._tensorrt.gpus import RTX_CARDS
from greencc.targets._tensorrt.rtx import BUILDS_FOR, build_rtx, missing_rtx

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*/model.onnx"))

if missing := missing_rtx():
    pytest.skip(missing, allow_module_level=True)


@pytest.mark.full
@pytest.mark.parametrize("gpu", RTX_CARDS)
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.parent.name for path in EXAMPLES])
def test_examples_are_built_ahead_of_time(path: Path, gpu: str, tmp_path: Path) -> None:
    target = TensorRtRtxTarget(gpu=gpu)
    model = load_model(path)
    ensure_names(model)
    artifact = target.build(target.lower(model), tmp_path)
    assert target.card.sm in BUILDS_FOR
    shapes = target.settings(load_model(artifact)).shapes
    engines = [tmp_path / "a.plan", tmp_path / "b.plan"]
    for engine in engines:
        answer = build_rtx(artifact, target.card.sm, shapes, engine)
        assert answer.good, answer.reason
    assert engines[0].read_bytes() == engines[1].read_bytes()
