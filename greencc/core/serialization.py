"""Write and identify models without ever holding all weights in memory.

`onnx_ir` serialises a model into one protobuf message; for a model with inline weights that message, its
bytes and the tensors are three copies. Here the message is made with *placeholders* instead of weights, and
the weights are streamed after it, tensor by tensor: into the fields of the file, into the data file, or into
a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import onnx
import onnx_ir as ir

from greencc.core.errors import InputError
from greencc.core.graph import graphs_of

EXTERNAL_THRESHOLD = 1_800_000_000
"""Bytes of weights from which a model is saved with external data; protobuf ends at 2 GiB."""
_PROTOBUF_LIMIT = (1 << 31) - 1
_EXTERNAL_MINIMUM = 1024
"""Smaller tensors stay in the model file, where runtimes need them for shape inference."""
_ALIGNMENT = 4096
"""Offsets are multiples of the page size, as the ONNX specification advises for memory mapping."""
_RAW_DATA_TAG = bytes([9 << 3 | 2])
_INITIALIZER_TAG = bytes([5 << 3 | 2])
_GRAPH_TAG = bytes([7 << 3 | 2])

Place = Callable[[ir.Value, ir.TensorProtocol], ir.TensorProtocol | None]
"""Returns what to serialise instead of an initializer, or None to write it inline."""


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Plain:
    """Hides `fileno`: tensors then write through Python's file object, which reports a full disk properly."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self.count = 0

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self.count += len(data)
        return len(data)


class _Hash:
    """A file object that feeds a hash."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.sha256.update(data)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialise a model whole.

    Raises:
        InputError: It holds something protobuf or ONNX cannot express.
    """
    try:
        return ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise InputError(
            f"the model cannot be written as ONNX: {root_cause(error)}",
            hint="the file is damaged, or a pass made an invalid node",
        ) from error


def root_cause(error: BaseException) -> str:
    """The first line of the exception that started a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextmanager
def replaced_weights(model: ir.Model, place: Place) -> Iterator[list[ir.TensorProtocol]]:
    """Inside the block, initializers are what `place` returns for them and every other tensor is inline.

    Yields the tensors that were replaced, in the order of `graphs_of`.
    """
    values: list[tuple[ir.Value, ir.TensorProtocol]] = []
    attributes: list[tuple[ir.Node, ir.Attr]] = []
    taken: list[ir.TensorProtocol] = []
    try:
        for graph in graphs_of(model):
            for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                instead = place(value, tensor)
                if instead is not None:
                    taken.append(tensor)
                values.append((value, tensor))
                value.const_value = instead if instead is not None else _inline(tensor)
            for node in graph:
                for attribute in list(node.attributes.values()):
                    if not attribute.is_ref() and attribute.type in _TENSOR_ATTRIBUTES:
                        attributes.append((node, attribute))
                        node.attributes[attribute.name] = _inline_attribute(attribute)
        yield taken
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attribute in attributes:
            node.attributes[attribute.name] = attribute


_TENSOR_ATTRIBUTES = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


def _inline(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor in the one form that is written as `raw_data` wherever it is stored."""
    if tensor.dtype == ir.DataType.STRING:
        return tensor
    if tensor.size == 0 and isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)  # which `tobytes` asserts against
    return ir.LazyTensor(
        lambda: tensor,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _inline_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, _inline(attribute.as_tensor()), attribute.doc_string)
    tensors = [_inline(tensor) for tensor in attribute.as_tensors()]
    return ir.AttrTensors(attribute.name, tensors, attribute.doc_string)


