"""What a kernel module offers: a family of TIR functions for one kind of workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from greencc.core.data import Array
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@dataclass(frozen=True)
class Schedule:
    """How a kernel is written; each template reads the numbers that it knows and checks them.

    Attributes:
        rows: Output rows of a register tile (of a product: rows of the data).
        columns: Output columns of a register tile.
        vectors: Vectors of output channels of a register tile.
        band: Output rows that one task computes: work is split among threads by bands.
        unroll: How many steps of the innermost sum are written out.
    """

    rows: int
    columns: int
    vectors: int
    band: int
    unroll: int = 1


class Template(Protocol):
    """One kind of workload.

    A function's arguments are buffers: data, packed weights (those of `pack`, in order), the epilogue's arguments, the
    `numbers` where there are any, the output. Data are of the type `Machine.activation` when quantized. Buffers are
    aligned to 64 bytes, do not overlap, and have exactly the size of their shape: no byte outside is read or written.
    The code depends on the workload's form alone (`workload.form_of`).
    """

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        """A schedule that is good without tuning: a pure function of its arguments."""

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        """The schedules worth trying, the default first; at most 64."""

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        """Constant weights in the kernel's own order.

        Args:
            workload: What the kernel computes.
            schedule: As for `build`.
            machine: As for `build`.
            weights: [out, in / groups, kh, kw] of a convolution, [c, 1, kh, kw] of a depthwise one, [in, out] of a
                product; float32 or int8. Not asked for by templates without constants.
        """

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        """The TIR function, with symbol `name`.

        Raises:
            ValueError: The schedule does not fit the workload or the machine.
        """
