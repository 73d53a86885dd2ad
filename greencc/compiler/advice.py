"""What to do when passes that were asked for by name lose more accuracy than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greencc.core.passes import Pass
from greencc.core.report import PassRecord


def output_errors(passes: Sequence[Pass], records: Sequence[PassRecord]) -> str:
    """What each lossy pass did to the outputs on the samples it was judged by, such as "prune moved ... by 20 %".

    Args:
        passes: Of the form.
        records: Of them, in the same order.
    """
    found = [
        f"{step.name} {_effect(record)}"
        for step, record in zip(passes, records, strict=True)
        if step.lossy and not record.rolled_back
    ]
    return f"largest change of an output, of its range: {', '.join(found)}" if found else ""


def way_out(passes: Sequence[Pass], records: Sequence[PassRecord]) -> str:
    """The option to turn down, of the pass that moved the outputs most; then what else there is."""
    pairs = [
        (step, record) for step, record in zip(passes, records, strict=True) if step.lossy and record.changed
    ]
    less = [
        (record.error or 0.0, f"{step.name}:{option}") for step, record in pairs if (option := _less(record))
    ]
    ask = f"ask less of the passes, such as {max(less)[1]}" if less else "ask less of the passes"
    return (
        f"{ask}; raise --max-drop, and give accuracy back to what comes out with greencc recover; or give more "
        "calibration samples"
    )


def _effect(record: PassRecord) -> str:
    if not record.changed:
        return "changed nothing"
    return "not known" if record.error is None else f"{record.error:.2g}"


def _less(record: PassRecord) -> str:
    """Half of what a pass was asked for, as an option of it; empty where that is no number."""
    options: dict[str, Any] = record.options
    if any(options.get(given) for given in ("ranks", "channels", "blocks")):
        return ""
    match options.get("rank"):
        case "energy":
            return f"energy={1 - (1 - options['energy']) / 2:.4g}"
        case "evbmf":
            return ""
        case "ratio" | "layer-ratio" as rank:
            return f"rank={rank}:ratio={options['ratio'] / 2:.3g}"
    if "ratio" in options:
        return f"ratio={options['ratio'] / 2:.3g}"
    if options.get("pattern") == "unstructured":
        return f"pattern=unstructured:sparsity={options['sparsity'] / 2:.3g}"
    return ""
