"""Per-node times from OpenVINO's performance counters."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greencc.core.data import Feeds
from greencc.core.engine import NodeTime
from greencc.targets._openvino import infer, properties, read_model, translated

if TYPE_CHECKING:
    import onnx
    import openvino

# Each repeat compiles the model again: the counters are averages since then, and cannot be set back.
_REPEATS = 3
_WARM_UP_RUNS = 2
_INTEGER = re.compile(r"_[iu]8$", re.IGNORECASE)
_PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected"})
_MAX_WALK = 4
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_COMPUTE = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention"}
)


def profile(artifact: Path, threads: int, feeds: Feeds, runs: int) -> list[NodeTime]:
    """Microseconds per node of OpenVINO's graph, in its order: the median of means over parts of at least `runs` runs.

    A node made of several is named after one node of the ONNX file: its convolution or product, else the first of
    them that is no conversion. Operator types are OpenVINO's, with ":int8" where an integer kernel ran; a node that
    only quantizes or dequantizes has the type of that, and one that the runtime inserted keeps its name.

    Raises:
        InputError: OpenVINO cannot load or run the model.
    """
    loaded = read_model(artifact)
    sizes = {spec.name: spec.batch for spec in loaded.inputs}
    values = [feeds[name][: sizes[name]] for name in loaded.used]
    times: dict[str, list[float]] = {}
    rows: dict[str, tuple[str, str]] = {}
    for _ in range(_REPEATS):
        compiled = loaded.compile(properties(threads, profile=True))
        try:
            measured = _means(compiled.create_infer_request(), values, -(-runs // _REPEATS))
        except Exception as error:
            raise translated(error, f"running {loaded.name}", None) from error
        for key, microseconds in measured.items():
            times.setdefault(key, []).append(microseconds)
        rows = rows or describe_nodes(compiled, Nodes(artifact))
    return [NodeTime(*rows[key], statistics.median(found)) for key, found in times.items() if key in rows]


class Nodes:
    """The nodes of an ONNX file, to be found by the names that OpenVINO makes of theirs."""

    def __init__(self, artifact: Path) -> None:
        import onnx

        self._found: dict[str, onnx.NodeProto] = {}
        for node in onnx.load(artifact, load_external_data=False).graph.node:
            for key in (*node.output, node.name):
                if key:
                    self._found[key] = node

    def origin(self, names: Iterable[str], *, product: bool) -> tuple[str, str] | None:
        """Name and type of the one of several nodes that a fused node is called after.

        Args:
            names: Of the nodes it was made of, as OpenVINO calls them.
            product: It multiplies by weights: where none of the names is such a node (BatchNormalization, folded into
                the weights, takes the place of its convolution), the one before it is meant.
        """
        found = [node for name in names if (node := self._find(name)) is not None]
        node = min(
            found, key=lambda node: (node.op_type in _CONVERSIONS, node.op_type not in _COMPUTE), default=None
        )
        if node is None:
            return None
        if product:
            node = self._computing(node)
        return node.name or next(filter(None, node.output), ""), node.op_type

    def _find(self, name: str) -> onnx.NodeProto | None:
        """The node that a name was made from: OpenVINO appends parts (``/WithoutBiases``)."""
        while name:
            if name in self._found:
                return self._found[name]
            name = name.rpartition("/")[0]
        return None

    def _computing(self, start: onnx.NodeProto) -> onnx.NodeProto:
        node: onnx.NodeProto | None = start
        for _ in range(_MAX_WALK):
            if node is None:
                break
            if node.op_type in _COMPUTE:
                return node
            node = self._found.get(node.input[0]) if node.input else None
        return start


def _means(request: openvino.InferRequest, values: Sequence[Any], runs: int) -> Mapping[str, float]:
    """Mean microseconds of the nodes that ran, without those of the warm-up."""
    for _ in range(_WARM_UP_RUNS):
        infer(request, values)
    before = _averages(request)
    for _ in range(runs):
        infer(request, values)
    total = runs + _WARM_UP_RUNS
    return {
        key: max(0.0, (average * total - before.get(key, 0.0) * _WARM_UP_RUNS) / runs)
        for key, average in _averages(request).items()
    }


def _averages(request: openvino.InferRequest) -> dict[str, float]:
    """Microseconds since the model was compiled, averaged by the plugin over its runs, in whole numbers."""
    return {
        row.node_name: row.real_time.total_seconds() * 1e6
        for row in request.profiling_info
        if row.status.name == "EXECUTED"
    }


def describe_nodes(compiled: openvino.CompiledModel, nodes: Nodes) -> dict[str, tuple[str, str]]:
    """Name and type that each node of the runtime's graph is reported under, by the runtime's own names."""
    rows = {}
    constant: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        sources = {source.get_node().get_friendly_name() for source in node.input_values()}
        facts = node.get_rt_info()
        kind, primitive, names = (
            str(facts[key].astype(str)) for key in ("layerType", "primitiveType", "originalLayersNames")
        )
        name = node.get_friendly_name()
        if kind in ("Input", "Output"):
            continue
        if kind == "Const" or (sources and sources <= constant):
            # Weights are rearranged once, when the model is loaded.
            constant.add(name)
            continue
        # Reorders are named after what they stand before.
        origin = None if kind == "Reorder" else nodes.origin(names.split(","), product=kind in _PRODUCTS)
        if origin is None:
            rows[name] = (name, kind)
        elif origin[1] in _CONVERSIONS:
            rows[name] = origin
        else:
            rows[name] = (origin[0], f"{kind}:int8" if _INTEGER.search(primitive) else kind)
    return rows
