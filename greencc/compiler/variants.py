"""Ways to quantize statically, from cheap to thorough (docs/quantization.md has the figures behind the order)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from greencc.compiler.options import Effort
from greencc.core.capabilities import Capabilities
from greencc.core.passes import Pass
from greencc.passes.equalize_layers import EqualizeLayers
from greencc.passes.quantize_int8 import Bias, QuantizeInt8, RangeMethod, Rounding
from greencc.passes.smooth_quant import SmoothQuant

_WORDS = {
    RangeMethod.MINMAX: "min-max ranges",
    RangeMethod.MOVING_AVERAGE: "moving-average ranges",
    RangeMethod.PERCENTILE: "percentile ranges",
    RangeMethod.ENTROPY: "ranges by KL divergence",
    RangeMethod.MSE: "ranges of least squared error",
}


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        name: Of the form.
        reason: What it does, in words.
        quantize: The quantization itself.
        prepare: Passes before it that keep the function.
        enough: Nothing more is tried when this one loses next to nothing.
    """

    name: str
    reason: str
    quantize: QuantizeInt8
    prepare: tuple[Pass, ...] = ()
    enough: bool = True

    @property
    def plain(self) -> QuantizeInt8:
        """The quantization without its repairs, which a table of errors by layer has no use for."""
        return replace(self.quantize, rounding=Rounding.NEAREST, bias=Bias.NONE)


def variants(effort: Effort, capabilities: Capabilities, model: ir.Model) -> Iterator[Variant]:
    """What is tried first, in this order.

    Histograms of one pass over the data serve all methods but min-max, so each of them costs little more than a build.

    Args:
        effort: QUICK is content with min-max ranges that do well.
        capabilities: Per-tensor weights gain from equalized layers.
        model: The cleaned-up model: products gain from smoothed activations.
    """
    int8 = capabilities.int8
    prepare: tuple[Pass, ...] = ()
    if int8 is not None and not int8.per_channel:
        prepare = (EqualizeLayers(),)
    thorough = effort is Effort.FULL
    yield _ranges(RangeMethod.MINMAX, prepare, enough=effort is Effort.QUICK)
    if _products(model):
        yield _ranges(RangeMethod.MSE, (*prepare, SmoothQuant()), enough=not thorough)
    yield _ranges(RangeMethod.MSE, prepare, bias=Bias.ANALYTIC, enough=not thorough)
    if effort is Effort.QUICK:
        return
    yield _ranges(RangeMethod.PERCENTILE, prepare)
    if thorough:
        yield _ranges(RangeMethod.ENTROPY, prepare)
        yield _ranges(RangeMethod.MOVING_AVERAGE, prepare)
        if not prepare:
            yield _ranges(RangeMethod.MSE, (EqualizeLayers(),))


def refined(best: Variant, effort: Effort) -> Iterator[Variant]:
    """Repairs of the best of the first ones: seconds, for an error that is often halved."""
    if effort is Effort.QUICK:
        return
    quantize = replace(best.quantize, rounding=Rounding.GREEDY, bias=Bias.ANALYTIC)
    yield replace(
        best,
        name=f"{best.name}-repaired",
        reason=f"{best.reason}, weights rounded by the outputs of their layers, biases corrected",
        quantize=quantize,
    )
    if effort is Effort.FULL:
        yield replace(
            best,
            name=f"{best.name}-adaround",
            reason=f"{best.reason}, AdaRound, biases corrected",
            quantize=replace(quantize, rounding=Rounding.ADAROUND),
        )


def _ranges(
    method: RangeMethod, prepare: tuple[Pass, ...], *, bias: Bias = Bias.NONE, enough: bool = True
) -> Variant:
    names = [step.name for step in prepare]
    words = [_WORDS[method], *names]
    if bias is not Bias.NONE:
        words.append("corrected biases")
    return Variant(
        "-".join(("int8", method.value, *names)),
        " and ".join(words),
        QuantizeInt8(method=method, bias=bias),
        prepare,
        enough,
    )


def _products(model: ir.Model) -> bool:
    """Whether matrix products outnumber convolutions: transformers and perceptrons."""
    counts = Counter(node.op_type for node in model.graph)
    return counts["MatMul"] + counts["Gemm"] > counts["Conv"] + counts["ConvTranspose"]
