"""What an ONNX file takes and gives, and the types of its nodes: read from the bytes, as JetPack has no onnx package.

The format is protocol buffers' (encoding: "Encoding", protobuf.dev); field numbers are those of onnx.proto3.
"""

import mmap
import os
from typing import Dict, Iterator, List, Set, Tuple, Union

from greencc.agent.backends.tensors import Spec
from greencc.agent.problem import Problem

# onnx.proto3, TensorProto.DataType.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
_Field = Tuple[int, Union[int, memoryview]]


class OnnxFacts:
    """Of a file.

    Attributes:
        inputs: Without those that have a value in the file.
        outputs: Of the graph.
        op_types: By the name of the node; those without a name are left out.
    """

    def __init__(self, inputs: List[Spec], outputs: List[Spec], op_types: Dict[str, str]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.op_types = op_types


def read_facts(path: str) -> OnnxFacts:
    """Read a file.

    Raises:
        Problem: ``input``: it cannot be read, or is no ONNX model.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise Problem("input", "%s is empty" % os.path.basename(path))
            # Closed when the last view of it is gone.
            return _facts(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise Problem("input", "%s cannot be read: %s" % (path, error.strerror)) from error
    except (IndexError, UnicodeDecodeError, TypeError) as error:
        raise Problem("input", "%s is no ONNX model" % os.path.basename(path)) from error


def _facts(whole: memoryview) -> OnnxFacts:
    inputs: List[Spec] = []
    outputs: List[Spec] = []
    valued: Set[str] = set()
    ops: Dict[str, str] = {}
    graphs = [value for number, value in _fields(whole) if number == 7]
    if len(graphs) != 1:
        raise IndexError("no graph")
    graph = graphs[0]
    for number, value in _fields(graph):
        if number == 1:
            name, op_type = _text(value, 3), _text(value, 4)
            if name:
                ops[name] = op_type
        elif number == 5:
            valued.add(_text(value, 8))
        elif number == 11:
            inputs.append(_spec(value))
        elif number == 12:
            outputs.append(_spec(value))
    return OnnxFacts([spec for spec in inputs if spec.name not in valued], outputs, ops)


def _spec(value: Union[int, memoryview]) -> Spec:
    """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2; dimension 1: value 1."""
    name: str = _text(value, 1)
    dtype: str = ""
    shape: List[int] = []
    for kind in _all(value, 2):
        for tensor in _all(kind, 1):
            for number, item in _fields(tensor):
                if number == 1:
                    dtype = _DTYPES.get(int(item), "") if isinstance(item, int) else ""
                elif number == 2:
                    shape = [_size(dimension) for dimension in _all(item, 1)]
    if not dtype:
        raise Problem("input", "%r is no tensor of a type that is known" % name)
    return Spec(name, dtype, shape)


def _size(dimension: Union[int, memoryview]) -> int:
    sizes = [value for number, value in _fields(dimension) if number == 1]
    return sizes[0] if sizes and isinstance(sizes[0], int) and sizes[0] > 0 else -1


def _all(message: Union[int, memoryview], wanted: int) -> Iterator[Union[int, memoryview]]:
    return (value for number, value in _fields(message) if number == wanted)


def _text(message: Union[int, memoryview], wanted: int) -> str:
    for value in _all(message, wanted):
        if isinstance(value, memoryview):
            return bytes(value).decode("utf-8")
    return ""


def _fields(message: Union[int, memoryview]) -> Iterator[_Field]:
    """Number and value of every field; groups do not occur in ONNX."""
    if not isinstance(message, memoryview):
        raise TypeError("no message")
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise IndexError("a field of kind %d" % kind)
        if at + length > end:
            raise IndexError("a field that ends after its message")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number that is too long")
