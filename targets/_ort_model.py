"""Hand an `onnx_ir.Model` to ONNX Runtime without copying its weights.

Large initializers stay where they are (memory or a mapped file): the serialised model only names them, and the session
gets their buffers through `SessionOptions.add_external_initializers`. So a reference engine of a model beyond the 2 GB
of protobuf costs no copy and no temporary file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from greencc.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import onnxruntime as ort

# Below this size an initializer travels in the message: shapes and axes must be there for shape inference.
_SHARE_FROM_BYTES = 4096
_SHAREABLE = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    }
)


@dataclass(frozen=True)
class SharedModel:
    """A serialised model and the weights it names. `keep` must outlive the session."""

    proto: bytes
    names: tuple[str, ...]
    values: tuple[ort.OrtValue, ...]
    keep: tuple[object, ...]
    nbytes: int


def expose(model: ir.Model, outputs: Sequence[str]) -> tuple[ir.Model, frozenset[str]]:
    """Return a clone whose outputs are exactly `outputs`, and which of them are inner values.

    Values of the main graph can be named; values inside sub-graphs (of If, Loop, Scan) and functions cannot. Nodes that
    no wanted value needs are dropped from the clone.

    Raises:
        InputError: A name is not a value of the main graph.
    """
    clone = model.clone()
    graph = clone.graph
    known = {value.name: value for value in graph.inputs if value.name}
    known |= {value.name: value for value in graph.initializers.values() if value.name}
    known |= {value.name: value for node in graph for value in node.outputs if value.name}
    original = {value.name for value in graph.outputs}
    for name in outputs:
        if name not in known:
            raise InputError(
                f"the model has no value {name!r} in its main graph",
                hint=did_you_mean(name, sorted(known)[:2000]),
            )
    inner = frozenset(name for name in outputs if name not in original)
    for name in inner - {value.name for value in graph.inputs} - set(graph.initializers):
        # The recorded shape of an inner value may be stale; the runtime infers its own.
        known[name].shape = None
    graph.outputs.clear()
    graph.outputs.extend(known[name] for name in dict.fromkeys(outputs))
    RemoveUnusedNodesPass()(clone)
    return clone, inner


def share(model: ir.Model) -> SharedModel:
    """Serialise a model; its large initializers are only referenced. The model is left unchanged."""
    import onnxruntime as ort

    clone = model.clone()
    inputs = {value.name for value in clone.graph.inputs}
    names: list[str] = []
    values: list[ort.OrtValue] = []
    keep: list[object] = []
    nbytes = 0
    for graph in clone.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            large = tensor.nbytes >= _SHARE_FROM_BYTES and tensor.dtype in _SHAREABLE
            if large and graph is clone.graph and name not in inputs:
                array = np.ascontiguousarray(tensor.numpy())
                names.append(name)
                values.append(ort.OrtValue.ortvalue_from_numpy(array))
                keep += [array, tensor]
                nbytes += array.nbytes
                value.const_value = _reference(name, tensor)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=name
                )
    return SharedModel(
        ir.to_proto(clone).SerializeToString(), tuple(names), tuple(values), tuple(keep), nbytes
    )


def _reference(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """A tensor "stored" in a file that is never opened: the session gets its data by name."""
    return ir.ExternalTensor(
        "in-memory",
        0,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir="",
    )
