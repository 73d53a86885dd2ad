"""SmoothQuant: move the outlier channels of activations into weights, where one scale per channel takes them.

    Y = X W = (X diag(s)^-1) (diag(s) W)

Activations have one 8-bit scale per tensor, so one channel of large values costs all others their precision; weights
have a scale per output channel and some room. 1 / s goes into whatever computes X (`_smooth_trace`), so it costs
nothing at run time, and the float function stays the same. The same identity holds between queries and keys,
Q K^T = (Q diag(s)^-1) (diag(s) K^T), and between the values of an attention and its output projection.

Source: Xiao et al. 2022, arXiv 2211.10438, sections 4 and 5.1 (there alpha is one number per model). Here alpha is
searched per block for the smallest error of the block's output (`_smooth_search`), and a block that gains too little
stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.cache import cache_key
from greencc.core.capabilities import Int8Support
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import Names, label
from greencc.core.model import digest, infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._quantize_placement import quantized_already
from greencc.passes._rewriter import Scope, node_name
from greencc.passes._smooth_blocks import Block, Projections, Scores, find_projections, find_scores
from greencc.passes._smooth_measure import Choice, Search, choose
from greencc.passes._smooth_search import Float64
from greencc.passes._smooth_trace import Blocked, Fold

_RULE = "smooth-quant"
_VERSION = 1
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Scale channels of activations down and the weights that read them up.

    Attributes:
        step: Distance of the alphas tried, 0 to 1.
        attention: Also scale queries against keys.
        convolutions: Also look at the inputs of Conv and ConvTranspose.
        insert: Divide the input of a MatMul or Gemm by a Mul of its own where nothing before it can take the scale.
        gain: Error that a scale must save, in dB, to be folded.
        insert_gain: Error that it must save to be worth a Mul.
        samples: Calibration samples that errors are measured on.
        rows: Rows of each activation that errors are measured on.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "smooth-quant"
    summary: ClassVar[str] = "Move outlier channels of activations into the weights that read them"
    lossy: ClassVar[bool] = False

    step: float = 0.1
    attention: bool = True
    convolutions: bool = True
    insert: bool = True
    gain: float = 0.1
    insert_gain: float = 1.0
    samples: int = 16
    rows: int = 512
    batch: int = 8

    def __post_init__(self) -> None:
        if not 0.01 <= self.step <= 1:
            raise UsageError(f"{self.name}: step is {self.step:g}", hint="give a value in [0.01, 1]")
        for option, value in (("gain", self.gain), ("insert_gain", self.insert_gain)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"{self.name}: {option} is {value:g}", hint="give 0 dB or more")
        for option, count in (("samples", self.samples), ("rows", self.rows), ("batch", self.batch)):
            if count < 1:
                raise UsageError(f"{self.name}: {option} is {count}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Scale what gains.

        Raises:
            InputError: There is no calibration data, or it (or an activation on it) holds NaN or infinity.
        """
        outcome = Outcome()
        int8 = ctx.capabilities.int8
        if int8 is None:
            return _refused(outcome, "the target has no INT8 kernels worth using")
        quantized = quantized_already(model.graph)
        if quantized is not None:
            return _refused(outcome, f"the model is quantized already ({label(quantized)})")
        if ctx.calibration is None:
            raise InputError(
                "SmoothQuant needs calibration data", hint="pass --calibration with sample inputs"
            )
        infer_shapes(model)
        blocks = self._blocks(model.graph, int8, outcome)
        if not blocks:
            return outcome
        scope = Scope(model, model.graph, None, Names(model))
        for block, choice in zip(blocks, self._choices(model, blocks, int8, ctx), strict=True):
            folded = block.divided is not None
            name = node_name(block.node)
            if choice.gain <= 0 or choice.gain < (self.gain if folded else self.insert_gain):
                outcome.findings.append(
                    Finding("note", f"{label(block.node)}: no scale saves enough error", name, _RULE)
                )
                continue
            if not ctx.rewrites.allow(_RULE, name):
                continue
            _apply(block, choice.scale, scope)
            outcome.changed += 1
            how = "folded" if folded else "by a Mul before it"
            outcome.findings.append(
                Finding(
                    "note",
                    f"{label(block.node)}: alpha {choice.alpha:.2g} saves {choice.gain:.1f} dB of its error, {how}",
                    name,
                    _RULE,
                )
            )
        return outcome

    def _blocks(self, graph: ir.Graph, int8: Int8Support, outcome: Outcome) -> list[Block]:
        blocks: list[Block] = list(find_scores(graph, int8.ops)) if self.attention else []
        kinds = int8.ops & (_PRODUCTS | (_CONVOLUTIONS if self.convolutions else frozenset()))
        for found in find_projections(graph, kinds):
            if isinstance(found, Blocked):
                outcome.findings.append(Finding("refused", found.reason, rule=_RULE))
            elif found.divided is None and not (self.insert and found.axis == -1):
                message = f"the input of {label(found.node)} cannot be scaled for free: {found.blocked}"
                outcome.findings.append(Finding("refused", message, node_name(found.node), _RULE))
            else:
                blocks.append(found)
        return blocks

    def _choices(
        self, model: ir.Model, blocks: Sequence[Block], int8: Int8Support, ctx: Context
    ) -> list[Choice]:
        """The best scales, from the cache where they are there."""
        assert ctx.calibration is not None
        count = round(1 / self.step)
        alphas = tuple(min(1.0, index * self.step) for index in range(count + 1))
        search = Search(alphas, self.samples, self.rows, self.batch)
        facts = [int8.activation.value, int8.symmetric_activations, int8.weight_bits, int8.per_channel]
        names = [node_name(block.node) for block in blocks]
        key = cache_key(_VERSION, digest(model), ctx.calibration.digest(), astuple(search), facts, names)
        kept = ctx.cache.get(_RULE, key)
        if kept is None:
            choices = choose(model, blocks, search, int8, ctx)
            kept = {str(index): choice.scale for index, choice in enumerate(choices)}
            kept["alpha"] = np.array([choice.alpha for choice in choices])
            kept["gain"] = np.array([choice.gain for choice in choices])
            ctx.cache.put(_RULE, key, kept)
        return [
            Choice(kept[str(index)], float(kept["alpha"][index]), float(kept["gain"][index]))
            for index in range(len(blocks))
        ]


