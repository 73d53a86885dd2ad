"""A detector-like model whose head is ruined by INT8, its data, and a session to compile it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler import CompileOptions, Effort, Precision
from greencc.compiler.data import Splits, open_splits, whole_batches
from greencc.compiler.forms import FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.describe import input_specs
from greencc.core.engine import NodeTime
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.targets import CpuTarget

SIZE = 12


def detector(folder: Path) -> Path:
    """Boxes in the hundreds and scores below one leave through one Concat: one scale cannot serve both."""
    rng = np.random.default_rng(0)
    weights = []

    def constant(name: str, *shape: int, scale: float = 0.3) -> str:
        weights.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    nodes = []
    value, channels = "image", 3
    for index in range(4):
        constant(f"w{index}", 16, channels, 3, 3)
        nodes += [
            helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], name=f"body{index}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"),
        ]
        value, channels = f"r{index}", 16
    constant("wb", 16, 16, 1, 1, scale=60.0)
    constant("ws", 16, 16, 1, 1, scale=0.02)
    nodes += [
        helper.make_node("Conv", [value, "wb"], ["boxes"], name="box_head"),
        helper.make_node("Conv", [value, "ws"], ["scores"], name="score_head"),
        helper.make_node("Concat", ["boxes", "scores"], ["detections"], name="join", axis=1),
        helper.make_node("GlobalAveragePool", ["detections"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["classes"], name="classes"),
    ]
    for name, number in (("from", 16), ("to", 32), ("axis", 1)):
        weights.append(numpy_helper.from_array(np.array([number], np.int64), name))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["n", 16])],
        weights,
    )
    path = folder / "detector.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    data = rng.standard_normal((400, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=data[:64])
    np.savez(folder / "eval.npz", image=data[64:])
    return path


class Bench:
    """Everything the phases of a compile share."""

    def __init__(self, path: Path, scratch: Path, options: CompileOptions) -> None:
        self.path = path
        self.source = load_model(path)
        ensure_names(self.source)
        self.session = Session(options, CpuTarget(threads=1), scratch)
        self.splits: Splits = open_splits(self.session, input_specs(self.source))
        self.baseline = MemoEngine(self.session.target.open(path))
        self.builder = FormBuilder(
            self.session, self.source, self.splits, self.splits.samples(self.baseline, None)
        )
        self.feeds: list[Feeds] = whole_batches(self.splits.planning, 1, 8)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = CompileOptions(
        target="cpu:threads=1",
        calibration=tmp_path / "calibration.npz",
        evaluation=tmp_path / "eval.npz",
        precision=Precision.INT8,
        effort=Effort.QUICK,
        max_drop=0.05,
    )
    found = Bench(detector(tmp_path), scratch, options)
    yield found
    found.baseline.close()


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Profiles without noise: 100 us for every node in float, 10 us otherwise, and what the test puts in here."""
    slow: dict[str, float] = {}
    true_profile = CpuTarget.profile

    def profile(target: CpuTarget, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        in_float = artifact.parent.name.endswith("fp32")
        rows = []
        for row in true_profile(target, artifact, feeds, runs):
            special = next((us for name, us in slow.items() if row.name.startswith(name)), 10.0)
            rows.append(NodeTime(row.name, row.op_type, 100.0 if in_float else special))
        return rows

    monkeypatch.setattr(CpuTarget, "profile", profile)
    return slow
