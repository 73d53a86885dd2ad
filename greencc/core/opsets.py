"""Raising a model's opset with the converters there are.

onnxscript's where it supports the step, else ONNX's own, which sees the graph with its large weights left out, so
models beyond 2 GB convert too. Both rewrite operators whose meaning changed (Softmax's axis, Squeeze's axes, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir


def raise_opset(model: ir.Model, target: int) -> str | None:
    """Convert a model to a newer opset, in place.

    Args:
        model: Left as it is when it cannot be converted.
        target: The opset of the default domain.

    Returns:
        Why it failed, None where it did not.
    """
    from onnxscript.version_converter import ConvertVersionPass

    candidate = model.clone()
    names = [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]
    with _captured("onnxscript.version_converter") as messages:
        try:
            ConvertVersionPass(target_version=target, fallback=True)(candidate)
        except Exception as error:  # noqa: BLE001 - the converters raise anything; it becomes the reason
            return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if candidate.opset_imports.get("") != target:
        return (
            messages[-1] if messages else "the ONNX version converter does not support one of its operators"
        )
    graph = candidate.graph
    if ([value.name for value in graph.inputs], [value.name for value in graph.outputs]) != names:
        return "the ONNX version converter changed the model's inputs or outputs"
    model.graph = graph
    model.opset_imports.update(candidate.opset_imports)
    for key in [key for key in model.functions if key not in candidate.functions]:
        del model.functions[key]
    return None


@contextmanager
def _captured(name: str) -> Iterator[list[str]]:
    """Collect the errors a library logs instead of raising them."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                messages.append(str(record.exc_info[1]).strip().splitlines()[0])

    logger, handler = logging.getLogger(name), Collect()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
