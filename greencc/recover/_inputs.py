"""What a bundle brings: its graph, and the passes that quantize it."""

from __future__ import annotations

import onnx_ir as ir

from greencc.bundle import Bundle
from greencc.core.errors import InputError
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.passes import Pass
from greencc.core.recipe import load_recipe
from greencc.core.report import PassRecord
from greencc.passes import PASSES
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.recover._float_graph import is_quantized, refuse_integer_graph

_QUANTIZING: tuple[type[Pass], ...] = (QuantizeInt8, QuantizeWeights)


def compressed_graph(bundle: Bundle) -> tuple[ir.Model, tuple[Pass, ...]]:
    """The bundle's graph, and the passes that quantize it again.

    Raises:
        InputError: It is no ONNX graph that can be trained.
    """
    student = load_model(bundle.graph)
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


def recipe_text(bundle: Bundle, record: PassRecord) -> str:
    """The recipe as it was, with what came after it as a comment: weights that were trained follow from no recipe."""
    text = bundle.recipe.read_text(encoding="utf-8").rstrip("\n")
    options = ", ".join(f"{name}={value}" for name, value in record.options.items())
    return f"{text}\n\n# Then fine-tuned by 'greencc recover': {options}\n"
