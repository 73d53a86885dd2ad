"""The opset: a parser reads a newer one by the rules of the newest that it knows."""

from __future__ import annotations

from collections.abc import Iterator

from greencc.targets._tensorrt.faults import Fault, Rule, error
from greencc.targets._tensorrt.operators import max_opset
from greencc.targets._tensorrt.rules._context import Context


def check(context: Context) -> Iterator[Fault]:
    """An opset that is newer than the parser. It only logs a warning, and may misread what changed since."""
    version = context.machine.version
    newest = max_opset(version)
    if context.opset > newest:
        yield error(
            Rule.OPSET,
            "",
            f"the model has opset {context.opset} and TensorRT {version} knows up to {newest}: it may overlook what "
            "changed since, such as axes that became inputs",
            f"export with opset {newest} or older",
        )
