"""Tensors as bytes: what a message says of them, checked against what a model takes."""

import array
from typing import Any, Dict, List, Sequence

from greencc.agent.problem import Problem

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}


class Spec:
    """One tensor of a model: its name, dtype and shape; a free dimension is -1."""

    def __init__(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = tuple(int(size) for size in shape)

    def as_json(self) -> Dict[str, Any]:
        """As in messages."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, found: Dict[str, Any]) -> "Spec":
        """As in messages.

        Raises:
            Problem: ``input``: it is no tensor.
        """
        try:
            spec = cls(str(found["name"]), str(found["dtype"]), found["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise Problem("input", "this is no description of a tensor: %r" % (found,)) from error
        if spec.dtype not in ITEM_BYTES:
            raise Problem("input", "%s: the type %r is not known" % (spec.name, spec.dtype))
        return spec

    @property
    def free(self) -> bool:
        """A dimension is not fixed."""
        return any(size < 0 for size in self.shape)

    @property
    def nbytes(self) -> int:
        """Of a tensor of this shape, which must be fixed."""
        return ITEM_BYTES[self.dtype] * product(self.shape)


def product(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def all_specs(found: Sequence[Dict[str, Any]]) -> List[Spec]:
    """`Spec.from_json` of each."""
    return [Spec.from_json(each) for each in found]


def check(given: Sequence[Spec], wanted: Sequence[Spec]) -> List[Spec]:
    """The given inputs in the model's order.

    Raises:
        Problem: ``input``: one is missing, unknown, or of another type or shape.
    """
    by_name = {spec.name: spec for spec in given}
    unknown = sorted(set(by_name) - {spec.name for spec in wanted})
    if unknown:
        raise Problem("input", "the model has no input %r" % unknown[0])
    found = []
    for spec in wanted:
        got = by_name.get(spec.name)
        if got is None:
            raise Problem("input", "input %r is missing" % spec.name)
        if got.dtype != spec.dtype:
            raise Problem("input", "input %r is %s, and not %s" % (spec.name, got.dtype, spec.dtype))
        fits = len(got.shape) == len(spec.shape) and all(
            size >= 0 and want in (-1, size) for size, want in zip(got.shape, spec.shape)
        )
        if not fits:
            raise Problem(
                "input",
                "input %r has the shape %s, and not %s"
                % (spec.name, list(got.shape), [size if size >= 0 else "any" for size in spec.shape]),
            )
        found.append(got)
    return found


def views(given: Sequence[Spec], payload: memoryview) -> Dict[str, memoryview]:
    """The bytes of each tensor, by name, from all of them one after another.

    Raises:
        Problem: ``input``: there are more bytes, or fewer.
    """
    total = sum(spec.nbytes for spec in given)
    if total != len(payload):
        raise Problem("input", "the inputs have %d bytes, and %d came" % (total, len(payload)))
    found, offset = {}, 0
    for spec in given:
        found[spec.name] = payload[offset : offset + spec.nbytes]
        offset += spec.nbytes
    return found


_CODES = {"int64": "q", "int32": "i"}


def converted(data: memoryview, dtype: str, wanted: str) -> memoryview:
    """Whole numbers of 64 bits as 32, and back: before TensorRT 10 it has no others.

    Raises:
        Problem: ``input``: a number does not fit.
    """
    if dtype == wanted:
        return data
    numbers = array.array(_CODES[dtype])
    numbers.frombytes(bytes(data))
    try:
        return memoryview(array.array(_CODES[wanted], numbers)).cast("B")
    except OverflowError as error:
        raise Problem("input", "an input has a number that 32 bits do not hold") from error
