"""The emitted graph per TensorRT version, as text. GREENCC_WRITE_GOLDEN=1 writes the texts anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from greencc.passes.float16 import ConvertFloat16

from .emitting import VERSIONS, block, cnn, emitted, int8, machine, run_passes, text_of

GOLDEN = Path(__file__).parent / "golden"
NETWORKS: dict[str, Callable[[], ir.Model]] = {"cnn": cnn, "block": block}
# From 10.12 on nothing changes in the graph.
_SAME = {"11.4": "10.13"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_int8_graphs_are_as_written_down(network: str, version: str) -> None:
    on = machine(version)
    _compare(f"{network}-int8-{_SAME.get(version, version)}", emitted(int8(NETWORKS[network](), on), on))


@pytest.mark.parametrize("version", ["8.2", "11.4"])
def test_half_graphs_are_as_written_down(version: str) -> None:
    on = machine(version)
    half = run_passes(block(), on, (ConvertFloat16(),))
    _compare(f"block-fp16-{version}", emitted(half, on))


def _compare(name: str, model: ir.Model) -> None:
    path, text = GOLDEN / f"{name}.txt", text_of(model)
    if os.environ.get("GREENCC_WRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
