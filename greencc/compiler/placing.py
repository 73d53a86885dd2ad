"""Put the chosen artifact into the bundle, and count its bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.forms import Form


def place(form: Form, source: Path, folder: Path) -> Path:
    """Copy the artifact of `form` to the new `folder`; the original model comes with its external data."""
    if form.artifact != source:
        shutil.copytree(form.artifact.parent, folder)
        return folder / form.artifact.name
    folder.mkdir()
    target = folder / "model.onnx"
    shutil.copyfile(source, target)
    for name in external_files(form.model):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, folder / name)
    return target


def external_files(model: ir.Model) -> list[str]:
    """Files beside the model that hold its weights, relative to it."""
    return sorted(
        {
            str(value.const_value.location)
            for graph in model.graphs()
            for value in graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
    )


def model_size(path: Path, model: ir.Model) -> int:
    """Bytes of a model file and its external data."""
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external_files(model))


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
