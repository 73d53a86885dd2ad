"""Builds, checks and times kernels in a process of its own: a crash of a candidate ends this process alone.

``python -m greencc.targets._tvm.trial_child MODULE:FUNCTION`` (of the templates) reads one JSON request a line from
standard input and answers each with one line:

    {"open": workload, "machine": ..., "schedule": default}  {"us": ...}
    {"add": schedule}                                        {"us": ...} or {"out": why}
    {"drop": [schedule, ...]}                                {}
    {"time": [schedule, ...], "rounds": n}                   {"us": [[of every round], ...]}
"""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.codec import from_json
from greencc.targets._tvm.kernels.template import Schedule, Template
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.pipeline import llvm_target
from greencc.targets._tvm.trial_data import (
    Buffer,
    aligned,
    difference,
    leading,
    random_arguments,
    random_weights,
)
from greencc.targets._tvm.workload import Workload

_SYMBOL = "trial"
_SEED = 1
_BLOCK_US = 2000.0
_MOST_RUNS = 200
# Weights come from beyond the level-2 cache, as in a net whose other layers ran meanwhile; data were just written.
_WEIGHT_COPIES, _WEIGHT_BYTES, _DATA_COPIES = 64, 64 << 20, 2


class _OutError(Exception):
    """The candidate is out; the text says why."""


@dataclass
class _Kernel:
    """A built candidate, and the argument lists that calls rotate through."""

    function: Callable[..., Any]
    calls: list[list[Any]]
    keep: list[Buffer]
    us: float = 0.0
    turn: int = 0

    def timed(self) -> float:
        """Microseconds of one call."""
        arguments = self.calls[self.turn]
        self.turn = (self.turn + 1) % len(self.calls)
        start = time.perf_counter_ns()
        self.function(*arguments)
        return max(time.perf_counter_ns() - start, 1) / 1e3

    def block(self) -> float:
        """Median of as many calls as fill a block, behind one that does not count: caches are another's."""
        runs = max(1, min(_MOST_RUNS, int(_BLOCK_US / self.us)))
        self.timed()
        return statistics.median(self.timed() for _ in range(runs))


class _Trials:
    """Candidates of one workload."""

    def __init__(self, template: Template, workload: Workload, machine: Machine, default: Schedule) -> None:
        self._template, self._workload, self._machine = template, workload, machine
        rng = np.random.default_rng(_SEED)
        self._weights = random_weights(workload, rng)
        self._rng = rng
        self._kernels: dict[Schedule, _Kernel] = {}
        self._shared: list[Buffer] = []
        self._outputs: list[Buffer] = []
        self._expected: Array | None = None
        self.add(default)
        self._expected = self._outputs[0].array.copy()

    def add(self, schedule: Schedule) -> float:
        """Build and check a candidate; microseconds of its fastest call so far."""
        packed: tuple[Array, ...] = ()
        try:
            if self._weights is not None:
                packed = self._template.pack(self._workload, schedule, self._machine, self._weights)
            function, specs = self._build(schedule)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise _OutError(f"it cannot be built: {lines[-1][:200]}") from error
        kernel = self._prepare(function, specs, packed)
        output = self._outputs[0]
        output.array.view(np.uint8)[...] = 0x5A
        kernel.turn = 0
        first = kernel.timed()
        if not output.intact:
            raise _OutError("it writes beyond its output")
        if self._expected is not None and (found := difference(output.array, self._expected)):
            raise _OutError(f"it computes something else than the default: {found}")
        kernel.us = min(first, *(kernel.timed() for _ in range(3 if first < 2e4 else 1)))
        self._kernels[schedule] = kernel
        return kernel.us

    def drop(self, schedules: list[Schedule]) -> None:
        for schedule in schedules:
            self._kernels.pop(schedule, None)

    def time(self, schedules: list[Schedule], rounds: int) -> list[list[float]]:
        """Blocks in turns, forwards and backwards by turns: a drift of the clock falls on all of them alike."""
        order = [self._kernels[schedule] for schedule in schedules]
        times: list[list[float]] = [[] for _ in order]
        for number in range(rounds):
            turn = list(zip(order, times, strict=True))
            for kernel, found in turn if number % 2 == 0 else reversed(turn):
                found.append(kernel.block())
        return times

    def _build(self, schedule: Schedule) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], str]]]:
        import tvm

        function = self._template.build(self._workload, schedule, self._machine, _SYMBOL)
        batch = leading(self._workload)
        specs = [
            (tuple(_size(size, batch) for size in buffer.shape), str(buffer.dtype))
            for buffer in function.params
        ]
        module = tvm.compile(tvm.IRModule({_SYMBOL: function}), target=llvm_target(self._machine))
        return module[_SYMBOL], specs

    def _prepare(
        self,
        function: Callable[..., Any],
        specs: list[tuple[tuple[int, ...], str]],
        packed: tuple[Array, ...],
    ) -> _Kernel:
        import tvm

        others = [*specs[:1], *specs[1 + len(packed) :]]
        if not self._shared:
            values = random_arguments(self._workload, others[:-1], self._rng)
            self._shared = [aligned(value) for value in values]
            self._outputs = [Buffer(*others[-1]) for _ in range(_DATA_COPIES)]
        size = max(1, sum(array.nbytes for array in packed))
        fits = max(1, _WEIGHT_BYTES // size)
        copies = min(_WEIGHT_COPIES, fits, max(1, math.ceil(2 * self._machine.l2_bytes / size)))
        copies = copies if packed else _DATA_COPIES
        data = [self._shared[0], *(aligned(self._shared[0].array) for _ in range(_DATA_COPIES - 1))]
        keep, calls = [*data], []
        weights = [[aligned(array) for array in packed] for _ in range(copies)]
        keep += [buffer for buffers in weights for buffer in buffers]
        for number in range(max(copies, _DATA_COPIES)):
            turn = number % _DATA_COPIES
            buffers = [data[turn], *weights[number % copies], *self._shared[1:], self._outputs[turn]]
            calls.append([tvm.runtime.from_dlpack(buffer.array) for buffer in buffers])
        return _Kernel(function, calls, keep)


def _size(size: Any, batch: int) -> int:
    """A dimension of a buffer, with the one symbolic size in it given."""
    from tvm import tirx

    if isinstance(size, tirx.IntImm):
        return int(size)
    if isinstance(size, tirx.Var):
        return batch
    raise ValueError(f"a dimension is {size}, not a number or the batch")


def main(arguments: list[str]) -> int:
    """Answer requests until there are no more."""
    module, _, name = arguments[0].partition(":")
    template_of: Callable[[Workload], Template] = getattr(importlib.import_module(module), name)
    # What compilers print must not come between the answers.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    trials: _Trials | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if "open" in request:
                workload, machine = from_json(request["open"]), from_json(request["machine"])
                schedule = from_json(request["schedule"])
                trials = None
                trials = _Trials(template_of(workload), workload, machine, schedule)
                reply["us"] = trials.time([schedule], 1)[0][0]
            else:
                assert trials is not None
                if "add" in request:
                    reply["us"] = trials.add(from_json(request["add"]))
                elif "drop" in request:
                    trials.drop(list(from_json(request["drop"])))
                else:
                    reply["us"] = trials.time(list(from_json(request["time"])), int(request["rounds"]))
        except _OutError as error:
            reply["out"] = str(error)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
