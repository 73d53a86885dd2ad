"""High-bias absorption: move the part of a ReLU's input that is always on into the next layer's bias.

With c <= h, relu(h - c) = relu(h) - c, so W relu(h) + b = W relu(h - c) + (b + W c): the activation that is quantized
gets smaller by c (Nagel et al. 2019, arXiv 1906.04721, section 4.2). There c = max(0, mean - 3 sigma) from the batch
normalization; here from calibration data, and only as much as lowers the range of the whole tensor, because
activations have one scale. Where an input takes h below c the function changes: the pass is lossy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import Names, attribute_int, attribute_ints, consumers, ensure_names, is_op, label
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._calibrate_channels import ChannelStats, observe_channels
from greencc.passes._linear import Linear, linear_before, linear_of
from greencc.passes._rewriter import Scope, node_name

Float = NDArray[np.float64]
_RULE = "absorb-bias"


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """Move large constant parts of activations into the next layer's bias.

    Attributes:
        sigmas: Standard deviations below its mean at which a channel counts as always on.
        worth: Least share by which a tensor's range must fall.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "absorb-bias"
    summary: ClassVar[str] = "Move high biases through ReLU into the next layer, to narrow activation ranges"
    lossy: ClassVar[bool] = True

    sigmas: float = 3.0
    worth: float = 0.05
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.sigmas >= 0:
            raise UsageError(f"{self.name}: sigmas is {self.sigmas:g}", hint="give at least 0; 3 is usual")
        if not 0 < self.worth < 1:
            raise UsageError(f"{self.name}: worth is {self.worth:g}", hint="give a share in (0, 1)")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Absorb biases in `model`, in place.

        Raises:
            InputError: There is no calibration data, or it (or an activation on it) holds NaN or infinity.
        """
        if ctx.calibration is None:
            raise InputError(
                "absorbing biases needs calibration data", hint="pass --calibration with sample inputs"
            )
        outcome = Outcome()
        ensure_names(model)
        infer_shapes(model)
        scope = Scope(model, model.graph, None, Names(model))
        sites = dict(_sites(scope, outcome))
        axes = {str(relu.inputs[0].name): axis for relu, axis in sites.items() if relu.inputs[0] is not None}
        stats = observe_channels(model, axes, ctx, self.batch)
        for relu in sites:
            value = relu.inputs[0]
            assert value is not None
            shift = self._shift(stats[str(value.name)])
            # Read again: the biases of a layer between two sites have changed.
            found = _ends(relu, scope)
            if shift is None or isinstance(found, str):
                continue
            before, after = found
            if len(shift) != before.out_channels or not _finite(before, after, shift):
                continue
            if not ctx.rewrites.allow(_RULE, node_name(relu)):
                break
            weight, bias = before.scaled_after(np.ones_like(shift), -shift)
            before.install(weight, bias, scope)
            for linear in after:
                # Two sites may end in one layer only through different inputs, of which it has one.
                weight, bias = linear.scaled_before(*_spread(shift, linear))
                linear.install(weight, bias, scope)
            outcome.changed += 1
        return outcome

    def _shift(self, stats: ChannelStats) -> Float | None:
        """What to take from each channel: no more than lowers the range of the tensor."""
        deviation = np.sqrt(np.maximum(stats.mean_square - stats.mean**2, 0.0))
        most = np.maximum(stats.mean - self.sigmas * deviation, 0.0)
        before = float(np.max(stats.high, initial=0.0))
        after = max(float(np.max(stats.high - most, initial=0.0)), 0.0)
        if before <= 0 or after > (1 - self.worth) * before:
            return None
        shift: Float = np.clip(stats.high - after, 0.0, most)
        return shift


def _sites(scope: Scope, outcome: Outcome) -> Iterator[tuple[ir.Node, int]]:
    """Relu nodes between layers that can give and take a bias, with the channel axis of their input."""
    for node in scope.graph:
        if not is_op(node, "Relu"):
            continue
        found = _ends(node, scope)
        if isinstance(found, str):
            outcome.findings.append(Finding("refused", f"{label(node)} {found}", node_name(node), _RULE))
        elif found[1]:
            yield node, found[0].channel_axis


def _ends(relu: ir.Node, scope: Scope) -> tuple[Linear, list[Linear]] | str:
    """The layer before a Relu and those after it, or why nothing can be absorbed."""
    x, y = relu.inputs[0], relu.outputs[0]
    before = None if x is None else linear_before(x, scope)
    if not isinstance(before, Linear):
        return "does not follow a layer with constant weights that it alone reads"
    if before.bias is None:
        return "follows a layer without a bias"
    if y.shape is None:
        return "has an output of unknown rank"
    after = _readers(y, before.channel_axis % len(y.shape), before.out_channels, scope)
    return after if isinstance(after, str) else (before, after)


def _readers(value: ir.Value, axis: int, channels: int, scope: Scope) -> list[Linear] | str:
    """All layers that read a value, through pooling and flattening; or why one reader cannot take a bias.

    `axis` is that of the channels, of which a flattened value has as many blocks.
    """
    if value.is_graph_output():
        return "is an output of the model"
    if value.shape is None:
        return "is read through a value of unknown rank"
    found: list[Linear] = []
    for node in consumers(value):
        if node.graph is not scope.graph:
            return "is read in a subgraph"
        if _keeps_shift(node, value, axis):
            inner = _readers(node.outputs[0], axis, channels, scope)
            if isinstance(inner, str):
                return inner
            found += inner
            continue
        linear = linear_of(node)
        if not isinstance(linear, Linear) or node.inputs[0] is not value:
            return f"is read by {label(node)}, through which a shift does not move"
        if linear.pads:
            return f"is read by {label(node)}, whose padding would no longer stand for zero"
        if node.op_type == "MatMul" and linear.bias_node is None:
            return f"is read by {label(node)}, which has no bias to take it"
        if (
            attribute_int(node, "transA", 0)
            or linear.channel_axis % len(value.shape) != axis
            or linear.in_channels % channels
        ):
            return f"is read by {label(node)}, whose channels are other ones"
        found.append(linear)
    return found


def _keeps_shift(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Whether f(x - c) = f(x) - c per channel, with the channels on the same axis and in order."""
    if is_op(node, "Identity"):
        return True
    if axis != 1 or value.shape is None or len(value.shape) < 3:
        return False
    if is_op(node, "MaxPool", "GlobalAveragePool", "GlobalMaxPool"):
        return len(node.outputs) == 1 or not node.outputs[1].uses()
    if is_op(node, "AveragePool"):
        auto = node.attributes.get("auto_pad")
        padded = any(attribute_ints(node, "pads", ())) or (auto is not None and auto.as_string() != "NOTSET")
        return not padded and not attribute_int(node, "ceil_mode", 0)
    if is_op(node, "Flatten", "Reshape"):
        # (N, C, positions) -> (N, C * positions): a channel's positions stay together.
        out = node.outputs[0].shape
        sizes = [dim for dim in list(value.shape)[1:] if isinstance(dim, int)]
        whole = len(sizes) == len(value.shape) - 1
        return out is not None and len(out) == 2 and whole and out[1] == math.prod(sizes)
    return False


def _spread(shift: Float, linear: Linear) -> tuple[Float, Float]:
    """(scale, shift) over the input channels of a layer, which may have one per flattened position."""
    wide = np.repeat(shift, linear.in_channels // len(shift))
    return np.ones_like(wide), wide


def _finite(before: Linear, after: list[Linear], shift: Float) -> bool:
    return before.fits(*before.scaled_after(np.ones_like(shift), -shift)) and all(
        linear.fits(*linear.scaled_before(*_spread(shift, linear))) for linear in after
    )
