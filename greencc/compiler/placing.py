"""Put the chosen artifact into the bundle, and count its bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.forms import Form
from greencc.core.engine import Target
from greencc.core.graph import external_files


def place(target: Target, form: Form, source: Path, folder: Path) -> Path:
    """Put the artifact of `form` into the new `folder`.

    The original model is copied as it is. It is built where that is no artifact of the target, and where it has
    external data, whose files may have any name.
    """
    if form.artifact != source:
        shutil.copytree(form.artifact.parent, folder)
        return folder / form.artifact.name
    folder.mkdir()
    if external_files(form.model) or target.ships_code or not target.takes(source):
        return target.build(target.lower(form.model), folder)
    copy = folder / "model.onnx"
    shutil.copyfile(source, copy)
    return copy


def model_size(path: Path, model: ir.Model) -> int:
    """Bytes of a model file and its external data."""
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external_files(model))


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
