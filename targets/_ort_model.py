"""Hand an `onnx_ir.Model` to ONNX Runtime without copying its weights into one message.

Weights that lie in a file stay there: the serialised model names the file, and the session maps it
(`session.model_external_initializers_file_folder_path`). Large weights in memory are only named as well; the session
gets their buffers through `SessionOptions.add_external_initializers`. So a reference engine of a model beyond the 2 GB
of protobuf needs neither a temporary file nor memory for the weights that no pass has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """A serialised model and where its weights are.

    Attributes:
        proto: The message.
        names: Initializers whose data is handed over as `values`.
        values: Likewise.
        folder: The folder of the weights that stay in a file, or None.
        keep: What the values point into; must outlive the session.
        nbytes: Bytes of all weights left out of the message.
    """

    proto: bytes
    names: tuple[str, ...]
    values: tuple[ort.OrtValue, ...]
    folder: Path | None
    keep: tuple[object, ...]
    nbytes: int

    def register(self, options: ort.SessionOptions) -> None:
        """Tell a session where the weights are."""
        if self.names:
            options.add_external_initializers(list(self.names), list(self.values))
        if self.folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self.folder)
            )


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
    folder = _main_folder(clone)
    inputs = {value.name for value in clone.graph.inputs}
    names: list[str] = []
    values: list[ort.OrtValue] = []
    keep: list[object] = []
    nbytes = 0
    for graph in clone.graphs():
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            if name not in inputs and not value.uses() and not value.is_graph_output():
                # The runtime drops what nothing reads, and then cannot find it to hand the data over.
                del graph.initializers[name]
                continue
            large = tensor.nbytes >= _SHARE_FROM_BYTES and graph is clone.graph and name not in inputs
            if large and folder is not None and _folder(tensor) == folder:
                keep.append(tensor)
                nbytes += tensor.nbytes
            elif large and tensor.dtype in _SHAREABLE:
                array = np.ascontiguousarray(tensor.numpy())
                names.append(name)
                values.append(ort.OrtValue.ortvalue_from_numpy(array))
                keep += [array, tensor]
                nbytes += tensor.nbytes
                value.const_value = _reference(name, tensor)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=name
                )
    proto = ir.to_proto(clone).SerializeToString()
    return SharedModel(proto, tuple(names), tuple(values), folder, tuple(keep), nbytes)


def _folder(tensor: ir.TensorProtocol) -> Path | None:
    """The folder a tensor's file location is relative to; None for tensors in memory and absolute locations."""
    if not isinstance(tensor, ir.ExternalTensor) or Path(tensor.location).is_absolute():
        return None
    return Path(tensor.base_dir).resolve()


def _main_folder(model: ir.Model) -> Path | None:
    """The folder most bytes of external weights lie in: a session can be told of one."""
    sizes: dict[Path, int] = {}
    for value in model.graph.initializers.values():
        if value.const_value is not None and (folder := _folder(value.const_value)) is not None:
            sizes[folder] = sizes.get(folder, 0) + value.const_value.nbytes
    return max(sorted(sizes), key=lambda folder: sizes[folder], default=None)


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
