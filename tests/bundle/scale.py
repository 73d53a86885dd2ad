"""A target whose artifact is a number to multiply by, and a bundle for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from greencc.bundle import Manifest, write_bundle
from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.engine import Device, Engine, NodeTime, Target
from greencc.core.report import (
    Accuracy,
    Budget,
    CalibrationInfo,
    CompileInfo,
    Figures,
    Interval,
    Latency,
    ModelInfo,
    Ratio,
    Report,
)


class ScaleEngine:
    """Multiplies by the number in its artifact."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.closed = False
        self.inputs: Sequence[TensorSpec] = (TensorSpec("x", np.dtype(np.float32), ("N", 2)),)
        self.outputs: Sequence[TensorSpec] = (
            TensorSpec("y", np.dtype(np.float32), (None, 2)),
            TensorSpec("names", np.dtype(object), None),
        )

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {"y": feeds["x"] * np.float32(self.factor)}

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class ScaleTarget(Target):
    threads: int = 1
    opened: list[ScaleEngine] = field(default_factory=list, compare=False)

    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "a test"
    machine: ClassVar[str] = "bench"
    problem: ClassVar[str | None] = None

    def missing(self) -> str | None:
        return self.problem

    def capabilities(self) -> Capabilities:
        raise NotImplementedError

    def device(self) -> Device:
        return Device(self.machine, {}, f"print of {self.machine}")

    def versions(self) -> dict[str, str]:
        return {}

    def lower(self, model: Any) -> Any:
        return model

    def build(self, model: Any, folder: Path) -> Path:
        path = folder / "model.scale"
        path.write_text("2.5")
        return path

    def open(self, artifact: Path) -> Engine:
        engine = ScaleEngine(float(artifact.read_text()))
        self.opened.append(engine)
        return engine

    def reference(self, model: Any, outputs: Sequence[str] | None = None) -> Engine:
        raise NotImplementedError

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        raise NotImplementedError


def make_report() -> Report:
    figures = Figures(Latency(1.0, 1.1, 1.2, 10), None, 3, None, None)
    one = Interval(1.0, 1.0, 1.0)
    nothing: tuple[Any, ...] = (None,) * 6
    return Report(
        greencc="0.1.0",
        created="2025-11-22T04:31:00+00:00",
        verdict="",
        precision="fp32",
        model=ModelInfo("net.onnx", "ab" * 32, 1, None, 17, 1),
        target="scale",
        device={},
        conditions={},
        versions={"numpy": "2", "greencc": "0.1.0"},
        baseline=figures,
        artifact=figures,
        ratio=Ratio(one, None, one),
        accuracy=Accuracy("none", *nothing, 0, False, 0.01, 0.95, None, None, None, "not certified: no data"),
        budget=Budget({}, met=True),
        candidates=(),
        passes=(),
        calibration=CalibrationInfo("c.npz", "cd" * 32, 64, synthetic=False),
        layers=(),
        layer_errors=(),
        warnings=(),
        compile=CompileInfo(1.0, None),
    )


def write(folder: Path, target: Target, seen: bytes = b"") -> Manifest:
    (folder / "artifact").mkdir()
    artifact = target.build(None, folder / "artifact")
    (folder / "artifact" / "weights.bin").write_bytes(b"\0" * 100)
    return write_bundle(
        folder,
        report=make_report(),
        recipe='schema = "greencc.recipe/1"\n',
        artifact=artifact,
        target=target,
        model_digest="ef" * 32,
        evaluation_digest="01" * 32,
        seen=seen,
    )
