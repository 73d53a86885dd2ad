"""Schedules of what TVM's own legalization leaves as plain loops: element-wise, movements, reductions, products.

LLVM vectorises a simple innermost loop well, tails included. What keeps it from that is taken away here: intermediate
buffers, calls of libm, chains of dependent float additions, and reductions inside of a contiguous axis.
A function that no rule fits stays as it is, which is slow and right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from greencc.targets._tvm.fast_math import with_fast_math
from greencc.targets._tvm.machine import Machine

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.tirx import PrimFunc

Block = Any

Loop = Any

# Elements that are worth a second thread.
_PARALLEL = 64 << 10
# Largest tile of a transposition: a cache line of float32.
_TILE = 16
# Functions of TVM that cost so much that nothing may compute them twice.
_HEAVY = frozenset(
    {"tirx.exp", "tirx.erf", "tirx.tanh", "tirx.sigmoid", "tirx.log", "tirx.pow", "tirx.rsqrt", "tirx.sqrt"}
)


def schedule(module: IRModule, machine: Machine) -> IRModule:
    """A module in which every function without ``tirx.is_scheduled`` has a schedule."""
    from tvm import IRModule, tirx

    functions = {
        name: _scheduled(function, machine)
        if isinstance(function, tirx.PrimFunc) and not _is_scheduled(function)
        else function
        for name, function in module.functions_items()
    }
    return IRModule(functions, attrs=module.attrs)


def _is_scheduled(function: PrimFunc) -> bool:
    return function.attrs is not None and bool(function.attrs.get("tirx.is_scheduled", False))


def _scheduled(function: PrimFunc, machine: Machine) -> PrimFunc:
    from tvm import IRModule, s_tir

    result = function
    try:
        plan = s_tir.Schedule(IRModule({"main": function}))
        _Rules(plan, machine).apply()
        result = plan.mod["main"]
    except s_tir.ScheduleError:
        # Whatever its loops are, no rule is made for them.
        result = function
    return with_fast_math(result, machine).with_attr("tirx.is_scheduled", True)


class _Rules:
    """Works on one function."""

    def __init__(self, plan: Any, machine: Machine) -> None:
        self.plan = plan
        self.machine = machine

    def apply(self) -> None:
        self._inline()
        blocks = self._blocks()
        reductions = [block for block in blocks if self._reduction_loops(block)]
        if not reductions:
            for block in blocks:
                self._move(block)
        elif len(blocks) == 1 and self._is_product(blocks[0]):
            self._multiply(blocks[0])
        else:
            self._reduce(blocks)

    def _blocks(self) -> list[Block]:
        return list(self.plan.get_child_blocks(self.plan.get_sblock("root")))

    # Intermediate values

    def _inline(self) -> None:
        """Computes intermediate values where they are used, unless they would be computed again and again."""
        from tvm import s_tir

        for block in self._blocks():
            users = self.plan.get_consumers(block)
            if not users or self._reduction_loops(block):
                continue
            repeated = len(users) > 1 or self._reads_repeatedly(users[0], block)
            if repeated and self._is_heavy(block):
                continue
            try:
                self.plan.compute_inline(block)
            except s_tir.ScheduleError:
                # Not every value can be: it stays in its buffer.
                continue

    def _reads_repeatedly(self, user: Block, block: Block) -> bool:
        return self._size(user) != self._size(block)

    def _size(self, block: Block) -> int:
        """Iterations, unknown extents taken as one."""
        return math.prod(_extent(var.dom.extent) for var in self.plan.get(block).iter_vars)

    def _is_heavy(self, block: Block) -> bool:
        import tvm_ffi
        from tvm.ir import Call

        found: list[Any] = []
        tvm_ffi.structural_walk(self.plan.get(block).body, (Call, lambda call: found.append(call.op)))
        return any(getattr(op, "name", "") in _HEAVY for op in found)

    # Loops

    def _reduction_loops(self, block: Block) -> list[Loop]:
        kinds = self._kinds(block)
        loops = self.plan.get_loops(block)
        return [loop for loop, kind in zip(loops, kinds, strict=False) if kind != "S"]

    def _kinds(self, block: Block) -> str:
        from tvm.tirx import IterVar

        return "".join(
            "S" if var.iter_type == IterVar.DataPar else "R" for var in self.plan.get(block).iter_vars
        )

    def _spread(self, loops: list[Loop], size: int) -> None:
        """Makes threads share as few of the outer loops as give each enough parts."""
        if size < _PARALLEL or self.machine.cores == 1:
            return
        count, parts = 0, 1
        while count < len(loops) and parts < 2 * self.machine.cores:
            parts *= self._length(loops[count])
            count += 1
        if count:
            self.plan.parallel(self.plan.fuse(*loops[:count]) if count > 1 else loops[0])

    # Kinds of functions

    def _move(self, block: Block) -> None:
        """Element-wise work and movements."""
        loops = list(self.plan.get_loops(block))
        size = self._size(block)
        across = self._transposed(block)
        if across is not None and all(self._tile(loops[index]) >= _TILE // 2 for index in (across, -1)):
            # Square tiles read and write whole cache lines.
            tiles = [
                self.plan.split(loops[index], [None, self._tile(loops[index])]) for index in (across, -1)
            ]
            outer = [*loops[:across], tiles[0][0], *loops[across + 1 : -1], tiles[1][0]]
            self.plan.reorder(*outer, tiles[0][1], tiles[1][1])
            loops = [*outer, tiles[0][1], tiles[1][1]]
        else:
            # One long loop is worth more than short ones.
            common = self._common_tail(block)
            if common > 1:
                loops[-common:] = [self.plan.fuse(*loops[-common:])]
            if size >= _PARALLEL and math.prod(map(self._length, loops[:-1])) < 2 * self.machine.cores:
                loops[-1:] = self.plan.split(loops[-1], [self._parts(loops[-1]), None])
        self._spread(loops[:-1], size)

    def _length(self, loop: Loop) -> int:
        return _extent(self.plan.get(loop).extent)

    def _parts(self, loop: Loop) -> int:
        """Equal parts for threads."""
        return next(
            parts for parts in range(8 * self.machine.cores, 0, -1) if self._length(loop) % parts == 0
        )

    def _common_tail(self, block: Block) -> int:
        """How many last loops, of known length, run through every tensor in its order or do not matter to it."""
        from tvm.tirx import IntImm

        node = self.plan.get(block)
        variables = [var.var for var in node.iter_vars]
        extents = [_extent(var.dom.extent) for var in node.iter_vars]
        if len(variables) != len(self.plan.get_loops(block)):
            return 0
        count = 0
        while count < len(variables) and all(
            isinstance(node.iter_vars[-count - 1].dom.extent, IntImm)
            and self._runs_through(region, variables[-count - 1 :], extents[-count - 1 :])
            for region in (*node.reads, *node.writes)
        ):
            count += 1
        return count

    def _runs_through(self, region: Any, variables: list[Any], extents: list[int]) -> bool:
        from tvm.tirx import IntImm

        indices = [each.min for each in region.region]
        if any(_extent(each.extent) != 1 or not isinstance(each.extent, IntImm) for each in region.region):
            return False
        if not any(_mentions(index, variables) for index in indices):
            return True
        count = len(variables)
        tail, shape = indices[-count:], [_extent(size) for size in region.source.shape[-count:]]
        return (
            len(tail) == count
            and all(index.same_as(variable) for index, variable in zip(tail, variables, strict=True))
            and not any(_mentions(index, variables) for index in indices[:-count])
            and shape[1:] == extents[1:]
        )

    def _tile(self, loop: Loop) -> int:
        extent = self._length(loop)
        return next(size for size in range(_TILE, 0, -1) if extent % size == 0)

    def _transposed(self, block: Block) -> int | None:
        """The loop along which the only tensor read is contiguous, if it is not the last."""
        node = self.plan.get(block)
        if len(node.reads) != 1 or len(node.reads[0].region) < 2:
            return None
        last = node.reads[0].region[-1].min
        names = [index for index, var in enumerate(node.iter_vars) if var.var.same_as(last)]
        loops = len(self.plan.get_loops(block))
        return names[0] if names and names[0] != loops - 1 and len(node.iter_vars) == loops else None

    def _is_product(self, block: Block) -> bool:
        """A sum of products of two tensors over one axis."""
        kinds = self._kinds(block)
        return (
            len(kinds) >= 3 and kinds.endswith("SR") and kinds.count("R") == 1 and len(self._read(block)) == 2
        )

    def _read(self, block: Block) -> list[Any]:
        """What a block reads, its own sums left out."""
        node = self.plan.get(block)
        return [region for region in node.reads if not region.source.same_as(node.writes[0].source)]

    def _multiply(self, block: Block) -> None:
        """A product of matrices: sums of neighbouring columns advance together."""
        loops = list(self.plan.get_loops(block))
        size = self._size(block)
        spatial, inner, step = loops[:-2], loops[-2], loops[-1]
        self.plan.reorder(step, inner)
        self.plan.decompose_reduction(block, step)
        self._spread(spatial[:-1] or spatial, size)

    def _reduce(self, blocks: list[Block]) -> None:
        """Reductions, with what is computed before and after: by rows of the output, which stay in the cache."""
        rows = min(len(kinds) - len(kinds.lstrip("S")) for kinds in map(self._kinds, blocks))
        last, size = blocks[-1], max(self._size(block) for block in blocks)
        # Four vectors hide the latency of an addition.
        lanes = (4 * self.machine.lanes, self.machine.lanes, 4)
        partials = [part for block in blocks for part in self._split_sums(block, lanes)]
        blocks = self._blocks()
        loops = list(self.plan.get_loops(last))
        if rows and len(blocks) > 1:
            name = self.plan.get(last).name_hint
            for block in reversed(blocks):
                if self.plan.get(block).name_hint != name:
                    self.plan.compute_at(block, loops[rows - 1], preserve_unit_loops=True)
        for partial in partials:
            self.plan.decompose_reduction(partial, self.plan.get_loops(partial)[rows])
        self._spread(list(self.plan.get_loops(last))[:rows], size)

    def _split_sums(self, block: Block, lanes: Sequence[int]) -> list[Block]:
        """Sums along a contiguous axis become as many as a vector has lanes, those fewer, and one in the end.

        Only where the lanes divide the axis: what would guard a rest costs more than it brings.
        """
        kinds = self._kinds(block)
        if not kinds.endswith("R"):
            return []
        steps = self._reduction_loops(block)
        step = self.plan.fuse(*steps) if len(steps) > 1 else steps[0]
        extent = self._length(step)
        partials = []
        for parts in lanes:
            if extent % parts == 0 and extent > parts:
                _, inner = self.plan.split(step, [None, parts])
                partials.append(self.plan.rfactor(inner, len(kinds.rstrip("R"))))
                step, extent = self.plan.get_loops(block)[-1], parts
        return partials


def _extent(value: Any) -> int:
    """A constant extent; an unknown one counts as one."""
    from tvm.tirx import IntImm

    return int(value.value) if isinstance(value, IntImm) else value if isinstance(value, int) else 1


def _mentions(expression: Any, variables: list[Any]) -> bool:
    import tvm_ffi
    from tvm.tirx import Var

    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (Var, found.append))
    return any(name.same_as(variable) for name in found for variable in variables)
