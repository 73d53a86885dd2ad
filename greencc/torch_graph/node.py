"""A node of an ONNX graph as the operators in PyTorch read it: plain attributes, no protobuf."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS

Tensor = Any
"""A `torch.Tensor`: PyTorch is an extra, so its types are not known where it is absent."""
Inputs = Sequence[Any]


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        name: Its name.
        op_type: Its operator, with the domain where that is not ONNX's own.
        opset: Version of the default operator set, which decides what attributes mean.
        inputs: Names of its inputs, None where an optional one is absent.
        outputs: Names of its outputs, empty for those nobody asked for.
        attributes: As Python values.
    """

    name: str
    op_type: str
    opset: int
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, inputs: Inputs, index: int, default: Any) -> Any:
        """The input at `index`, or the default where it is absent."""
        return inputs[index] if index < len(inputs) and inputs[index] is not None else default

    def integer(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def floating(self, name: str, default: float | None = None) -> Any:
        value = self.attributes.get(name, default)
        return None if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        value = self.attributes.get(name, default)
        return None if value is None else [int(item) for item in value]


Operator = Callable[[Node, Inputs], Any]


def read_node(node: ir.Node, opset: int) -> Node:
    """The node with its attributes as Python values; subgraphs and references are left out."""
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not attribute.is_ref() and attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    }
    return Node(
        str(node.name),
        node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}",
        opset,
        tuple(None if value is None else str(value.name) for value in node.inputs),
        tuple(str(value.name or "") for value in node.outputs),
        attributes,
    )
