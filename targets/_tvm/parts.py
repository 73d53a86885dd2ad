"""How many samples run at once: as many as keep what a layer computes of them in the level-2 caches.

A large batch that runs layer by layer writes the activations of all samples before it reads the first of them again,
from a cache farther away or from memory then. In parts it finds them near by, but reads the weights once per part.

Rows of float products by constant weights that do not fill a register tile are summed in another order: a batch in
parts may differ from a whole one in the last bits, as batches of different sizes do anyway. All else is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greencc.targets._tvm.dims import evaluate, is_constant, is_symbol, product
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.plan import Place, Plan, PlannedTensor

MOST = 63
"""A larger part is no part: each layer of so small samples is cheap to read again."""
_CALL_BYTES = 16 << 10
"""What could be read in the time that one call takes beside its work: about a microsecond."""
_WEIGHTS = 0.5
"""Parts must read at most this much of weights for each byte of activations, which is what they spare."""


@dataclass(frozen=True)
class StepBytes:
    """What a call reads and writes.

    Attributes:
        sample: Bytes of activations, read and written, per sample.
        weights: Bytes of constants.
    """

    sample: int
    weights: int


def samples_at_once(steps: Sequence[StepBytes], machine: Machine) -> int:
    """The most samples that should run at once; 0: all of a batch.

    Those whose activations, of the call that has the most of them, fit half the level-2 caches of the cores that share
    the work; the other half is for weights. One at least: a sample that does not fit still stays nearer than a batch of
    them. All where more than `MOST` fit, and where weights and calls, once per part, are much against activations.

    Args:
        steps: Of the plan, in any order.
        machine: Its `l2_bytes` and `cores`.
    """
    largest = max((step.sample for step in steps), default=0)
    if largest <= 0:
        return 0
    part = max(1, machine.l2_bytes * machine.cores // 2 // largest)
    repeated = sum(step.weights + _CALL_BYTES for step in steps)
    activations = sum(step.sample for step in steps)
    return part if part <= MOST and repeated <= _WEIGHTS * activations * part else 0


def part_of(plan: Plan, machine: Machine) -> int:
    """`samples_at_once` for the steps of a plan whose samples do not depend on each other; 0 where it has no such form.

    The executor takes rows of inputs and outputs whose first axis is the plan's only symbol and whose others are fixed.
    """
    ports = [plan.tensors[number] for _, number in (*plan.inputs, *plan.outputs)]
    if len(plan.symbols) != 1 or not all(map(_has_rows, ports)):
        return 0
    return samples_at_once([_bytes(plan, index) for index in range(len(plan.steps))], machine)


def _has_rows(tensor: PlannedTensor) -> bool:
    return bool(tensor.shape) and is_symbol(tensor.shape[0]) and all(map(is_constant, tensor.shape[1:]))


def _bytes(plan: Plan, index: int) -> StepBytes:
    step = plan.steps[index]
    pattern = "rw" if step.kernel is None else plan.kernels[step.kernel].pattern
    sample = weights = 0
    for kind, arg in zip(pattern, step.args, strict=True):
        if kind == "i" or not isinstance(arg, int):
            continue
        tensor = plan.tensors[arg]
        size = product(tensor.shape, tensor.code[1] * tensor.code[2] // 8)
        if tensor.place is Place.CONSTANT:
            weights += evaluate(size, [1])
        else:
            sample += evaluate(size, [2]) - evaluate(size, [1])
    return StepBytes(sample, weights)
