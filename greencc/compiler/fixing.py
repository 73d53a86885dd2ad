"""Sizes of inputs that a target needs to know, taken from the data."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from greencc.compiler.data import Splits, whole_batches
from greencc.compiler.session import Session
from greencc.core.files import translated_os_errors
from greencc.core.graph import ensure_names
from greencc.core.model import load_model, save_model
from greencc.core.shapes import fix_inner_sizes

_FOLDER = "fixed"


def fix_sizes(session: Session, source: ir.Model, path: Path, splits: Splits) -> tuple[ir.Model, Path]:
    """The model, and the file to open it from, with the sizes that the target must know.

    Generated code has loops over fixed images. What is compiled then takes inputs of the data's sizes, with any batch;
    a warning says so.

    Args:
        session: Its target decides; gets the warning.
        source: As loaded.
        path: Where from.
        splits: The first planning sample decides the sizes.
    """
    names = session.target.fixed_sizes(source)
    samples = whole_batches(splits.planning, 1, 1) if names else []
    if not samples:
        return source, path
    shapes = {name: array.shape for name, array in samples[0].items()}
    file = session.scratch / _FOLDER / path.name
    with translated_os_errors(file):
        file.parent.mkdir()
        save_model(fix_inner_sizes(source, shapes), file)
    taken = ", ".join(f"{name} [N, {', '.join(map(str, shapes[name][1:]))}]" for name in names)
    session.warn(
        f"sizes that the model leaves open are fixed to those of the data for {session.target.name}: {taken}"
    )
    # Read back: its weights are where the file says.
    fixed = load_model(file)
    ensure_names(fixed)
    return fixed, file
