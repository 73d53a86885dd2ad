"""Read model files, trusting nothing in them."""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from greencc.core.errors import InputError
from greencc.core.graph import ONNX_DOMAINS, graphs_of
from greencc.core.serialization import root_cause
from greencc.core.shapes import check_model, infer_shapes
from greencc.core.topology import is_sorted
from greencc.core.validation import validate

_PROTOBUF_LIMIT = (1 << 31) - 1
_CONSTANT_INITIALIZERS = 4
"""IR version from which initializers need not be graph inputs."""

_UNKNOWN_DIMS = frozenset({"", "?", "-1", "None"})

_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (0, b"PK\x03\x04", "a ZIP archive", "PyTorch checkpoints and archives must be exported to ONNX first"),
    (0, b"\x1f\x8b", "gzip-compressed", "decompress it first"),
    (0, b"\x89HDF", "an HDF5 file", "convert it with tf2onnx"),
    (0, b"\x80\x02", "a Python pickle", "export the model to ONNX; greencc reads no pickles"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx --tflite"),
    (4, b"ORTM", "an ORT-format model", "give the ONNX model it was made from"),
    (0, b"<", "a web or XML page", "download the file itself"),
    (0, b"{", "a JSON file", "give the binary .onnx file"),
)

_BUILD_FAILURES = (
    ir.serde.SerdeError,
    AssertionError,
    KeyError,
    NotImplementedError,
    OverflowError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
)


def load_model(path: Path) -> ir.Model:
    """Load and check a model.

    The model comes back sorted, with inferred shapes, and having passed the full ONNX check. Operators of
    custom domains, functions, subgraphs, annotations and metadata are kept as they are. Weights stay in
    their file: external data is memory-mapped when it is read.

    Initializers that are graph inputs as well (required before IR version 4, and a default that callers may
    override since) are constants here, as they are to runtimes that fold them: they are dropped from the inputs.

    Args:
        path: A binary ONNX file, opset 9 to 23; external data lies in its folder.

    Raises:
        InputError: The file is missing, no ONNX model, inconsistent or hostile; the message names the file and
            the node or tensor.
    """
    path = Path(path)
    proto = _parse(path)
    validate(proto, path)
    _forget_unknown_dims(proto)
    ordered = is_sorted(proto.graph) and all(is_sorted(function) for function in proto.functions)
    try:
        model = ir.from_proto(proto)
    except _BUILD_FAILURES as error:
        raise InputError(
            f"{path}: {root_cause(error)}", hint="the file is damaged; export it again"
        ) from error
    del proto
    _normalise(model, path, ordered)
    try:
        infer_shapes(model)
        check_model(model)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    return model


def input_defaults(path: Path) -> tuple[str, ...]:
    """Graph inputs of a model file that have a default; `load_model` makes constants of them.

    Raises:
        InputError: As `load_model`.
    """
    graph = _parse(Path(path)).graph
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(value.name for value in graph.input if value.name in constants)


def _forget_unknown_dims(proto: onnx.ModelProto) -> None:
    """Write "unknown" the way ONNX does: exporters also say -1 or `?`, which would make all of them equal."""
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or (dim.HasField("dim_param") and dim.dim_param in _UNKNOWN_DIMS):
                dim.ClearField("value")


def _parse(path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{path} is {kind}", hint="give the path of an .onnx file")
        if status.st_size == 0:
            raise InputError(f"{path} is empty", hint="export or copy the model again")
        if status.st_size > _PROTOBUF_LIMIT:
            raise InputError(
                f"{path} has {status.st_size:,} bytes, more than the 2 GiB a protobuf may have",
                hint="save the model with external data",
            )
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            head = bytes(content[:64]).lstrip() or b"\0"
            try:
                proto.ParseFromString(content)
            except DecodeError as error:
                raise _not_onnx(path, head) from error
            if not proto.HasField("graph") and _sniff(head):
                raise _not_onnx(path, head)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot read the model {path}: {reason}", hint="check the path") from error
    return proto


def _sniff(head: bytes) -> tuple[str, str] | None:
    for offset, magic, what, hint in _FORMATS:
        if head[offset:].startswith(magic):
            return what, hint
    return None


def _not_onnx(path: Path, head: bytes) -> InputError:
    known = _sniff(head)
    if known is not None:
        return InputError(f"{path} is not an ONNX model but {known[0]}", hint=known[1])
    return InputError(
        f"{path} is not an ONNX model, or it is truncated or damaged", hint="export or copy it again"
    )


def _normalise(model: ir.Model, path: Path, ordered: bool) -> None:
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        for domain in ONNX_DOMAINS - {""}:
            if domain in imports:
                imports[""] = imports.pop(domain)
    folder = path.absolute().parent
    for tensor in _external_tensors(model):
        tensor.base_dir = folder
    constants = model.graph.initializers
    if any(value.name in constants for value in model.graph.inputs):
        kept = [value for value in model.graph.inputs if value.name not in constants]
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
    model.ir_version = max(model.ir_version, _CONSTANT_INITIALIZERS)
    if not ordered:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()


def _external_tensors(model: ir.Model) -> Iterable[ir.ExternalTensor]:
    for graph in graphs_of(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    tensors: Iterable[ir.TensorProtocol] = [attribute.as_tensor()]
                elif attribute.type == ir.AttributeType.TENSORS:
                    tensors = attribute.as_tensors()
                else:
                    continue
                yield from (tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
