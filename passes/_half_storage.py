"""Half-precision storage: weights as FP16 or BF16 with one Cast to float32 each.

The arithmetic stays in float32. A runtime folds the Casts when it loads the model, so the file halves and a run costs
what it did; loading costs one pass over the weights. Weights that 16 bits cannot hold stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from greencc.core.graph import Names, add_initializer, constant_tensor, consumers, is_op
from greencc.core.passes import Context, Finding, Outcome
from greencc.passes._half_rounding import MAX_ERROR, half_tensor, rounding_error
from greencc.passes._half_schema import HalfType
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_nodes import is_quantized

_RULE = "half-storage"


def store(
    model: ir.Model, element: HalfType, min_elements: int, exclude: frozenset[str], ctx: Context, out: Outcome
) -> None:
    """Rewrite the large float32 constants of all graphs of a model."""
    names = Names(model)
    saved = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for value, tensor in list(_constants(graph, min_elements)):
            readers = consumers(value)
            if not readers or any(node.name in exclude or is_quantized(node) for node in readers):
                # Scales of quantized values are no weights: another scale is another value.
                continue
            problem = _problem(value, tensor, element, readers)
            if problem is not None:
                message = f"weight {value.name!r}: {problem}"
                out.findings.append(Finding("left-in-float", message, readers[0].name, _RULE))
            elif ctx.rewrites.allow(_RULE, str(readers[0].name)):
                _store(graph, value, tensor, element, names)
                out.changed += 1
                saved += tensor.size * 2
            release(tensor)
    if out.changed:
        label = element.value.upper()
        message = (
            f"{out.changed} weights are stored as {label} ({saved / 1e6:.2f} MB less) and computed in float"
        )
        out.findings.append(Finding("note", message, rule=_RULE))


def _constants(graph: ir.Graph, min_elements: int) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers and Constant nodes of a graph that are large float32 tensors and nothing else."""
    produced = (node.outputs[0] for node in graph if is_op(node, "Constant"))
    for value in (*graph.initializers.values(), *produced):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype is not ir.DataType.FLOAT:
            continue
        if tensor.size >= min_elements:
            yield value, tensor


def _problem(
    value: ir.Value, tensor: ir.TensorProtocol, element: HalfType, readers: tuple[ir.Node, ...]
) -> str | None:
    """Why a weight is not stored in 16 bits, or None."""
    if value.is_graph_output():
        return "it is an output of the model too"
    # The rows of a table are not channels: a row of next to nothing (padding) is as good as zero.
    table = all(is_op(node, "Gather") for node in readers)
    error = rounding_error(tensor.numpy(), element, slices=not table)
    if error <= MAX_ERROR[element]:
        return None
    label = element.value.upper()
    if error == float("inf"):
        return f"it has values beyond what {label} holds"
    return f"{label} would change a channel of it by {error:.2g} of the channel: its values are too small"


def _store(
    graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, element: HalfType, names: Names
) -> None:
    name = str(value.name)
    fresh = names.value(f"{name}_{element.value}")
    half = add_initializer(graph, fresh, half_tensor(tensor.numpy(), element, fresh))
    restored = ir.Value(
        name=None, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(tensor.shape.numpy())
    )
    cast = ir.node(
        "Cast", [half], {"to": ir.DataType.FLOAT.value}, outputs=[restored], name=names.node(f"{name}_Cast")
    )
    value.replace_all_uses_with(restored)
    producer = value.producer()
    if producer is None:
        del graph.initializers[name]
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_before(producer, cast)
        graph.remove(producer, safe=True)
    # The readers' weight keeps its name.
    value.name, restored.name = None, name
