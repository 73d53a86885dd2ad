"""TensorRT for RTX (extra `greencc[rtx]`): the one parser of the family that runs without a GPU.

That it reads a graph says that operators, types and shapes are those that TensorRT's parser knows; it says nothing of
speed, and of an older TensorRT only as much as its parser has in common with this one. Engines are built ahead of time
for the architectures that it names. Every call is in a process of its own, with limits of time and memory: the library
ends the process on some graphs (opset 23's Attention), and on others that a GPU is expected for.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greencc.core.errors import InputError
from greencc.core.files import atomic_file

BUILDS_FOR = frozenset({75, 80, 86, 89, 120, 121})
"""Compute capabilities that engines can be built for without that GPU (`tensorrt_rtx.ComputeCapability`)."""
_CHILD = Path(__file__).with_name("_rtx_child.py")
_PARSE_SECONDS = 120.0
_BUILD_SECONDS = 900.0
_LEAST_BYTES = 6 << 30
# Of memory that a model takes while it is built, as a multiple of its file.
_COPIES = 12
_SHOWN = 3
Shapes = Mapping[str, Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class RtxFault:
    """What the parser cannot read: the node and its operator (empty: not known), and why."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.op} {self.node!r}: " if self.op else ""
        return where + self.reason[:200]


@dataclass(frozen=True)
class RtxAnswer:
    """What came of a graph.

    Attributes:
        version: Of the library; empty where the process ended before it said so.
        faults: What cannot be read.
        problem: Why there is no answer, or no engine: a crash, the limits, the builder; None: there is.
        engine_bytes: Of what was built.
    """

    version: str
    faults: tuple[RtxFault, ...] = ()
    problem: str | None = None
    engine_bytes: int = 0

    @property
    def good(self) -> bool:
        """Whether all went well."""
        return not self.faults and self.problem is None

    @property
    def reason(self) -> str:
        """What is wrong, in a sentence."""
        if self.problem is not None:
            return self.problem
        shown = "; ".join(map(str, self.faults[:_SHOWN]))
        return shown + (f"; and {len(self.faults) - _SHOWN} more" if len(self.faults) > _SHOWN else "")


def missing_rtx() -> str | None:
    """Why there is no TensorRT for RTX here, or None."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "TensorRT for RTX is not installed: pip install 'greencc[rtx]'"
    return None


def parse_rtx(model: Path, seconds: float = _PARSE_SECONDS) -> RtxAnswer:
    """Read a graph.

    Args:
        model: An ONNX file.
        seconds: How long it may take.
    """
    return _ask({"model": str(model.absolute()), "bytes": _memory(model)}, seconds)


def build_rtx(
    model: Path,
    sm: int,
    shapes: Shapes,
    engine: Path,
    seconds: float = _BUILD_SECONDS,
) -> RtxAnswer:
    """Build an engine ahead of time.

    Args:
        model: An ONNX file.
        sm: Compute capability, one of `BUILDS_FOR`.
        shapes: Sizes (``min``, ``opt``, ``max``) of inputs that have free ones.
        engine: The file to write; it is not written where the build fails.
        seconds: How long it may take.

    Raises:
        InputError: The file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="greencc-rtx-") as folder:
        written = Path(folder) / "engine"
        request = {
            "model": str(model.absolute()),
            "bytes": _memory(model),
            "engine": str(written),
            "sm": sm,
            "shapes": {name: dict(sizes) for name, sizes in shapes.items()},
        }
        answer = _ask(request, seconds)
        if answer.good:
            with atomic_file(engine) as place:
                place.write_bytes(written.read_bytes())
        return answer


def _memory(model: Path) -> int:
    size = sum(
        file.stat().st_size for file in (model, model.with_name(f"{model.name}.data")) if file.is_file()
    )
    return max(_LEAST_BYTES, _COPIES * size)


def _ask(request: Mapping[str, Any], seconds: float) -> RtxAnswer:
    doing = "building the engine" if "engine" in request else "reading the graph"
    try:
        done = subprocess.run(
            # By its path, without what lies beside it: it imports nothing of greencc, and so starts at once.
            [sys.executable, "-P", str(_CHILD), json.dumps(request)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return RtxAnswer("", problem=f"{doing} did not end within {seconds:g} s")
    except OSError as error:
        raise InputError(f"a process for TensorRT for RTX cannot be started: {error}") from error
    if done.returncode != 0:
        return RtxAnswer("", problem=f"TensorRT for RTX {_end(done)} while {doing}")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        faults = tuple(RtxFault(**each) for each in found["faults"])
        problem = None
        if "engine" in request and not faults and not found["bytes"]:
            problem = f"no engine was built: {'; '.join(found['log']) or 'no reason given'}"
        return RtxAnswer(found["version"], faults, problem, found.get("bytes", 0))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        return RtxAnswer("", problem=f"TensorRT for RTX gave no answer while {doing} ({error})")


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended badly."""
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = str(-done.returncode)
        return f"crashed ({name})"
    last = [line for line in done.stderr.splitlines() if line.strip()]
    return f"failed ({last[-1].strip()[:200]})" if last else f"failed (exit status {done.returncode})"
