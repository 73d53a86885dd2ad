"""The work that training takes, for an estimate of its energy."""

from __future__ import annotations

from greencc.meters.model import OperationCounts

# A backward pass costs twice a forward pass: one product for the inputs' gradients, one for the weights'.
BACKWARD = 2.0


def training_work(
    student: OperationCounts | None, teacher: OperationCounts | None, samples: int
) -> OperationCounts | None:
    """What training on `samples` computes, from what one run of both networks does."""
    if student is None or teacher is None:
        return None
    macs: dict[str, float] = {}
    for counts, factor in ((student, 1.0 + BACKWARD), (teacher, 1.0)):
        for dtype, count in counts.macs_by_dtype.items():
            macs[dtype] = macs.get(dtype, 0.0) + factor * samples * count
    moved = samples * ((1.0 + BACKWARD) * student.bytes_moved + teacher.bytes_moved)
    return OperationCounts(macs, moved)
