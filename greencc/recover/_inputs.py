"""What a bundle brings: its source model, its graph, its recipe, and the samples it has used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.bundle import Bundle
from greencc.calibration import Subset, sample_digests
from greencc.core.data import DataSource
from greencc.core.errors import InputError
from greencc.core.graph import ensure_names
from greencc.core.model import digest, load_model
from greencc.core.passes import Pass
from greencc.core.recipe import load_recipe
from greencc.core.report import PassRecord
from greencc.passes import PASSES
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.recover._float_graph import is_quantized, refuse_integer_graph

_QUANTIZING: tuple[type[Pass], ...] = (QuantizeInt8, QuantizeWeights)


def source_of(bundle: Bundle, path: Path) -> ir.Model:
    """The model that the bundle was compiled from.

    Raises:
        InputError: It is another one.
    """
    model = load_model(path)
    wanted = bundle.manifest.model_digest
    same = digest(model) == wanted
    # A compile names the nodes that have no name before it takes the digest.
    ensure_names(model)
    if not same and digest(model) != wanted:
        raise InputError(
            f"{path} is not the model that {bundle.path} was compiled from",
            hint=f"give {bundle.manifest.model_name} (sha256 {bundle.manifest.model_sha256[:12]}...)",
        )
    return model


def compressed_graph(bundle: Bundle) -> tuple[ir.Model, tuple[Pass, ...]]:
    """The bundle's graph, and the passes that quantize it again.

    Raises:
        InputError: It is no ONNX graph that can be trained.
    """
    if bundle.artifact.suffix != ".onnx":
        raise InputError(f"the artifact of {bundle.path} is no ONNX graph, so it cannot be trained")
    student = load_model(bundle.artifact)
    ensure_names(student)
    refuse_integer_graph(student, str(bundle.path))
    if not is_quantized(student):
        return student, ()
    steps = load_recipe(bundle.recipe, PASSES)
    first = next((index for index, step in enumerate(steps) if isinstance(step, _QUANTIZING)), None)
    if first is None:
        raise InputError(
            f"the network of {bundle.path} was quantized before greencc compiled it: its float form is not known",
            hint="compile and recover the float model, then quantize that",
        )
    return student, steps[first:]


def unseen(data: DataSource, seen: frozenset[bytes]) -> DataSource:
    """The samples that the bundle was not tuned on."""
    fresh = np.array([key not in seen for key in sample_digests(data)], np.bool_)
    if not fresh.any():
        raise InputError(
            f"the compile has used all samples of {data.name} for calibration or to choose with",
            hint="give held-out data with --eval",
        )
    return data if fresh.all() else Subset(data.name, data, np.flatnonzero(fresh))


def recipe_text(bundle: Bundle, record: PassRecord) -> str:
    """The recipe as it was, with what came after it as a comment: weights that were trained follow from no recipe."""
    text = bundle.recipe.read_text(encoding="utf-8").rstrip("\n")
    options = ", ".join(f"{name}={value}" for name, value in record.options.items())
    return f"{text}\n\n# Then fine-tuned by 'greencc recover': {options}\n"
