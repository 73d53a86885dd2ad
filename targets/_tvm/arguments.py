"""Whether a kernel's arguments have the shapes that its code is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greencc.targets._tvm.proofs import equal


def unfit(function: Any, given: Sequence[Any]) -> str | None:
    """Compare a call with the buffers of a TIR function.

    Args:
        function: Its free sizes get their values from the first buffers whose axes they are.
        given: By parameter: the sizes of a tensor, or the number that is passed.

    Returns:
        What differs; None where everything is certain to fit.
    """
    import tvm_ffi
    from tvm.tirx import Var
    from tvm.tirx.buffer import BufferType

    if len(given) != len(function.params):
        return f"takes {len(function.params)} arguments, {len(given)} are given"
    buffers = [param if isinstance(param.ty, BufferType) else None for param in function.params]
    values: dict[Any, Any] = {}
    for param, buffer, sizes in zip(function.params, buffers, given, strict=True):
        if (buffer is None) == isinstance(sizes, list):
            return f"takes a {'number' if buffer is None else 'tensor'} in the place of another argument"
        if buffer is None:
            values[param] = sizes
            continue
        if len(buffer.shape) != len(sizes):
            return f"reads {len(buffer.shape)} axes of a tensor that has {len(sizes)}"
        for wanted, size in zip(buffer.shape, sizes, strict=True):
            if isinstance(wanted, Var):
                values.setdefault(wanted, size)
    for buffer, sizes in zip(buffers, given, strict=True):
        if buffer is None:
            continue
        for wanted, size in zip(buffer.shape, sizes, strict=True):
            needed = tvm_ffi.structural_map(wanted, (Var, lambda variable: values.get(variable, variable)))
            if not equal(needed, size):
                return f"is for tensors with {needed} where {size} is given"
    return None
