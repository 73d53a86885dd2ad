"""Inputs and outputs of an engine on a device, as raw bytes whose number is checked against type and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greencc.devices.process import printable
from greencc.devices.protocol import ProtocolError

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}
"""Types that go over, by numpy's name."""
_MOST_PORTS = 1000
_MOST_RANK = 32
_MOST_NAME = 1000
_VARIES = -1


@dataclass(frozen=True)
class Port:
    """An input or output: name, numpy's name of its type, shape (-1: varies)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of its values; its shape must be known."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def as_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass
class OpenedEngine:
    """A resident engine, and what is needed to make it resident again.

    Attributes:
        job: The build's ID.
        inputs: As the engine has them.
        outputs: Likewise.
        handle: The device's name for it; perhaps another one each time that it is opened.
    """

    job: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    handle: str


def parse_ports(told: Any, what: str, *, known_shape: bool) -> tuple[Port, ...]:
    """What a device tells of inputs or outputs.

    Args:
        told: Untrusted.
        what: For messages: the device, and inputs or outputs.
        known_shape: No dimension may vary.

    Raises:
        ProtocolError: It is not what it should be.
    """
    if not isinstance(told, list) or len(told) > _MOST_PORTS:
        raise ProtocolError(f"{what}: no list of them")
    return tuple(_port(item, what, known_shape) for item in told)


def _port(told: Any, what: str, known_shape: bool) -> Port:
    match told:
        case {"name": str(name), "dtype": str(dtype), "shape": [*shape]} if len(name) <= _MOST_NAME:
            if dtype not in ITEM_BYTES:
                raise ProtocolError(f"{what}: {printable(dtype, 40)!r} is no type of tensors")
            least = 0 if known_shape else _VARIES
            fine = all(isinstance(size, int) and least <= size < 1 << 40 for size in shape)
            if fine and len(shape) <= _MOST_RANK:
                return Port(name, dtype, tuple(int(size) for size in shape))
    raise ProtocolError(f"{what}: one without name, type or shape")


def split(payload: bytes, ports: Sequence[Port], what: str) -> list[tuple[Port, bytes]]:
    """The bytes of each output.

    Raises:
        ProtocolError: There are more or fewer than the shapes need.
    """
    found, begin = [], 0
    for port in ports:
        end = begin + port.nbytes
        found.append((port, payload[begin:end]))
        begin = end
    if begin != len(payload):
        raise ProtocolError(f"{what}: {len(payload):,} bytes came, and their shapes need {begin:,}")
    return found
