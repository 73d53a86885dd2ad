"""The linter's rules, in the order in which they are reported."""

from __future__ import annotations

from greencc.targets._tensorrt.rules import (
    control_flow,
    dla,
    hardware,
    operators,
    opset,
    pairs,
    placement,
    shapes,
    types,
)
from greencc.targets._tensorrt.rules._context import Check, Context

CHECKS: tuple[Check, ...] = (
    opset.check,
    operators.check_operators,
    operators.check_forms,
    operators.check_types,
    types.check_interface,
    types.check_inner,
    types.check_constants,
    shapes.check_rank,
    shapes.check_inputs,
    shapes.check_data_dependent,
    control_flow.check,
    control_flow.check_defaults,
    pairs.check_types,
    pairs.check_zero_points,
    pairs.check_scales,
    pairs.check_activations,
    pairs.check_weight_axes,
    hardware.check_precisions,
    hardware.check_memory,
    hardware.check_sparsity,
    placement.check_fusion,
    placement.check_residuals,
    placement.check_bridges,
    placement.check_small,
    placement.check_outputs,
    dla.check,
)

__all__ = ["CHECKS", "Check", "Context"]