def placeholder(tensor: ir.TensorProtocol, name: str, location: str, offset: int) -> ir.ExternalTensor:
    """A tensor with all properties of another but its data."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def save_model(model: ir.Model, path: Path, *, external_threshold: int = EXTERNAL_THRESHOLD) -> list[Path]:
    """Write a model file; the same model gives the same bytes.

    Args:
        model: It is left unchanged, and keeps reading its weights from where they were.
        path: The model file. When the weights exceed `external_threshold` they go to `<name>.data` beside it.
        external_threshold: Bytes of initializers from which external data is used.

    Returns:
        The files written, the model file first.

    Raises:
        InputError: The files hold weights that the model still reads, or what is left without
            initializers is too large for protobuf.
        OSError: The files cannot be written.
    """
    data = path.with_name(f"{path.name}.data")
    total = 0
    for tensor in _initializers(model):
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() in (
            path.resolve(),
            data.resolve(),
        ):
            raise InputError(
                f"cannot write {path}: the model reads its weights from {tensor.path}",
                hint="save under another name",
            )
        total += tensor.nbytes
    if total > external_threshold:
        _save_external(model, path, data)
        return [path, data]
    _save_inline(model, path)
    return [path]


def _initializers(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _save_external(model: ir.Model, path: Path, data: Path) -> None:
    end = 0
    offsets: list[int] = []

    def place(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        nonlocal end
        if tensor.nbytes < _EXTERNAL_MINIMUM:
            return None
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(offset)
        end = offset + tensor.nbytes
        return placeholder(tensor, value.name or "", data.name, offset)

    with replaced_weights(model, place) as tensors:
        proto = to_proto(model)
    with path.open("wb") as stream:
        stream.write(_message(proto, path))
    with data.open("wb") as stream:
        for tensor, offset in zip(tensors, offsets, strict=True):
            stream.seek(offset)
            # Between files the kernel can copy by itself, so the tensor gets the real file object.
            if isinstance(tensor, ir.ExternalTensor):
                tensor.tofile(stream)
                if stream.tell() != offset + tensor.nbytes:
                    raise InputError(f"the data of tensor {tensor.name!r} in {tensor.path} has changed")
            else:
                _stream(tensor, stream)


def _save_inline(model: ir.Model, path: Path) -> None:
    """Write the fields of `ModelProto` and `GraphProto`, with each initializer's raw data last in it."""
    main = set(map(id, model.graph.initializers.values()))
    with replaced_weights(
        model,
        lambda value, tensor: placeholder(tensor, value.name or "", "", 0) if id(value) in main else None,
    ) as tensors:
        proto = to_proto(model)
    entries = [_Entry(initializer) for initializer in proto.graph.initializer]
    del proto.graph.initializer[:]
    graph = _message(proto.graph, path)
    size = len(graph) + sum(entry.size for entry in entries)
    proto.ClearField("graph")
    rest = _message(proto, path)
    if len(rest) + size + 16 > _PROTOBUF_LIMIT:
        raise InputError(f"cannot write {path}: the model is larger than 2 GiB", hint="use external data")
    waiting = iter(tensors)
    with path.open("wb") as stream:
        stream.write(rest + _GRAPH_TAG + _varint(size) + graph)
        for entry in entries:
            stream.write(entry.head)
            if entry.streams:
                _stream(next(waiting), stream)


class _Entry:
    """One initializer field: all of its bytes but the raw data, when `streams` says that data follows."""

    def __init__(self, proto: onnx.TensorProto) -> None:
        self.streams = proto.data_location == onnx.TensorProto.EXTERNAL
        raw, tail = 0, b""
        if self.streams:
            raw = next(int(entry.value) for entry in proto.external_data if entry.key == "length")
            proto.ClearField("external_data")
            proto.ClearField("data_location")
            tail = _RAW_DATA_TAG + _varint(raw)
        fields = proto.SerializeToString(deterministic=True) + tail
        self.head = _INITIALIZER_TAG + _varint(len(fields) + raw) + fields
        self.size = len(self.head) + raw


def _stream(tensor: ir.TensorProtocol, sink: _Sink) -> None:
    counter = _Plain(sink)
    # `tofile` came late to the tensor protocol; without it the bytes are made at once.
    write = getattr(tensor, "tofile", None)
    if write is not None:
        write(counter)
    else:
        counter.write(tensor.tobytes())
    if counter.count != tensor.nbytes:
        raise InputError(
            f"tensor {tensor.name!r} of shape {tensor.shape} needs {tensor.nbytes:,} bytes "
            f"but holds {counter.count:,}"
        )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(proto: onnx.ModelProto | onnx.GraphProto, path: Path) -> bytes:
    if proto.ByteSize() > _PROTOBUF_LIMIT:
        raise InputError(
            f"cannot write {path}: without its initializers the model is still larger than 2 GiB",
            hint="turn large Constant nodes into initializers",
        )
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def digest(model: ir.Model) -> str:
    """Hexadecimal SHA-256 over the graph and the weights.

    It does not depend on how the weights are stored (inline, external, typed fields or raw), on the inferred
    types of inner values or on the names of attribute tensors: loading, inferring and saving a model keep it.
    Tensors are read in pieces; memory-mapped ones stay on disk.
    """
    with replaced_weights(
        model, lambda value, tensor: placeholder(tensor, value.name or "", "", 0)
    ) as tensors:
        proto = to_proto(model)
    _clear_derived([proto.graph, *proto.functions])
    sink = _Hash()
    sink.write(proto.SerializeToString(deterministic=True))
    for tensor in tensors:
        _stream(tensor, sink)
    return sink.sha256.hexdigest()


def _clear_derived(graphs: Sequence[onnx.GraphProto | onnx.FunctionProto]) -> None:
    """Remove what passes and inference may rewrite without changing the model."""
    for graph in graphs:
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                    tensor.ClearField("name")
                if attribute.HasField("g"):
                    _clear_derived([attribute.g])
                _clear_derived(attribute.graphs)
