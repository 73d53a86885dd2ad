"""A template for tests of the tuner: a plain product, whose schedules differ in cost, and some are bad on purpose.

`vectors` says what is wrong with a schedule, `rows` how often the work is done.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from greencc.core.data import Array
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Dense, Workload

GOOD, WRONG, REFUSED, CRASHES, STRAYS, LOST_LATER = range(1, 7)


def schedule(cost: int = 1, kind: int = GOOD) -> Schedule:
    return Schedule(rows=cost, columns=1, vectors=kind, band=1)


class ProductTemplate:
    """Products of float32; the default does its work 4 times over."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return schedule(4)

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        bad = [schedule(1, kind) for kind in (WRONG, REFUSED, CRASHES, STRAYS)]
        return [schedule(4), *(schedule(cost) for cost in (8, 6, 3, 1, 2)), *bad]

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        return (weights,)

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> Any:
        from tvm.script.ir_builder import IRBuilder
        from tvm.script.ir_builder import tirx as T

        assert isinstance(workload, Dense)
        if schedule.vectors == REFUSED:
            raise ValueError("the schedule does not fit")
        if schedule.vectors == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60.0)
        inputs, outputs = workload.channels
        more = 1 if schedule.vectors == STRAYS else 0
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            handles = [T.arg(letter, T.handle()) for letter in ("a", "b", "c")]
            rows = T.int64()
            data = T.match_buffer(handles[0], (rows, inputs), "float32")
            weights = T.match_buffer(handles[1], (inputs, outputs), "float32")
            output = T.match_buffer(handles[2], (rows, outputs), "float32")
            with T.serial(0, rows) as row, T.serial(0, schedule.rows):
                with T.serial(0, outputs + more) as column:
                    wrong = 1.0 if schedule.vectors == WRONG else 0.0
                    T.buffer_store(output, T.float32(wrong), [row, column])
                with T.serial(0, inputs) as i, T.serial(0, outputs) as column:
                    product = data[row, i] * weights[i, column]
                    T.buffer_store(output, output[row, column] + product, [row, column])
        return builder.get()


def template_of(workload: Workload) -> ProductTemplate:
    return ProductTemplate()
