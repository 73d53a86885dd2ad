"""What a model file must satisfy before the intermediate representation is built from it.

`onnx.checker` reads whole models into C++ and its messages rarely say what to do; `onnx_ir` accepts graphs
with dangling names and tensors whose data is missing. These checks run on the parsed protobuf instead, touch
no weights, allocate nothing that the file itself does not already hold, and name the node or tensor at fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto

from greencc.core.errors import InputError
from greencc.core.operators import closest, introductions, operators_at
from greencc.core.tensors import check_tensor
from greencc.core.topology import every_node, find_cycle

MIN_OPSET = 9
MAX_OPSET = 23
MIN_IR_VERSION = 3
"""Before IR version 3 models have no operator sets."""
MAX_NESTING = 16
"""Depth of If/Loop/Scan bodies, and of functions that call functions."""
MAX_EXPANDED_NODES = 2_000_000
"""Nodes after all function calls are inlined; a few nested functions can stand for billions."""

_CHECKED_DOMAINS = ("", "ai.onnx.ml")
_SUPPORTED = f"greencc reads opset {MIN_OPSET} to {MAX_OPSET}"

FunctionKey = tuple[str, str, str]


def domain_of(name: str) -> str:
    """The default domain has two spellings; use the empty one."""
    return "" if name == "ai.onnx" else name


def node_label(node: NodeProto) -> str:
    """The node as messages show it."""
    operator = f"{node.domain}::{node.op_type}" if domain_of(node.domain) else node.op_type
    name = node.name or next((output for output in node.output if output), "")
    return f"node {name!r} ({operator})"


def validate(proto: ModelProto, path: Path) -> None:
    """Check a parsed model file.

    Args:
        proto: The model; external data is not loaded.
        path: The file it came from. External data must lie in its folder.

    Raises:
        InputError: The model is incomplete, inconsistent, too old or too new, or its weights are missing,
            short or outside the folder.
    """
    try:
        _Validator(proto, path).run()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a name is not valid UTF-8: {error.reason}", hint="the file is corrupt; export it again"
        ) from error


class _Validator:
    def __init__(self, proto: ModelProto, path: Path) -> None:
        self.proto = proto
        self.path = path
        self.functions: dict[FunctionKey, FunctionProto] = {}
        self.references: dict[FunctionKey, dict[str, int]] = {}

    def fail(
        self, what: str, hint: str = "the file is damaged or its exporter is; export it again"
    ) -> InputError:
        return InputError(f"{self.path}: {what}", hint=hint)

    def run(self) -> None:
        proto = self.proto
        if not proto.HasField("graph"):
            raise self.fail("has no graph", "is this an ONNX model? export it again")
        if not MIN_IR_VERSION <= proto.ir_version <= onnx.IR_VERSION:
            raise self.fail(
                f"has IR version {proto.ir_version}",
                f"IR versions {MIN_IR_VERSION} to {onnx.IR_VERSION} are known; export it again",
            )
        if not proto.graph.node:
            raise self.fail("the graph has no nodes", "there is nothing to compile; export it again")
        if not proto.graph.output:
            raise self.fail("the graph has no outputs", "declare at least one graph output")
        opsets = self._opsets()
        for function in proto.functions:
            key = (domain_of(function.domain), function.name, function.overload)
            if key in self.functions:
                raise self.fail(f"function {function.domain}::{function.name} is defined twice")
            self.functions[key] = function
        self._interface()
        self._graph(proto.graph, [], 0, opsets)
        for function in proto.functions:
            self._function(function)
        self._calls()

    def _opsets(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self.proto.opset_import:
            domain = domain_of(entry.domain)
            if found.setdefault(domain, entry.version) != entry.version:
                raise self.fail(f"imports domain {domain or 'ai.onnx'!r} at two versions")
        if "" not in found:
            raise self.fail("does not say which opset it uses", f"{_SUPPORTED}; export it again")
        if found[""] < MIN_OPSET:
            raise self.fail(
                f"uses opset {found['']}",
                f"{_SUPPORTED}; export with a newer opset or run onnx.version_converter",
            )
        if found[""] > MAX_OPSET:
            raise self.fail(
                f"uses opset {found['']}", f"{_SUPPORTED}; export with opset {MAX_OPSET} or older"
            )
        return found

    def _interface(self) -> None:
        graph = self.proto.graph
        for kind, values in (("input", graph.input), ("output", graph.output)):
            for value in values:
                if not value.name:
                    raise self.fail(f"a graph {kind} has no name")
                form = value.type.WhichOneof("value")
                if form is None or (form == "tensor_type" and not value.type.tensor_type.elem_type):
                    if kind == "input":
                        raise self.fail(f"input {value.name!r} has no type", "export it again")
                elif form != "tensor_type":
                    raise self.fail(
                        f"{kind} {value.name!r} is a {_form(value.type)}, not a tensor",
                        "greencc feeds and compares tensors; export the model with tensor inputs and outputs"
                        + (" (sklearn: zipmap=False)" if kind == "output" else ""),
                    )

    def _graph(
        self, graph: GraphProto, scopes: Sequence[set[str]], depth: int, opsets: dict[str, int]
    ) -> set[str]:
        """Check one graph and return the names it reads from the graphs around it."""
        if depth > MAX_NESTING:
            raise self.fail(
                f"subgraphs are nested deeper than {MAX_NESTING} at graph {graph.name!r}",
                "flatten the If/Loop/Scan nodes",
            )
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise self.fail(f"initializer {name!r} is sparse", "store it as a dense initializer")
        where = "the graph" if depth == 0 else f"subgraph {graph.name!r}"
        inputs = [value.name for value in graph.input]
        self._unique(inputs, f"inputs of {where}")
        initializers = []
        for tensor in graph.initializer:
            if not tensor.name:
                raise self.fail(f"an initializer of {where} has no name")
            initializers.append(tensor.name)
            check_tensor(tensor, f"initializer {tensor.name!r}", self.path)
        self._unique(initializers, f"initializers of {where}")
        outputs = [value.name for value in graph.output]
        self._unique(outputs, f"outputs of {where}")
        return self._body(graph.node, {*inputs, *initializers}, outputs, scopes, depth, opsets, where)

    def _function(self, function: FunctionProto) -> None:
        where = f"function {function.domain}::{function.name}"
        opsets = {domain_of(entry.domain): entry.version for entry in function.opset_import}
        for attribute in function.attribute_proto:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                check_tensor(tensor, f"the default of attribute {attribute.name!r} of {where}", self.path)
        self._unique(list(function.input), f"inputs of {where}")
        self._unique(list(function.output), f"outputs of {where}")
        self._body(function.node, set(function.input), list(function.output), [], 0, opsets, where)

    def _body(
        self,
        nodes: Sequence[NodeProto],
        given: set[str],
        outputs: Iterable[str],
        scopes: Sequence[set[str]],
        depth: int,
        opsets: dict[str, int],
        where: str,
    ) -> set[str]:
        producer: dict[str, int] = {}
        for index, node in enumerate(nodes):
            self._operator(node, opsets)
            for name in node.output:
                if not name:
                    continue
                if name in producer or name in given:
                    other = (
                        node_label(nodes[producer[name]]) if name in producer else "an input or initializer"
                    )
                    raise self.fail(
                        f"{node_label(node)} writes {name!r}, which {other} already defines",
                        "every value needs a single definition; export it again",
                    )
                producer[name] = index
        local = given | producer.keys()
        free: set[str] = set()
        depends: list[list[int]] = []
        for node in nodes:
            reads = [name for name in node.input if name]
            for attribute in node.attribute:
                reads.extend(self._attribute(attribute, node, [*scopes, local], depth, opsets))
            for name in reads:
                if name in local:
                    continue
                if not any(name in scope for scope in scopes):
                    raise self.fail(
                        f"{node_label(node)} reads {name!r}, which nothing defines",
                        "the graph is incomplete; export it again",
                    )
                free.add(name)
            depends.append(sorted({producer[name] for name in reads if name in producer}))
        for name in outputs:
            if name not in local:
                raise self.fail(f"output {name!r} of {where} is never written", "export the model again")
        cycle = find_cycle(depends)
        if cycle:
            shown = " -> ".join(node_label(nodes[index]) for index in [*cycle[:8], cycle[0]])
            raise self.fail(f"the graph has a cycle: {shown}", "ONNX graphs are acyclic; use Loop or Scan")
        return free

    def _attribute(
        self,
        attribute: AttributeProto,
        node: NodeProto,
        scopes: Sequence[set[str]],
        depth: int,
        opsets: dict[str, int],
    ) -> Iterator[str]:
        where = f"attribute {attribute.name!r} of {node_label(node)}"
        if attribute.type == AttributeProto.UNDEFINED and not attribute.ref_attr_name:
            raise self.fail(f"{where} has no type")
        if attribute.type == AttributeProto.TENSOR and not (
            attribute.HasField("t") or attribute.ref_attr_name
        ):
            raise self.fail(f"{where} has no tensor")
        if attribute.type == AttributeProto.GRAPH and not (
            attribute.HasField("g") or attribute.ref_attr_name
        ):
            raise self.fail(f"{where} has no graph")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise self.fail(f"{where} is sparse", "store it as a dense tensor")
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            check_tensor(tensor, where, self.path)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from sorted(self._graph(graph, scopes, depth + 1, opsets))

    def _operator(self, node: NodeProto, opsets: dict[str, int]) -> None:
        domain = domain_of(node.domain)
        if not node.op_type:
            raise self.fail(f"{node_label(node)} has no operator", "the file is corrupt; export it again")
        callee = self._callee(node)
        if callee is not None:
            if len(node.input) > len(callee.input) or len(node.output) > len(callee.output):
                raise self.fail(
                    f"{node_label(node)} passes {len(node.input)} inputs and {len(node.output)} outputs to a "
                    f"function of {len(callee.input)} and {len(callee.output)}"
                )
            wanted = self._reference_types(callee)
            for attribute in (*callee.attribute_proto, *node.attribute):
                if wanted.get(attribute.name, attribute.type) != attribute.type:
                    raise self.fail(f"{node_label(node)} passes attribute {attribute.name!r} of another type")
            return
        if domain not in opsets:
            raise self.fail(
                f"{node_label(node)} is of domain {domain or 'ai.onnx'!r}, which is not imported",
                "add the domain to the opset imports",
            )
        if domain not in _CHECKED_DOMAINS:
            return
        known = operators_at(domain, opsets[domain])
        if node.op_type in known:
            if known[node.op_type]:
                raise self.fail(
                    f"{node_label(node)}: the operator was removed before opset {opsets[domain]}",
                    "run onnx.version_converter or export again",
                )
            return
        newer = [version for name, version in introductions(domain) if name == node.op_type]
        raise self.fail(
            f"{node_label(node)}: {domain or 'ai.onnx'} opset {opsets[domain]} has no such operator",
            f"it came with opset {min(newer)}; raise the opset import"
            if newer
            else f"custom operators need a domain of their own; {closest(node.op_type, known)}",
        )

    def _callee(self, node: NodeProto) -> FunctionProto | None:
        return self.functions.get((domain_of(node.domain), node.op_type, node.overload))

    def _reference_types(self, function: FunctionProto) -> dict[str, int]:
        """The types in which a function uses its attributes."""
        key = (domain_of(function.domain), function.name, function.overload)
        if key not in self.references:
            self.references[key] = {
                attribute.ref_attr_name: attribute.type
                for node in every_node(function.node)
                for attribute in node.attribute
                if attribute.ref_attr_name
            }
        return self.references[key]

    def _calls(self) -> None:
        """Bound recursion and the size of the model once functions are inlined."""
        sizes: dict[int, int] = {}
        active: list[FunctionProto] = []

        def size(function: FunctionProto) -> int:
            if id(function) in sizes:
                return sizes[id(function)]
            if any(function is other for other in active):
                raise self.fail(f"function {function.domain}::{function.name} calls itself")
            if len(active) >= MAX_NESTING:
                raise self.fail(f"functions are nested deeper than {MAX_NESTING} at {function.name!r}")
            active.append(function)
            sizes[id(function)] = total(function.node)
            active.pop()
            return sizes[id(function)]

        def total(nodes: Iterable[NodeProto]) -> int:
            count = 0
            for node in every_node(nodes):
                callee = self._callee(node)
                count += 1 if callee is None else size(callee)
                if count > MAX_EXPANDED_NODES:
                    raise self.fail(
                        f"has more than {MAX_EXPANDED_NODES:,} nodes once its functions are inlined",
                        "split the model",
                    )
            return count

        total(self.proto.graph.node)
        for function in self.functions.values():
            size(function)

    def _unique(self, names: Sequence[str], what: str) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise self.fail(f"{what}: {twice[0]!r} appears twice", "names must be unique; export it again")


def _form(kind: TypeProto) -> str:
    return str(kind.WhichOneof("value")).removesuffix("_type").replace("_", " ")
