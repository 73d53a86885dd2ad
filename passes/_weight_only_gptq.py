"""Run GPTQ over the layers of a model: inputs from the calibration data, results kept in the cache as they come.

An interrupted compile finds the layers it had finished. With `sequential` every layer sees the inputs that the rounded
layers before it give, as in the GPTQ paper, at the price of one run over the data per layer input; otherwise
all see those of the float model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.cache import Cache, cache_key
from greencc.core.data import Array
from greencc.core.model import digest
from greencc.core.passes import Context
from greencc.passes._block_quantize import BlockWeight, Grid
from greencc.passes._capture import require_data
from greencc.passes._gptq import Solution, gptq
from greencc.passes._linear_view import LinearView, linear_view
from greencc.passes._weight_only_hessian import (
    BUDGET_BYTES,
    Moments,
    moment_bytes,
    plan_stages,
    sum_moments,
    too_large,
)

_KIND = "gptq"
# Part of every key: raise it when the result of the algorithm changes.
_VERSION = 1


@dataclass(frozen=True)
class Layer:
    """A weight to round.

    Attributes:
        value: The initializer.
        view: The first node that reads it; the inputs of others are not looked at.
    """

    value: ir.Value
    view: LinearView


def layer_of(value: ir.Value, node: ir.Node) -> Layer | str:
    """The layer, or why its weight can only be rounded to nearest."""
    if node.op_type == "Gather":
        return "its rows are looked up, not multiplied"
    view = linear_view(node)
    if view is None:
        return f"{node.op_type} with stacked weights, a constant input or transposed activations"
    if node.op_type == "ConvTranspose" and view.groups > 1:
        return "the groups of a ConvTranspose share scales"
    if moment_bytes(view) > BUDGET_BYTES:
        return f"its {view.inputs} inputs need a matrix beyond {BUDGET_BYTES >> 20} MiB"
    return Layer(value, view)


def solve_layers(
    model: ir.Model,
    layers: Sequence[Layer],
    grid_of: Sequence[Grid],
    ctx: Context,
    *,
    act_order: bool,
    sequential: bool,
) -> Iterator[tuple[int, Solution | str]]:
    """Yield the index of each layer with what became of its weight, in the layout of `Layer.view`.

    A string: why its weight can only be rounded to nearest. The caller may replace the weight before it asks for the
    next.

    Raises:
        InputError: There is no calibration data, or an activation is not finite.
    """
    if not layers:
        return
    key = (
        _VERSION,
        digest(model),
        require_data(ctx).digest(),
        act_order,
        sequential,
    )
    keys = [
        cache_key(*key, str(layer.value.name), str(layer.view.node.name), list(astuple(grid)))
        for layer, grid in zip(layers, grid_of, strict=True)
    ]
    # The caller edits the model: inputs of the float model need one of their own, which shares the weights.
    source = model if sequential else model.clone()
    stages = plan_stages([layer.view for layer in layers], one_by_one=sequential)
    for number, stage in enumerate(stages):
        found = {
            index: cached
            for moments in stage
            for index in moments.members
            if (cached := _load(ctx.cache, keys[index], grid_of[index])) is not None
        }
        missing = [moments for moments in stage if any(index not in found for index in moments.members)]
        if missing:
            sum_moments(source, missing, ctx, f"Calibrating {number + 1}/{len(stages)}")
        for moments in stage:
            for index in moments.members:
                if index in found:
                    yield index, found[index]
                    continue
                solution = _solve(layers[index], moments, grid_of[index], act_order)
                if isinstance(solution, Solution):
                    _store(ctx.cache, keys[index], solution)
                yield index, solution
            moments.total = None


def _solve(layer: Layer, moments: Moments, grid: Grid, act_order: bool) -> Solution | str:
    tensor = layer.value.const_value
    assert tensor is not None
    if moments.total is None or not np.any(moments.total):
        return "the calibration data never reaches it"
    if too_large(moments.total):
        return "its inputs are too large for their correlations"
    return gptq(layer.view.matrix(tensor.numpy()), moments.total, grid, act_order=act_order)


def _load(cache: Cache, key: str, grid: Grid) -> Solution | None:
    arrays = cache.get(_KIND, key)
    if arrays is None:
        return None
    error, plain = arrays["errors"]
    weight = BlockWeight(grid, arrays["codes"], arrays["scales"], arrays["zero_points"])
    return Solution(weight, float(error), float(plain))


def _store(cache: Cache, key: str, solution: Solution) -> None:
    weight = solution.weight
    arrays: dict[str, Array] = {
        "codes": weight.codes,
        "scales": weight.scales,
        "zero_points": weight.zero_points,
        "errors": np.array([solution.error, solution.nearest_error]),
    }
    cache.put(_KIND, key, arrays)
