"""The program trtexec: where it is, what it can do, how it is called, and how its answers are read.

Formats: NVIDIA/TensorRT, samples/common/sampleOptions.cpp (options), logging.h (lines of the log),
sampleReporting.cpp (``--exportTimes``, ``--exportOutput``, ``--exportProfile``).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from greencc.agent.backends.faults import explain, failure
from greencc.agent.problem import Problem

_PLACES = ("usr/src/tensorrt/bin/trtexec", "usr/local/tensorrt/bin/trtexec", "opt/tensorrt/bin/trtexec")
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")
_HELP_SECONDS = 120.0


def find(root: str, env: Dict[str, str]) -> Optional[str]:
    """Its path; None: it is not installed."""
    for place in _PLACES:
        path = os.path.join(root, place)
        if os.access(path, os.X_OK):
            return path
    return shutil.which("trtexec", path=env.get("PATH"))


def version_text(number: int) -> str:
    """Of the number in its first line: 8201 is 8.2.1, and 100300 is 10.3.0 (NvInferVersion.h)."""
    if number >= 100000:
        return "%d.%d.%d" % (number // 10000, number // 100 % 100, number % 100)
    return "%d.%d.%d" % (number // 1000, number // 100 % 10, number % 100)


class Called:
    """What a call gave: its log, and the moments (of the monotonic clock) when marked lines came."""

    def __init__(self, code: int, lines: List[str], moments: Dict[str, float]) -> None:
        self.code = code
        self.lines = lines
        self.moments = moments

    @property
    def passed(self) -> bool:
        """It ended well, and says so."""
        return self.code == 0 and any(line.startswith("&&&& PASSED") for line in self.lines)


class Trtexec:
    """The program of this device.

    Args:
        path: Where it is.

    Attributes:
        version: Such as ``10.3.0``.
        numbers: The same as numbers.

    Raises:
        Problem: It does not run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            told = subprocess.run(
                [path, "--help"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_HELP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Problem("unavailable", "%s does not run: %s" % (path, error)) from error
        text = told.stdout.decode("utf-8", "replace")
        match = _VERSION.search(text)
        if match is None:
            raise Problem("unavailable", "%s does not say what version it is" % path)
        self.version = version_text(int(match.group(1)))
        self.numbers = [int(each) for each in self.version.split(".")]
        self._options = set(re.findall(r"--(\w+)", text))

    def knows(self, option: str) -> bool:
        """It lists an option."""
        return option in self._options

    def call(self, options: Sequence[str], marks: Sequence[str] = ()) -> Called:
        """Run it; its lines go to standard error as they come.

        Args:
            options: Of the command line.
            marks: Texts; when a line with one comes, the moment is kept.
        """
        command = [self.path, *list(options)]
        # In this process's group: they end together.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        lines: List[str] = []
        moments: Dict[str, float] = {}
        assert process.stdout is not None
        with process.stdout:
            for raw in process.stdout:
                now = time.monotonic()
                line = raw.decode("utf-8", "replace").rstrip()
                for mark in marks:
                    if mark in line:
                        moments[mark] = now
                lines.append(line)
                print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of this process
        return Called(process.wait(), lines, moments)


def ended(called: Called, what: str, kind: str = "internal") -> Problem:
    """Why a call failed."""
    if called.code < 0 or called.code > 128:
        number = -called.code if called.code < 0 else called.code - 128
        known = explain(called.lines)
        if number == 9 or (known is not None and known.kind == "memory"):
            return Problem(
                "memory",
                "%s: trtexec was killed, as the system does when memory runs out" % what,
                "close other programs, add swap, or give the builder less workspace",
            )
        last = "; ".join(line for line in called.lines[-3:] if line)
        return Problem(
            "crashed", "%s: trtexec crashed (signal %d); its last words: %s" % (what, number, last)
        )
    return failure(what, called.lines, kind)


def dims(shape: Sequence[int]) -> str:
    """A shape as its options take it."""
    return "x".join(str(size) for size in shape) if shape else "1"


def readable(name: str) -> bool:
    """It reads the name of a layer or a tensor: one ends at the last colon of what lies between commas."""
    return not set(name) & set(",'")


def named(values: Sequence[Tuple[str, str]]) -> str:
    """``name:value`` pairs as its options take them.

    Raises:
        Problem: ``unavailable``: it cannot read a name.
    """
    for name, _ in values:
        if not readable(name):
            raise Problem(
                "unavailable",
                "trtexec cannot read the name of the input %r" % name,
                "install TensorRT's Python bindings (python3-libnvinfer), or rename the input in the model",
            )
    return ",".join("%s:%s" % pair for pair in values)


_BARE = re.compile(r"(?<=[\s\[,:])(-?)(nan|inf|infinity)\b", re.IGNORECASE)


def read_json(path: str, what: str) -> List[Any]:
    """A file that it has exported. C++ writes ``nan`` and ``inf``, which JSON has not.

    Raises:
        Problem: ``internal``: there is none, or it is cut off.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        found = json.loads(_BARE.sub(_spelled, text))
    except (OSError, ValueError) as error:
        raise Problem("internal", "%s: trtexec wrote no file that can be read: %s" % (what, error)) from error
    if not isinstance(found, list):
        raise Problem("internal", "%s: trtexec wrote something else than a list" % what)
    return found


def _spelled(match: "re.Match[str]") -> str:
    return "NaN" if match.group(2).lower() == "nan" else match.group(1) + "Infinity"


class Timed:
    """A query of ``--exportTimes``, in milliseconds from the start of inference."""

    def __init__(self, row: Dict[str, Any]) -> None:
        self.start = float(row["startH2dMs"] if "startH2dMs" in row else row["startInMs"])
        self.end = float(row["endD2hMs"] if "endD2hMs" in row else row["endOutMs"])
        self.compute = float(row["startComputeMs"])
        self.latency = float(row["latencyMs"])


def read_times(path: str) -> List[Timed]:
    """Of ``--exportTimes``; older releases call the copies ``in`` and ``out``.

    Raises:
        Problem: ``internal``: it is not what trtexec writes.
    """
    try:
        return [Timed(row) for row in read_json(path, "timing")]
    except (KeyError, TypeError, ValueError) as error:
        raise Problem("internal", "timing: trtexec wrote a row without %s" % error) from error


def read_profile(path: str) -> List[Tuple[str, float]]:
    """Layers and their mean milliseconds, of ``--exportProfile``.

    Raises:
        Problem: ``internal``: it is not what trtexec writes.
    """
    try:
        rows = [row for row in read_json(path, "profiling") if "name" in row]
        return [(str(row["name"]), float(row["averageMs"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise Problem("internal", "profiling: trtexec wrote a row without %s" % error) from error


def make_pack(dtype: str) -> Callable[[Sequence[float]], bytes]:
    """What turns the numbers of ``--exportOutput`` into bytes of a type.

    Raises:
        Problem: ``unavailable``: numbers of that type are not written by it.
    """
    import struct

    codes = {
        "float32": "f",
        "float16": "e",
        "float64": "d",
        "int64": "q",
        "int32": "i",
        "int8": "b",
        "uint8": "B",
        "bool": "?",
    }
    code = codes.get(dtype)
    if code is None:
        raise Problem("unavailable", "trtexec alone cannot give outputs of type %s" % dtype)

    def pack(values: Sequence[float]) -> bytes:
        numbers = values if code in "fed" else [int(value) for value in values]
        return struct.pack("<%d%s" % (len(numbers), code), *numbers)

    return pack
