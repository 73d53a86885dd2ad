"""Turn ONNX Runtime's exceptions into messages that name the operator and the node."""

from __future__ import annotations

import re

from greencc.core.errors import GreenccError, InputError

_NODE_PATTERNS = (
    re.compile(r'In Node, \("(?P<node>[^"]*)", (?P<op>\w+), '),
    re.compile(r"Could not find an implementation for (?P<op>\w+)\(\d+\) node with name '(?P<node>[^']*)'"),
    re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<node>[^']*)'"),
    re.compile(r"of operator \((?P<op>\w+)\) in node \((?P<node>[^)]*)\)"),
    re.compile(r"Node \((?P<node>[^)]*)\) Op \((?P<op>\w+)\)"),
    re.compile(r"Node:(?P<node>\S*) \S*\s*Op:(?P<op>\w+)"),
)
_UNKNOWN_OP = re.compile(r"No Op registered for (?P<op>\w+) with domain_version of (?P<version>\d+)")
_NO_DOMAIN = re.compile(r"(?P<op>[\w.]+:?\w*)\(-?\d+\) is not a registered function/op")
_OPSET = re.compile(
    r"Opset (?P<opset>\d+) is under development|opset (?P<new>\d+).*till opset (?P<known>\d+)", re.I
)
_IR = re.compile(r"Unsupported model IR version: (?P<version>\d+), max supported IR version: (?P<known>\d+)")
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : -?\d+ : (?P<kind>\w+) : ")
_SOURCE = re.compile(r"/\S*onnxruntime/\S+?:\d+ ")


def translate(error: Exception, doing: str) -> GreenccError:
    """The user's error for an exception ONNX Runtime raised.

    Args:
        error: What the runtime raised.
        doing: What it was doing, e.g. ``loading model.onnx``.
    """
    text = str(error)
    where = _where(text)
    if unknown := _UNKNOWN_OP.search(text):
        return InputError(
            f"{doing}: ONNX Runtime has no operator {unknown['op']!r} in opset {unknown['version']}{where}",
            hint="the model needs a custom-operator library, or was exported for another runtime",
        )
    if unknown := _NO_DOMAIN.search(text):
        return InputError(
            f"{doing}: ONNX Runtime has no operator {unknown['op']!r}{where}",
            hint="the model needs a custom-operator library, or was exported for another runtime",
        )
    if version := _IR.search(text):
        return InputError(
            f"{doing}: the model has IR version {version['version']}, ONNX Runtime reads up to {version['known']}",
            hint="update onnxruntime",
        )
    if opset := _OPSET.search(text):
        number = opset["opset"] or opset["new"]
        return InputError(
            f"{doing}: ONNX Runtime does not support opset {number} yet",
            hint="update onnxruntime, or export the model with an older opset",
        )
    return InputError(f"{doing}: ONNX Runtime refused{where}: {_clean(text)}", hint=_hint(text))


def _where(text: str) -> str:
    for pattern in _NODE_PATTERNS:
        if match := pattern.search(text):
            return f" at {match['op']} node {match['node']!r}"
    return ""


def _hint(text: str) -> str | None:
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return "the file is not an ONNX model, or is truncated"
    if "NOT_IMPLEMENTED" in text:
        return "this operator has no CPU kernel for these types in the installed onnxruntime"
    return None


def _clean(text: str) -> str:
    """The runtime's message without its error code and source locations, on one line, at most 400 characters."""
    line = " ".join(_PREFIX.sub("", text).split())
    line = _SOURCE.sub("", line)
    return line if len(line) <= 400 else line[:397] + "..."
