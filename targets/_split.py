"""Several target specs in one text."""

from __future__ import annotations

from greencc.core.errors import UsageError


def split_specs(text: str) -> tuple[str, ...]:
    """Split ``cpu:threads=1,optimization=extended,jetson,tvm-arm:preset=rpi5`` into the specs of its targets.

    Commas also separate a target's options. What stands behind one is an option when it has an equals sign with no
    colon before it, and the next target otherwise.

    Raises:
        UsageError: There is none, or an empty one.
    """
    found: list[str] = []
    for piece in (part.strip() for part in text.split(",")):
        if not piece:
            raise UsageError(f"there is an empty target in {text!r}", hint="write cpu,jetson,tvm-arm")
        name, equals, _ = piece.partition("=")
        if equals and ":" not in name and found:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return tuple(found)