def _refused(outcome: Outcome, reason: str) -> Outcome:
    outcome.findings.append(Finding("refused", reason, rule=_RULE))
    return outcome


def _apply(block: Block, scale: Float64, scope: Scope) -> None:
    if block.divided is None:
        assert not isinstance(block, Scores)
        _insert(block, scale, scope)
    else:
        _install(block.divided, 1.0 / scale, scope)
    _install(block.multiplied, scale, scope)


def _install(folds: Sequence[Fold], factor: Float64, scope: Scope) -> None:
    """Give every constant its scaled form; one that several of the nodes share stays shared."""
    made: dict[tuple[ir.Value, bytes, bool], ir.Value] = {}
    for fold in folds:
        old = fold.node.inputs[fold.index]
        assert old is not None
        key = (old, str(fold.channels.shape).encode() + fold.channels.tobytes(), fold.divide)
        if key in made:
            fold.node.replace_input_with(fold.index, made[key])
            _drop(old, scope.graph)
            continue
        scope.set_constant(fold.node, fold.index, fold.scaled(factor), "scaled")
        new = fold.node.inputs[fold.index]
        assert new is not None
        if new is not old:
            made[key] = new
            _drop(old, scope.graph)


def _drop(value: ir.Value, graph: ir.Graph) -> None:
    """Remove a constant nobody reads any more."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if value.is_initializer():
        del graph.initializers[str(value.name)]
    elif producer is not None:
        graph.remove(producer, safe=True)


def _insert(block: Projections, scale: Float64, scope: Scope) -> None:
    """Divide the activation for the projections alone: all other readers see it as it was."""
    nodes = [view.node for view in block.readers]
    inverse = scope.constant((1.0 / scale).astype(np.float32), f"{block.value.name}/smoothing", nodes[0])
    scaled = scope.node(
        "Mul",
        [block.value, inverse],
        like=block.value,
        name=f"{node_name(nodes[0])}/smooth",
        before=nodes[0],
    )
    for node in nodes:
        node.replace_input_with(0, scaled)
