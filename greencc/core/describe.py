"""What a model is made of: parameters, work per node, memory traffic, interface.

Dynamic dimensions are bound first, the batch to 1 unless said otherwise; what still depends on an unknown
size is None with a finding, never a guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from greencc.core.data import TensorSpec
from greencc.core.graph import (
    ONNX_DOMAINS,
    all_nodes,
    attribute_ints,
    constant_of,
    constant_tensor,
    default_node_name,
    graphs_of,
    input_at,
    is_op,
    opset_of,
    subgraphs_of,
)
from greencc.core.macs import UnknownOperatorError, macs_of
from greencc.core.passes import Finding
from greencc.core.shapes import bind_sizes

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_INDEX_TYPES = (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING)
_CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class NodeCost:
    """Work and traffic of one node of the main graph, per execution of the model.

    Control flow is charged to its node: the costlier branch of an If, all iterations of a Loop or Scan.
    In a QDQ graph the quantizers around an integer operator cost nothing and the operator reads and writes
    the integers, since runtimes fuse them.

    Attributes:
        name: Of the node.
        op_type: "Conv", or "com.microsoft::FusedConv" outside of the default domain.
        macs: Multiply-accumulates; None when it depends on an unknown size or a custom operator.
        weight_bytes: Stored size of the constants it reads.
        activation_bytes: Of the other inputs and the outputs; None when a size is unknown.
        dtype: ONNX name of the element type it computes in: "FLOAT", "INT8", ...
    """

    name: str
    op_type: str
    macs: int | None
    weight_bytes: int
    activation_bytes: int | None
    dtype: str


@dataclass(frozen=True)
class ModelDescription:
    """Facts about a model.

    Attributes:
        params: Elements of the weights that nodes use, each tensor once; indices, shapes, scales and zero
            points are no weights.
        weight_bytes: Stored size of all constants that nodes use, each tensor once.
        macs: Of all nodes; None when those of a node are unknown.
        activation_bytes: Of all nodes; None when those of a node are unknown.
        nodes: Number of nodes, with those of subgraphs and functions.
        ops: Nodes by operator, the most frequent first.
        opset: Version of the default operator set.
        ir_version: Of the file format.
        domains: Versions of all operator sets.
        inputs: Graph inputs.
        outputs: Graph outputs.
        costs: Per node of the main graph, functions inlined.
        findings: What could not be determined, and why.
    """

    params: int
    weight_bytes: int
    macs: int | None
    activation_bytes: int | None
    nodes: int
    ops: dict[str, int]
    opset: int
    ir_version: int
    domains: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    costs: tuple[NodeCost, ...]
    findings: tuple[Finding, ...]


def describe(model: ir.Model, bindings: Mapping[str, int] | None = None) -> ModelDescription:
    """Describe a model with inferred shapes.

    Args:
        model: Left unchanged.
        bindings: Sizes of named dynamic dimensions. Dynamic first axes of inputs default to 1.

    Raises:
        InputError: The sizes contradict the graph.
    """
    costs = nodes_cost(model, bindings)
    tensors = list(_used_constants(model))
    counts = Counter(_operator(node) for node in all_nodes(model))
    return ModelDescription(
        params=sum(tensor.size for tensor, weight in tensors if weight),
        weight_bytes=sum(tensor.nbytes for tensor, _ in tensors),
        macs=_total(cost.macs for cost in costs),
        activation_bytes=_total(cost.activation_bytes for cost in costs),
        nodes=sum(counts.values()),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        opset=opset_of(model),
        ir_version=model.ir_version,
        domains={domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        inputs=input_specs(model),
        outputs=output_specs(model),
        costs=costs,
        findings=tuple(_findings(costs)),
    )


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The graph inputs that callers feed."""
    return tuple(value_spec(value) for value in model.graph.inputs)


