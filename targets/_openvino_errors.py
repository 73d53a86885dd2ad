"""Turn OpenVINO's exceptions into messages that name the operator and the node."""

from __future__ import annotations

import re
from pathlib import Path

from greencc.core.errors import GreenccError, InputError, UnavailableError
from greencc.core.graph import ONNX_DOMAINS

_UNKNOWN = re.compile(
    r"(?:No conversion rule found for operations|does not support the following ONNX operations): (?P<ops>[^\n]+)"
)
_UNPARSABLE = re.compile(r"can't be parsed|Error during import of ONNX model provided as input stream")
_NODE = re.compile(r"\[CPU\] (?P<op>\w+) node with name '(?P<node>[^']*)'")
_LOCATION = re.compile(
    r"^(Exception from \S+:\d+:?|Check '.*' failed at \S+:\d+:?|FrontEnd API failed with \w+:)\s*$"
)
_CHECK = re.compile(r"(Check '.*?' failed at \S+:\d+:\s*|Exception from \S+:\d+:\s*)")
_MEMORY = re.compile(
    r"bad[_ ]alloc|out of memory|could not allocate|failed to allocate|Cannot allocate memory", re.I
)
_SIGNATURE = re.compile(r"^(?P<op>.*?)-\d+$")


def translate(error: Exception, doing: str, file: Path | None = None) -> GreenccError:
    """The user's error for an exception OpenVINO raised.

    Args:
        error: What the runtime raised.
        doing: What it was doing, e.g. ``loading model.onnx``.
        file: The model, to find the node that an operator is at; None where messages name nodes themselves.
    """
    text = str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return UnavailableError(
            f"{doing}: OpenVINO ran out of memory", hint="use a smaller batch, or a machine with more memory"
        )
    if found := _UNKNOWN.search(text):
        ops = [_SIGNATURE.sub(r"\g<op>", op.strip()) for op in found["ops"].split(",")]
        more = f" (and {len(ops) - 1} more: {', '.join(ops[1:6])})" if ops[1:] else ""
        return InputError(
            f"{doing}: OpenVINO has no operator {ops[0]!r}{_at(file, ops[0])}{more}",
            hint="compile for cpu, or export the model without it",
        )
    if _UNPARSABLE.search(text):
        return InputError(
            f"{doing}: OpenVINO cannot parse it", hint="the file is not an ONNX model, or is truncated"
        )
    where = f" at {node['op']} node {node['node']!r}" if (node := _NODE.search(text)) else ""
    return InputError(f"{doing}: OpenVINO refused{where}: {_clean(text)}")


def _at(file: Path | None, op: str) -> str:
    """Where in the model an operator is used first."""
    if file is None:
        return ""
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:
        if type(error).__module__.startswith("google.protobuf") or isinstance(error, OSError | ValueError):
            return ""
        raise
    domain, _, kind = op.rpartition(".")
    for node in graph.node:
        if node.op_type == kind and node.domain in ({domain} if domain else ONNX_DOMAINS):
            return f" (node {node.name!r})" if node.name else ""
    return ""


def _clean(text: str) -> str:
    """What is left of a message without its source locations, on one line, at most 400 characters."""
    lines = [line for line in text.splitlines() if line.strip() and not _LOCATION.match(line.strip())]
    line = _CHECK.sub("", " ".join(" ".join(lines).split()))
    return line if len(line) <= 400 else line[:397] + "..."
