"""Between numpy's arrays and the raw little-endian bytes that go over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import InputError
from greencc.devices.engines import Port


def specs_of(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of an engine; sizes that vary have no name."""
    return tuple(
        TensorSpec(port.name, dtype_of(port), tuple(None if size < 0 else size for size in port.shape))
        for port in ports
    )


def dtype_of(port: Port) -> np.dtype[Any]:
    """Its element type."""
    if port.dtype == "bfloat16":
        # numpy knows it once this is imported.
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(port.dtype)


def as_bytes(feeds: Feeds, ports: Sequence[Port], name: str) -> list[tuple[Port, bytes]]:
    """The bytes of one inference, input by input in the engine's order, with the shapes that they have.

    Raises:
        InputError: An input is missing or unknown, or has another type or shape than the engine's.
    """
    known = {port.name for port in ports}
    if missing := [port.name for port in ports if port.name not in feeds]:
        raise InputError(f"{name}: the input {missing[0]!r} is missing")
    if unknown := [key for key in feeds if key not in known]:
        raise InputError(
            f"{name}: there is no input {unknown[0]!r}", hint=f"there are {', '.join(sorted(known))}"
        )
    return [_one(np.asarray(feeds[port.name]), port, name) for port in ports]


def _one(array: Array, port: Port, name: str) -> tuple[Port, bytes]:
    wanted = dtype_of(port)
    if array.dtype != wanted:
        raise InputError(f"{name}: the input {port.name!r} is {array.dtype}, not {wanted}")
    fits = len(array.shape) == len(port.shape) and all(
        size in (-1, given) for size, given in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        sizes = "x".join("?" if size < 0 else str(size) for size in port.shape)
        given = "x".join(map(str, array.shape))
        raise InputError(f"{name}: the input {port.name!r} has the shape {given}, not {sizes}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Port(port.name, port.dtype, array.shape), np.ascontiguousarray(little).tobytes()


def packed(feeds: Sequence[Feeds], ports: Sequence[Port], name: str) -> tuple[tuple[Port, ...], bytes]:
    """Several inferences in one file, and the inputs of each of them.

    Raises:
        InputError: As `as_bytes`, or they differ in shape, which a stretch of load cannot have.
    """
    rows = [as_bytes(each, ports, name) for each in feeds]
    shapes = tuple(port for port, _ in rows[0])
    if any(tuple(port for port, _ in row) != shapes for row in rows):
        raise InputError(
            f"{name}: the inputs differ in shape, and engines on a device are driven with inputs of one shape",
            hint="give inputs of one shape",
        )
    return shapes, b"".join(data for row in rows for _, data in row)


def as_arrays(outputs: Sequence[tuple[Port, bytes]]) -> Mapping[str, Array]:
    """Outputs as they came; they can be written to."""
    found: dict[str, Array] = {}
    for port, data in outputs:
        dtype = dtype_of(port)
        array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(port.shape)
        found[port.name] = array.astype(dtype)
    return found