def output_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The graph outputs."""
    return tuple(value_spec(value) for value in model.graph.outputs)


def nodes_cost(model: ir.Model, bindings: Mapping[str, int] | None = None) -> tuple[NodeCost, ...]:
    """Work and traffic of every node of the main graph, in graph order; arguments as for `describe`."""
    return tuple(cost for _, cost in costed_nodes(model, bindings))


def costed_nodes(
    model: ir.Model, bindings: Mapping[str, int] | None = None, batch: int = 1
) -> tuple[tuple[ir.Node, NodeCost], ...]:
    """`nodes_cost` with the nodes themselves, of a clone with sizes bound and functions inlined.

    Args:
        model: Left unchanged.
        bindings: Sizes of named dynamic dimensions.
        batch: Size of the inputs' first axes, where they are dynamic and not in `bindings`.
    """
    bound = bind_sizes(_inlined(model), bindings or {}, batch=batch)
    return tuple((node, _cost(node)) for node in bound.graph)


def _inlined(model: ir.Model) -> ir.Model:
    """The model without functions; as it is when a call leaves out outputs or mixes operator set versions."""
    if not model.functions:
        return model
    try:
        return InlinePass()(model.clone()).model
    except ValueError:
        return model


def value_spec(value: ir.Value) -> TensorSpec:
    """Name, type and shape of a value; a type that is not known counts as float32."""
    shape = None
    if value.shape is not None:
        shape = tuple(dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape)
    dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
    return TensorSpec(value.name or "", dtype.numpy(), shape)


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}"


def _total(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _used_constants(model: ir.Model) -> Iterator[tuple[ir.TensorProtocol, bool]]:
    """Each constant that a node or a graph output uses, and whether it counts as a weight."""
    seen: dict[int, tuple[ir.TensorProtocol, bool]] = {}
    for graph in graphs_of(model):
        for node in graph:
            for index, value in enumerate(node.inputs):
                tensor = constant_tensor(value)
                if tensor is not None:
                    weight = tensor.dtype not in _INDEX_TYPES and not _is_quantization_parameter(node, index)
                    seen[id(tensor)] = (tensor, weight or seen.get(id(tensor), (tensor, False))[1])
        for value in graph.outputs:
            tensor = constant_tensor(value)
            if tensor is not None:
                seen.setdefault(id(tensor), (tensor, tensor.dtype not in _INDEX_TYPES))
    yield from seen.values()


def _is_quantization_parameter(node: ir.Node, index: int) -> bool:
    if node.op_type in _QUANTIZERS:
        return index > 0
    if node.op_type in ("QLinearConv", "QLinearMatMul"):
        return index not in (0, 3, 8)
    return False


def _cost(node: ir.Node) -> NodeCost:
    if is_op(node, *_CONTROL_FLOW):
        return _control_flow_cost(node)
    integer = _is_integer(node)
    try:
        macs = macs_of(
            node, [_shape(value) for value in node.inputs], [_shape(value) for value in node.outputs]
        )
    except UnknownOperatorError:
        macs = None
    return NodeCost(
        name=node.name or default_node_name(node),
        op_type=_operator(node),
        macs=macs,
        weight_bytes=0 if _is_fused_quantizer(node) else sum(_constant_bytes(node)),
        activation_bytes=0 if _is_fused_quantizer(node) else _total(_activation_bytes(node, integer)),
        dtype=_compute_type(node, integer),
    )


def _control_flow_cost(node: ir.Node) -> NodeCost:
    bodies = [[_cost(inner) for inner in graph] for graph in subgraphs_of(node)]
    trips = 1 if node.op_type == "If" else _trips(node)
    works = [_total(cost.macs for cost in body) for body in bodies]
    traffics = [_total(cost.activation_bytes for cost in body) for body in bodies]
    return NodeCost(
        name=node.name or default_node_name(node),
        op_type=_operator(node),
        macs=_repeated(works, trips),
        weight_bytes=sum(_constant_bytes(node)) + sum(cost.weight_bytes for body in bodies for cost in body),
        activation_bytes=_repeated(traffics, trips),
        dtype=next((cost.dtype for body in bodies for cost in body if cost.macs), _compute_type(node, False)),
    )


def _repeated(counts: list[int | None], trips: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    most = max(known, default=0)
    # A body without any work needs no trip count.
    if trips is None:
        return 0 if most == 0 else None
    return most * trips


def _trips(node: ir.Node) -> int | None:
    if node.op_type == "Loop":
        limit = constant_of(input_at(node, 0))
        condition = constant_of(input_at(node, 1))
        always = node.inputs[1] is None or (condition is not None and bool(condition.all()))
        return int(limit.reshape(-1)[0]) if limit is not None and always else None
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    shape = _shape(node.inputs[states])
    axis = attribute_ints(node, "scan_input_axes", (0,))[0]
    return None if shape is None else shape[axis]


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    tensor = constant_tensor(value)
    if tensor is not None:
        return tuple(int(dim) for dim in tensor.shape.numpy())
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The value behind a DequantizeLinear, or the value itself."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return producer.inputs[0]
    return value


def _constant_bytes(node: ir.Node) -> Iterator[int]:
    for value in node.inputs:
        tensor = constant_tensor(_stored(value))
        if tensor is None:
            continue
        yield tensor.nbytes
        producer = value.producer() if value is not None else None
        if value is not _stored(value) and producer is not None:
            parameters = (constant_tensor(parameter) for parameter in producer.inputs[1:])
            yield sum(parameter.nbytes for parameter in parameters if parameter is not None)


def _activation_bytes(node: ir.Node, integer: bool) -> Iterator[int | None]:
    for value in node.inputs:
        if value is not None and constant_tensor(_stored(value)) is None:
            yield bytes_of(_stored(value) if integer else value)
    for value in node.outputs:
        if value.name:
            quantizer = _sole_quantizer(value) if integer else None
            yield bytes_of(quantizer.outputs[0] if quantizer is not None else value)


_SIZELESS = (None, ir.DataType.UNDEFINED, ir.DataType.STRING)


def bytes_of(value: ir.Value | None) -> int | None:
    """Bytes that a value takes; None where its shape or type is not known, or it holds text."""
    shape = _shape(value)
    if shape is None or value is None or value.dtype in _SIZELESS:
        return None
    assert value.dtype is not None
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def _sole_quantizer(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    single = len(uses) == 1 and not value.is_graph_output() and uses[0].node.op_type == "QuantizeLinear"
    return uses[0].node if single else None


def _is_integer(node: ir.Node) -> bool:
    """All data the node multiplies or moves comes from DequantizeLinear: runtimes run it on the integers."""
    if node.op_type in _QUANTIZERS:
        return False
    data = [value for value in node.inputs[:2] if value is not None]
    floats = [value for value in data if value.dtype is None or value.dtype.is_floating_point()]
    return bool(floats) and all(_stored(value) is not value for value in floats)


def _is_fused_quantizer(node: ir.Node) -> bool:
    if node.op_type == "DequantizeLinear":
        readers = [usage.node for usage in node.outputs[0].uses()]
        constant = constant_tensor(node.inputs[0]) is not None
        return bool(readers) and (constant or all(_is_integer(reader) for reader in readers))
    if node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
        producer = node.inputs[0].producer()
        return producer is not None and _is_integer(producer) and _sole_quantizer(node.inputs[0]) is node
    return False


def _compute_type(node: ir.Node, integer: bool) -> str:
    values = [_stored(value) if integer else value for value in node.inputs if value is not None]
    for value in [*values, *node.outputs]:
        if value is not None and value.dtype not in (None, ir.DataType.UNDEFINED):
            assert value.dtype is not None
            return value.dtype.name
    return "UNDEFINED"


def _findings(costs: Iterable[NodeCost]) -> Iterator[Finding]:
    unknown = [cost for cost in costs if cost.macs is None]
    custom = [
        cost for cost in unknown if "::" in cost.op_type and not cost.op_type.startswith("com.microsoft::")
    ]
    for reason, group in (
        ("the operator is a custom one", custom),
        ("a size is unknown", [cost for cost in unknown if cost not in custom]),
    ):
        if group:
            first = group[0]
            yield Finding(
                "note",
                f"the work of {len(group)} node(s) is unknown because {reason}, "
                f"first at {first.name!r} ({first.op_type})",
                node=first.name,
            )
