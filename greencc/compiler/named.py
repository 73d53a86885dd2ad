"""The passes that the user names, as a list or a recipe, and the numeric form that they give."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.compiler.options import CompileOptions, Precision
from greencc.core.pass_list import parse_passes
from greencc.core.passes import Pass
from greencc.core.recipe import load_recipe
from greencc.passes import PASSES
from greencc.passes.float16 import ConvertFloat16, HalfType
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights


def named_passes(options: CompileOptions) -> tuple[Pass, ...] | None:
    """What `--recipe` or `--passes` say; None: greencc chooses.

    Raises:
        InputError: The recipe is missing or not TOML.
        UsageError: A pass or an option is unknown, or an option has the wrong type.
    """
    if options.recipe is not None:
        return load_recipe(options.recipe, PASSES)
    return None if options.passes is None else parse_passes(options.passes, PASSES)


def recipe_precision(steps: Sequence[Pass]) -> Precision:
    """The numeric form that a recipe gives."""
    kinds = {type(step): step for step in steps}
    if QuantizeInt8 in kinds:
        return Precision.INT8
    if QuantizeDynamic in kinds:
        return Precision.INT8_DYNAMIC
    weights = kinds.get(QuantizeWeights)
    if isinstance(weights, QuantizeWeights):
        return Precision.INT8_WEIGHTS if weights.bits == 8 else Precision.INT4_WEIGHTS
    half = kinds.get(ConvertFloat16)
    if isinstance(half, ConvertFloat16):
        return Precision.BF16 if half.element is HalfType.BFLOAT16 else Precision.FP16
    return Precision.FP32
