"""Cross-layer equalization: scale channels between layers so that they quantize better.

A positive scale per channel moves through ReLU, pooling, joins and layout changes from one layer's weights into the
next one's (Nagel et al. 2019, arXiv 1906.04721, section 4.1): f(s x) = s f(x). The float function stays as it is.
Which channels share a scale is found in `_equalize_rules`, which scales are best in `_equalize_solve`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.errors import UsageError
from greencc.core.graph import Names, constant_of, constant_tensor, ensure_names
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._calibrate_channels import ChannelStats, observe_channels
from greencc.passes._equalize_graph import FIXED, Labelling, components
from greencc.passes._equalize_problem import Problem, build_problem, observed_axes
from greencc.passes._equalize_rules import label_channels
from greencc.passes._equalize_solve import NoiseModel, by_noise, by_ranges
from greencc.passes._quantize_insert import release
from greencc.passes._rewriter import Scope, remove

_RULE = "equalize"
# A group whose scales differ by less than this factor gains nothing that rounding does not take away.
_WORTH = 1.05
# Of a scaled weight, unless it was larger before.
_LARGEST = 2.0**12


class Objective(Enum):
    """What the scales are to balance."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    BOTH = "both"


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Scale the channels between weighted layers for quantization; the float function does not change.

    Attributes:
        objective: `weights` balances weight ranges (no data needed), `activations` activation ranges against those of
            the next weights, `both` minimises the predicted noise of rounding both, which needs calibration data.
        limit: Scales stay within [1/limit, limit], relative to each other in a group.
        worth: Least fall of the model's predicted rounding noise, in dB, where there is calibration data to predict
            it from (objectives other than `weights`); below, nothing is changed. Scales merely redraw the rounding
            errors of a model that has nothing to gain.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "equalize-layers"
    summary: ClassVar[str] = "Scale channels between layers so that weights and activations quantize better"

    objective: Objective = Objective.BOTH
    limit: float = 64.0
    worth: float = 2.0
    batch: int = 8

    def __post_init__(self) -> None:
        if not 1 < self.limit <= 1024:
            raise UsageError(f"{self.name}: limit is {self.limit:g}", hint="give a value in (1, 1024]")
        if not self.worth >= 0:
            raise UsageError(f"{self.name}: worth is {self.worth:g} dB", hint="give at least 0")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Equalize `model` in place.

        Raises:
            InputError: The calibration data, or an activation on it, holds NaN or infinity.
        """
        outcome = Outcome()
        ensure_names(model)
        infer_shapes(model)
        labelling = label_channels(model.graph)
        if not any(True for _ in components(labelling)):
            return outcome
        objective = self.objective
        stats: dict[ir.Value, ChannelStats] = {}
        if objective is not Objective.WEIGHTS:
            if ctx.calibration is None:
                objective = Objective.WEIGHTS
                outcome.findings.append(
                    Finding(
                        "note", "without calibration data, layers are equalized by their weights", rule=_RULE
                    )
                )
            else:
                stats = _observe(model, labelling, ctx, self.batch)
        problem = build_problem(labelling, stats, ctx.capabilities.int8, self.limit)
        if objective is Objective.BOTH:
            logs = by_noise(problem)
        else:
            logs = by_ranges(problem, activations=objective is Objective.ACTIVATIONS)
        if stats:
            noise = NoiseModel(problem)
            before, after = noise.noise(np.zeros(problem.size)), noise.noise(logs)
            gain = 10.0 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0
            said = f"equalization lowers the predicted rounding noise by {gain:.1f} dB"
            if gain < self.worth:
                said += f", less than the {self.worth:g} dB at which measurements follow predictions"
                outcome.findings.append(Finding("refused", said, rule=_RULE))
                return outcome
            outcome.findings.append(Finding("note", said, rule=_RULE))
        scales = _Scales(model, labelling, problem, np.exp(logs))
        outcome.changed = scales.choose(ctx, outcome)
        scales.install()
        return outcome


def _observe(model: ir.Model, labelling: Labelling, ctx: Context, batch: int) -> dict[ir.Value, ChannelStats]:
    axes = observed_axes(labelling)
    found = observe_channels(model, {str(value.name): axis for value, axis in axes.items()}, ctx, batch)
    return {value: found[str(value.name)] for value in axes}


class _Scales:
    """The scales that are applied, and how."""

    def __init__(
        self, model: ir.Model, labelling: Labelling, problem: Problem, found: NDArray[np.float64]
    ) -> None:
        self._scope = Scope(model, model.graph, None, Names(model))
        self._labelling = labelling
        self._problem = problem
        self._found = found
        self._roots = labelling.roots()
        self.chosen = np.ones(problem.size)

    def choose(self, ctx: Context, outcome: Outcome) -> int:
        """Announce every group worth a rewrite; return how many were allowed."""
        changed = 0
        for name, members in components(self._labelling):
            scales = self._normalized(members)
            if scales.max() < _WORTH * scales.min():
                continue
            self.chosen[members] = scales
            if not self._fits(members):
                self.chosen[members] = 1.0
                outcome.findings.append(
                    Finding("refused", f"equalizing {name!r}: a weight would overflow", name, _RULE)
                )
            elif ctx.rewrites.allow(_RULE, name):
                changed += 1
            else:
                self.chosen[members] = 1.0
        return changed

    def _normalized(self, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """The scales of a group, times the common factor that leaves its largest activation as large as it was.

        So no activation leaves the range of float16 that it was in. Next to fixed channels there is no such freedom.
        """
        scales = self._found.copy()
        inside = np.zeros(len(scales), bool)
        inside[members] = True
        factors = [1.0 / float(np.exp(np.log(scales[members]).mean()))]
        values = [value for value in self._problem.values if inside[value.roots].any()]
        if any((value.roots == FIXED).any() for value in values):
            return self._found[members]
        grown = [
            value.peak.max() / (value.peak * scales[value.roots]).max()
            for value in values
            if value.peak.any()
        ]
        factors = grown or factors
        result: NDArray[np.float64] = scales[members] * min(factors)
        return result

    def _fits(self, members: NDArray[np.int64]) -> bool:
        """Whether no weight or constant grows beyond what float16 holds with room to spare."""
        inside = np.zeros(len(self.chosen), bool)
        inside[members] = True
        scales = self.chosen
        for layer in self._problem.layers:
            if not (inside[layer.before].any() or inside[layer.after].any()):
                continue
            grown = layer.tops * (
                scales[layer.after][:, :, np.newaxis] / scales[layer.before][:, np.newaxis, :]
            )
            if grown.max() > max(_LARGEST, layer.tops.max()):
                return False
        return True

    def install(self) -> None:
        """Write the scaled weights and constants."""
        scales = self.chosen[self._roots]
        for layer in self._labelling.layers:
            before, after = scales[layer.before], scales[layer.after]
            if (before == 1.0).all() and (after == 1.0).all():
                continue
            tensor = constant_tensor(layer.node.inputs[1])
            assert tensor is not None
            weight = tensor.numpy()
            cube = layer.cube(weight)
            cube *= after[:, :, np.newaxis, np.newaxis] / before[:, np.newaxis, :, np.newaxis]
            self._set(layer.node, 1, layer.stored(cube).astype(weight.dtype))
            release(tensor)
        for constant in self._labelling.constants:
            factors = scales[constant.labels]
            old = constant_of(constant.node.inputs[constant.index])
            if old is None or (factors == 1.0).all():
                continue
            self._set(constant.node, constant.index, (old.astype(np.float64) * factors).astype(old.dtype))

    def _set(self, node: ir.Node, index: int, array: NDArray[np.generic]) -> None:
        old = node.inputs[index]
        self._scope.set_constant(node, index, array, "weight")
        producer = None if old is None else old.producer()
        if (
            producer is not None
            and producer.op_type in ("Constant", "Identity")
            and old is not None
            and not old.uses()
        ):
            remove(producer)
