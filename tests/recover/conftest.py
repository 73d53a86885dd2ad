"""A small classifier, a pass that damages it, and a bundle of the damaged one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import greencc.compiler.forms
import greencc.recover._inputs
from greencc.compiler import CompileOptions, Effort, compile_model
from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes import PASSES

SIZE, CLASSES = 6, 4


@dataclass(frozen=True)
class CutHalf(Pass):
    """Cut the first half of the channels of every group, good or bad."""

    name: ClassVar[str] = "cut-half"
    summary: ClassVar[str] = "For tests"
    lossy: ClassVar[bool] = True

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        infer_shapes(model)
        structure = analyse(model)
        removed = {group.name: range(group.size // 2) for group in structure.prunable}
        ctx.rewrites.allow("cut-half", "all")
        cut(model, structure, removed)
        return Outcome(len(removed))


def classifier(folder: Path, seed: int = 0) -> Path:
    """Conv, Relu, Conv, Add, pool, Gemm with random weights, and data whose decisions are its own."""
    rng = np.random.default_rng(seed)
    constants = []

    def constant(name: str, *shape: int, scale: float = 0.4) -> str:
        constants.append(
            numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)
        )
        return name

    for name, shape in (("w0", (16, 2, 3, 3)), ("w1", (16, 16, 3, 3)), ("w2", (CLASSES, 16))):
        constant(name, *shape)
        constant(f"b{name[1:]}", shape[0], scale=0.1)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        constants,
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    # A few directions of large variance, so that decisions differ between samples and there is something to learn.
    patterns = 2.0 * rng.standard_normal((6, 2, SIZE, SIZE))
    data = np.tensordot(rng.standard_normal((1600, 6)), patterns, 1).astype(np.float32)
    np.savez(folder / "train.npz", x=data[:1000])
    np.savez(folder / "eval.npz", x=data[1000:])
    return path


@pytest.fixture(scope="session")
def known_cut() -> Iterator[None]:
    """The compiler and `recover` know `CutHalf`."""
    patch = pytest.MonkeyPatch()
    for module in (greencc.compiler.forms, greencc.recover._inputs):
        patch.setattr(module, "PASSES", (*PASSES, CutHalf))
    yield
    patch.undo()


def damaged(folder: Path, recipe: str) -> Path:
    """The folder with model.onnx, train.npz, eval.npz and damaged.greencc."""
    model = classifier(folder)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    options = CompileOptions(
        target="cpu:threads=1",
        calibration=folder / "train.npz",
        evaluation=folder / "eval.npz",
        recipe=folder / "recipe.toml",
        max_drop=0.99,
        effort=Effort.QUICK,
        cache=False,
    )
    compile_model(model, options, output=folder / "damaged.greencc")
    return folder


@pytest.fixture(scope="session")
def float_files(tmp_path_factory: pytest.TempPathFactory, known_cut: None) -> Path:
    return damaged(tmp_path_factory.mktemp("float"), "[[pass]]\nname = 'cut-half'\n")


@pytest.fixture(scope="session")
def int8_files(tmp_path_factory: pytest.TempPathFactory, known_cut: None) -> Path:
    recipe = "[[pass]]\nname = 'cut-half'\n\n[[pass]]\nname = 'quantize-int8'\n"
    return damaged(tmp_path_factory.mktemp("int8"), recipe)
