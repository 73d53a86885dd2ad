"""Outlier channel splitting: duplicate the few input channels that stretch a layer's ranges, and halve them.

W x = sum_i W[:, i] x_i. A channel i that appears twice, with half the weights each, computes the same and halves the
largest weight; with half the activation each, it halves the largest activation (Zhao et al. 2019, arXiv 1901.09504).
The float function stays as it is; the layer grows by the copies.

Copies come from the layer before where there is one (its output channels are computed twice), else from a Gather,
which can only serve to halve weights. Whether it pays is predicted (`_equalize_split`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import (
    Names,
    attribute_int,
    constant_of,
    constant_tensor,
    ensure_names,
    input_at,
    is_op,
    label,
    sole_consumer,
)
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._calibrate_channels import observe_channels
from greencc.passes._equalize_split import Split, SplitNoise
from greencc.passes._exclude import is_excluded
from greencc.passes._linear import Linear, linear_before
from greencc.passes._linear_view import linear_view
from greencc.passes._rewriter import Scope, node_name

_RULE = "split-channels"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
# Element by element, the same for every channel; the first ones also commute with a positive factor.
_HOMOGENEOUS = ("Identity", "LeakyRelu", "Relu")
_ELEMENTWISE = (
    *_HOMOGENEOUS,
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Sigmoid",
    "Softplus",
    "Tanh",
)
_LISTED = 8


@dataclass(frozen=True)
class SplitOutlierChannels(Pass):
    """Duplicate and halve the input channels that dominate a layer's ranges, where that lowers its noise.

    Attributes:
        expand: Largest share of a layer's input channels to duplicate.
        worth: Least fall of a layer's predicted rounding noise, in dB.
        exclude: Names of nodes left as they are.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "split-outlier-channels"
    summary: ClassVar[str] = (
        "Duplicate and halve the few input channels that stretch a layer's quantized ranges"
    )

    expand: float = 0.02
    worth: float = 1.0
    exclude: tuple[str, ...] = ()
    batch: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.expand <= 1:
            raise UsageError(f"{self.name}: expand is {self.expand:g}", hint="give a share in (0, 1]")
        if not self.worth >= 0:
            raise UsageError(f"{self.name}: worth is {self.worth:g} dB", hint="give at least 0")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Split channels of `model`, in place.

        Raises:
            InputError: There is no calibration data, or it (or an activation on it) holds NaN or infinity.
        """
        if ctx.calibration is None:
            raise InputError(
                "splitting outlier channels needs calibration data",
                hint="pass --calibration with sample inputs",
            )
        outcome = Outcome()
        ensure_names(model)
        infer_shapes(model)
        scope = Scope(model, model.graph, None, Names(model))
        layers = [found for node in model.graph if (found := self._candidate(node)) is not None]
        axes = {str(layer.x.name): layer.axis for layer in layers}
        stats = observe_channels(model, axes, ctx, self.batch)
        poor: list[Finding] = []
        for layer in layers:
            known, name = stats[str(layer.x.name)], node_name(layer.node)
            matrix = layer.matrix()
            if not np.isfinite(matrix).all() or len(known.low) != layer.channels:
                continue
            noise = SplitNoise(matrix, known, ctx.capabilities.int8)
            before = noise.of(Split.none(layer.channels))
            path = _path(layer, scope)
            split = noise.best(int(self.expand * layer.channels), path is not None and path.homogeneous)
            copies = len(split.source) - layer.channels
            if before <= 0 or not np.isfinite(before) or not copies:
                continue
            gain = 10.0 * float(np.log10(before / max(noise.of(split), 1e-300)))
            said = f"{label(layer.node)}: splitting {copies} of {layer.channels} input channels"
            if gain < self.worth:
                poor.append(
                    Finding(
                        "refused",
                        f"{said} would lower the predicted rounding noise by {gain:.2f} dB only, which does not pay "
                        f"(least: {self.worth:g} dB)",
                        name,
                        _RULE,
                    )
                )
                continue
            if not ctx.rewrites.allow(_RULE, name):
                break
            if path is None:
                _gather(layer, split, scope)
            else:
                _widen(path, layer.axis, split, scope)
            layer.install(split, scope)
            outcome.changed += 1
            outcome.findings.append(
                Finding("note", f"{said} lowers the predicted rounding noise by {gain:.1f} dB", name, _RULE)
            )
        outcome.findings += poor[:_LISTED]
        if len(poor) > _LISTED:
            outcome.findings.append(
                Finding("note", f"{len(poor) - _LISTED} more layers would gain too little", rule=_RULE)
            )
        return outcome

    def _candidate(self, node: ir.Node) -> _Layer | None:
        if is_excluded(node, self.exclude) or is_op(node, "ConvTranspose"):
            return None
        view, weight, x = linear_view(node), input_at(node, 1), input_at(node, 0)
        if view is None or view.groups != 1 or weight is None or x is None:
            return None
        if weight.dtype not in _FLOATS or len(weight.uses()) != 1 or weight.is_graph_output():
            return None
        if x.shape is None or len(x.shape) < 2:
            return None
        axis = 1 if view.kernel else len(x.shape) - 1
        weight_axis = 1 if view.kernel or attribute_int(node, "transB", 0) else 0
        layer = _Layer(node, x, axis, weight_axis, view.weight_shape[weight_axis])
        return layer if int(self.expand * layer.channels) else None


@dataclass(frozen=True)
class _Layer:
    """A node whose input channels can be duplicated: channels on `axis` of `x` and `weight_axis` of the weight."""

    node: ir.Node
    x: ir.Value
    axis: int
    weight_axis: int
    channels: int

    def matrix(self) -> NDArray[np.float64]:
        """The weight as (outputs, inputs, taps)."""
        weight = self._weight().astype(np.float64)
        weight = weight if self.weight_axis == 1 else weight.T
        return weight.reshape(*weight.shape[:2], -1)

    def install(self, split: Split, scope: Scope) -> None:
        weight = self._weight()
        factors = split.back.reshape([-1 if axis == self.weight_axis else 1 for axis in range(weight.ndim)])
        wide = np.take(weight, split.source, self.weight_axis).astype(np.float64) * factors
        scope.set_constant(self.node, 1, wide.astype(weight.dtype), "weight")

    def _weight(self) -> NDArray[np.generic]:
        weight = constant_of(self.node.inputs[1])
        assert weight is not None
        return weight


@dataclass(frozen=True)
class _Path:
    """The layer that computes an input, and the elementwise nodes in between, from it to the input."""

    linear: Linear
    nodes: Sequence[ir.Node]

    @property
    def homogeneous(self) -> bool:
        return all(node.op_type in _HOMOGENEOUS for node in self.nodes)


def _path(layer: _Layer, scope: Scope) -> _Path | None:
    value, nodes = layer.x, []
    while (node := value.producer()) is not None and is_op(node, *_ELEMENTWISE):
        inner = node.inputs[0]
        if (
            node.graph is not scope.graph
            or sole_consumer(value) is None
            or inner is None
            or inner.shape is None
        ):
            return None
        if any(extra is not None and constant_tensor(extra) is None for extra in node.inputs[1:]):
            return None
        nodes.append(node)
        value = inner
    linear = linear_before(value, scope)
    if not isinstance(linear, Linear) or linear.groups != 1 or is_op(linear.node, "ConvTranspose"):
        return None
    weight = linear.node.inputs[1]
    # Channels written on one axis must be those that are read, and nobody else may see the copies.
    same = layer.x.shape is not None and linear.channel_axis % len(layer.x.shape) == layer.axis
    if not same or linear.out_channels != layer.channels or weight is None or len(weight.uses()) != 1:
        return None
    return _Path(linear, tuple(reversed(nodes)))


def _widen(path: _Path, axis: int, split: Split, scope: Scope) -> None:
    """Compute the duplicated channels twice."""
    linear = path.linear
    out_axis = 0 if is_op(linear.node, "Conv") or attribute_int(linear.node, "transB", 0) else 1
    factors = split.front.reshape([-1 if index == out_axis else 1 for index in range(linear.weight.ndim)])
    weight = np.take(linear.weight, split.source, out_axis).astype(np.float64) * factors
    bias = None if linear.bias is None else linear.bias[split.source] * split.front
    linear.install(weight, bias, scope)
    tails = [linear.node, *([linear.bias_node] if linear.bias_node is not None else []), *path.nodes]
    for node in tails:
        _resize(node.outputs[0], axis, len(split.source))


def _gather(layer: _Layer, split: Split, scope: Scope) -> None:
    """Copy channels in front of the layer."""
    name = node_name(layer.node)
    index = scope.constant(split.source, f"{name}/channels", layer.node)
    wide = scope.node(
        "Gather",
        [layer.x, index],
        like=layer.x,
        name=f"{name}/split",
        attributes=[ir.AttrInt64("axis", layer.axis)],
        before=layer.node,
    )
    _resize(wide, layer.axis, len(split.source))
    layer.node.replace_input_with(0, wide)


def _resize(value: ir.Value, axis: int, size: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([size if index == axis else dim for index, dim in enumerate(value.shape)])
