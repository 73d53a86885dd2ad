"""Turn Clip(0, high) into Relu where data show that the upper bound hardly ever binds.

ReLU6 does not commute with a scale per channel, so a bound that does nothing still ends every chain that
`equalize-layers` could work on (Nagel et al. 2019, arXiv 1906.04721, section 5.1.1 replaces all of them). The
function changes where an input exceeds the bound: the pass is lossy. It only makes sense before equalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import Names, ensure_names, is_op, label
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._capture import stream
from greencc.passes._rewriter import Scope, node_name
from greencc.passes.normalize_clips import Bounds, bounds_of

_RULE = "relax-clip"
_LISTED = 8


@dataclass(frozen=True)
class RelaxClips(Pass):
    """Replace Clip(0, high) by Relu where the bound binds on next to no values.

    Attributes:
        share: Largest share of the values of a Clip's input that may exceed the bound.
        excess: Largest input that is let through, as a multiple of the bound: the range to quantize grows to it.
        batch: Calibration samples run at once, where the model's batch is dynamic.
    """

    name: ClassVar[str] = "relax-clips"
    summary: ClassVar[str] = "Turn ReLU6 into ReLU where calibration data hardly ever reach the bound"
    lossy: ClassVar[bool] = True

    share: float = 1e-4
    excess: float = 1.5
    batch: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(f"{self.name}: share is {self.share:g}", hint="give a share in [0, 1)")
        if not self.excess >= 1:
            raise UsageError(f"{self.name}: excess is {self.excess:g}", hint="give at least 1")
        if self.batch < 1:
            raise UsageError(f"{self.name}: batch is {self.batch}", hint="give at least 1")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Relax the clips of `model`, in place.

        Raises:
            InputError: There is no calibration data, or its inputs hold NaN or infinity.
        """
        if ctx.calibration is None:
            raise InputError(
                "relaxing clips needs calibration data", hint="pass --calibration with sample inputs"
            )
        outcome = Outcome()
        ensure_names(model)
        infer_shapes(model)
        scope = Scope(model, model.graph, None, Names(model))
        sites = [found for node in model.graph if (found := _bounded(node, scope)) is not None]
        seen: dict[str, _Counts] = {str(site.x.name): _Counts() for site in sites}
        bounds: dict[str, float] = {}
        for site in sites:
            # Of two bounds on one value the lower one is counted against.
            bounds[str(site.x.name)] = min(site.high, bounds.get(str(site.x.name), np.inf))
        if sites:
            for results in stream(model, list(seen), ctx, self.batch):
                for name, values in results.items():
                    seen[name].add(values, bounds[name])
        kept: list[Finding] = []
        for site in sites:
            counts = seen[str(site.x.name)]
            name = node_name(site.node)
            said = f"the bound {site.high:g} binds on {100 * counts.share:.3g} % of the values, up to {counts.high:.3g}"
            if counts.share > self.share or not counts.high <= self.excess * site.high:
                kept.append(Finding("refused", f"{label(site.node)} stays: {said}", name, _RULE))
            elif not ctx.rewrites.allow(_RULE, name):
                break
            else:
                _to_relu(site.node)
                outcome.changed += 1
        outcome.findings += kept[:_LISTED]
        if len(kept) > _LISTED:
            outcome.findings.append(Finding("note", f"{len(kept) - _LISTED} more bounds do bind", rule=_RULE))
        return outcome


@dataclass
class _Counts:
    """Values seen, those above a bound, and the largest."""

    count: int = 0
    above: int = 0
    high: float = 0.0

    @property
    def share(self) -> float:
        return self.above / self.count if self.count else 0.0

    def add(self, values: Array, bound: float) -> None:
        if values.size:
            self.count += values.size
            self.above += int(np.count_nonzero(~(values <= bound)))
            # NaN stays, and is never below a multiple of the bound.
            self.high = float(np.maximum(self.high, values.max()))


def _bounded(node: ir.Node, scope: Scope) -> Bounds | None:
    found = bounds_of(node, scope) if is_op(node, "Clip") else None
    return found if found is not None and found.low == 0.0 and 0.0 < found.high < np.inf else None


def _to_relu(node: ir.Node) -> None:
    node.attributes.clear()
    node.op_type = "Relu"
    node.resize_inputs(1)
