"""Executors for the tests of what runs on workers; a small network, data and options to compile it with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler import CompileOptions
from greencc.core.cache import Cache
from greencc.execution import Executor, Outcome, Work
from greencc.execution.executor import Stop, never

CONV_SIZE = 16
ENGINES = [
    ("local", 1),
    ("local", 2),
    ("local", 3),
    pytest.param(
        ("ray", 2),
        marks=pytest.mark.skipif(
            importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray"
        ),
    ),
]


class Watched:
    """Two workers, as far as their user can tell; what they run is counted, and the driver ends after some results."""

    here = False

    def __init__(self, inside: Executor, stop_after: int | None = None) -> None:
        self.inside, self.stop_after = inside, stop_after
        self.workers, self.threads = 2, 1
        self.busy = False
        self.ran = 0

    def run(self, works: Sequence[Work], cache: Cache, stop: Stop = never) -> Iterator[Outcome]:
        for outcome in self.inside.run(works, cache, stop):
            self.ran += outcome.task is not None
            yield outcome
            if self.stop_after is not None and self.ran >= self.stop_after:
                raise KeyboardInterrupt

    def close(self) -> None:
        """There is nothing to end."""


def conv_net() -> onnx.ModelProto:
    """Three convolutions and a classifier, large enough that integers pay."""
    rng = np.random.default_rng(1)
    weights, nodes = [], []

    def constant(name: str, *shape: int) -> str:
        spread = 1.4 / np.sqrt(np.prod(shape[1:]))
        values = (spread * rng.standard_normal(shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    value, channels = "x", 3
    for index in range(3):
        constant(f"w{index}", 32, channels, 3, 3)
        nodes += [
            helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"),
        ]
        value, channels = f"r{index}", 32
    constant("wg", 32, 10)
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "wg"], ["y"], name="classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, CONV_SIZE, CONV_SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_conv_inputs(folder: Path, samples: int) -> None:
    """`conv_net` as net.onnx, calibration.npz of 64 samples and eval.npz of the rest, without labels."""
    onnx.save(conv_net(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    data = rng.standard_normal((samples, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    np.savez(folder / "calibration.npz", x=data[:64])
    np.savez(folder / "eval.npz", x=data[64:])


def conv_options(folder: Path, **changes: Any) -> CompileOptions:
    """To compile these inputs with much room for loss and nothing kept; `changes` are further options."""
    given = {"max_drop": 0.3, "cache": False, "workers": 1} | changes
    return CompileOptions(calibration=folder / "calibration.npz", evaluation=folder / "eval.npz", **given)
