"""A machine without noise: times that follow from the graphs alone, in this process or in one of its own.

Every layer takes a time in proportion to its weights, a third of it where it computes in integers; conversions take a
little. Nothing else of a compile is changed: models are built, run and judged as ever.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from greencc.compiler import Effort, campaign, energies, measurement
from greencc.compiler.planning import verifier
from greencc.core.data import Feeds
from greencc.core.engine import Engine, NodeTime
from greencc.measure import rounds
from greencc.measure.memory import PeakMemory
from greencc.measure.profiles import QUICK
from greencc.targets import CpuTarget, backends
from greencc.targets._ort import OrtEngine

SHORT = replace(QUICK, seconds=0.02, rounds=4, min_rounds=4, min_runs=2, warm_up_seconds=0.01)
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = ("ConvInteger", "MatMulInteger")
_WEIGHT_US, _INTEGER_SHARE, _NODE_US = 0.02, 0.3, 2.0


@functools.cache
def rows(content: bytes) -> tuple[NodeTime, ...]:
    """The nodes of a model file with their times."""
    graph = onnx.load_model_from_string(content).graph
    elements = {item.name: functools.reduce(int.__mul__, item.dims, 1) for item in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        first, *others = [made_by.get(name) for name in node.input] or [None]
        stored = all(name in elements for name in node.input)
        if node.op_type in (*_LAYERS, *_INTEGER):
            weights = _elements(node.input[1], elements, made_by)
            integers = node.op_type in _INTEGER or (
                first is not None
                and first.op_type == "DequantizeLinear"
                and any(each is not None and each.op_type == "DequantizeLinear" for each in others)
            )
            us = _WEIGHT_US * weights * (_INTEGER_SHARE if integers else 1.0)
        else:
            us = 0.0 if stored else _NODE_US
        found.append(NodeTime(node.name, node.op_type, us))
    return tuple(found)


def _elements(name: str, elements: dict[str, int], made_by: dict[str, onnx.NodeProto]) -> int:
    """Of the largest constant that a weight is made of."""
    if name in elements:
        return elements[name]
    node = made_by.get(name)
    return 0 if node is None else max((_elements(each, elements, made_by) for each in node.input), default=0)


def milliseconds(content: bytes) -> float:
    """Of one inference."""
    return (10.0 + sum(row.microseconds for row in rows(content))) / 1e3


def install(
    set_attribute: Callable[[Any, str, Any], None], *, after: Callable[[int], None] = lambda _: None
) -> None:
    """Make times steady.

    Args:
        set_attribute: As `setattr`.
        after: Called with the number of plans timed so far, each time that one was.
    """
    genuine_open = CpuTarget.open
    of_engine: dict[int, tuple[Engine, float]] = {}
    counted = 0

    def opened(self: CpuTarget, artifact: Path) -> Engine:
        engine = genuine_open(self, artifact)
        # The engine is kept, so that its id stays its own.
        of_engine[id(engine)] = engine, milliseconds(artifact.read_bytes())
        return engine

    def timed(self: rounds.LocalTimer, engine: Engine, feeds: Feeds) -> float:
        assert isinstance(engine, OrtEngine)
        return of_engine[id(engine)][1]

    def profile(self: CpuTarget, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        return list(rows(artifact.read_bytes()))

    def figures(self: verifier.Verifier, item: Any) -> Any:
        nonlocal counted
        found = genuine_figures(self, item)
        counted += 1
        after(counted)
        return found

    genuine_figures = verifier.Verifier.figures
    set_attribute(CpuTarget, "open", opened)
    set_attribute(CpuTarget, "profile", profile)
    set_attribute(rounds.LocalTimer, "_timed", timed)
    set_attribute(rounds, "others_share", lambda *arguments: 0.0)
    # Other run times that may be installed have times of their own.
    set_attribute(backends, "OTHERS", ())
    set_attribute(verifier, "QUICK", SHORT)
    set_attribute(verifier.Verifier, "figures", figures)
    set_attribute(campaign, "QUICK_PROFILE", SHORT)
    set_attribute(measurement, "PROFILES", dict.fromkeys(Effort, SHORT))
    set_attribute(energies, "available_meters", lambda *processor: ())
    set_attribute(measurement, "peak_memory", lambda *args, **kwargs: PeakMemory(None, "a test"))


def main(arguments: Sequence[str]) -> None:
    """``python -m tests.cli.plan.steady ...`` is `greencc`, on such a machine."""
    from greencc.cli.main import run

    install(setattr)
    sys.argv = ["greencc", *arguments]
    run()


if __name__ == "__main__":
    main(sys.argv[1:])
