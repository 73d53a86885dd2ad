"""The error table: how much each group hurts the outputs when it, and nothing else, is quantized.

Two phases: every group on a small slice of held-out samples; the contenders, which carry most of the error, again on a
larger slice and also the other way round, as the only group left in float, which shows what it does among the
others. Rows are kept in the cache one by one, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import onnx_ir as ir

from greencc.compiler.evaluation import Evaluator, Job
from greencc.compiler.groups import Group
from greencc.compiler.session import Deadline
from greencc.compiler.slices import Slice
from greencc.core.cache import cache_key
from greencc.core.capabilities import Capabilities
from greencc.core.progress import Progress

# Phase two looks at the groups that together carry this share of the error.
_CONTENDERS_CARRY = 0.9


@dataclass(frozen=True)
class GroupError:
    """One row of the table. Errors are what `greencc.verify.divergence` returns.

    Attributes:
        group: What was quantized.
        alone: Error with only this group quantized.
        among: Error that quantizing it adds when all others are quantized; None where it was not looked at.
        samples: How many samples `alone` rests on.
    """

    group: Group
    alone: float
    among: float | None = None
    samples: int = 0

    @property
    def error(self) -> float:
        """The larger of the two views."""
        return max(self.alone, self.among or 0.0)


@dataclass(frozen=True)
class Quantizer:
    """How groups are quantized: `build(excluded node names)` gives the model with all others quantized.

    In the cache `key` stands for the float model, the passes with their options, and the target's kernels
    (`facts_key`).
    """

    build: Callable[[frozenset[str]], ir.Model]
    key: str


def facts_key(capabilities: Capabilities) -> str:
    """What of a target decides how a model is quantized for it."""
    facts = {} if capabilities.int8 is None else asdict(capabilities.int8)
    return cache_key(
        {
            name: sorted(value) if isinstance(value, frozenset) else repr(value)
            for name, value in facts.items()
        },
        sorted(capabilities.fused_ops),
        capabilities.recomputes_dequantize,
    )


@dataclass(frozen=True)
class ErrorTable:
    """Measures rows; see the module."""

    evaluator: Evaluator
    quantizer: Quantizer
    progress: Progress

    def measure(
        self, groups: Sequence[Group], small: Slice, large: Slice, deadline: Deadline
    ) -> list[GroupError] | None:
        """The table in the order of `groups`, or None when the first phase did not end in time."""
        everything = frozenset(name for group in groups for name in group.nodes)
        alone = [self._job(f"{group.name} alone", everything - set(group.nodes)) for group in groups]
        rows: list[GroupError] = []
        first = self.evaluator.errors(alone, small, deadline, self.progress, "Sensitivity")
        for group, error in zip(groups, first, strict=True):
            if error is None:
                return None
            rows.append(GroupError(group, error, None, small.count))
        contenders = _contenders(rows)
        others = [
            self._job(f"all but {groups[index].name}", frozenset(groups[index].nodes)) for index in contenders
        ]
        jobs = [self._job("all groups", frozenset()), *(alone[index] for index in contenders), *others]
        full, *found = self.evaluator.errors(jobs, large, deadline, self.progress, "Sensitivity, closer")
        if full is None:
            return rows
        by_itself, left = found[: len(contenders)], found[len(contenders) :]
        for index, error, rest in zip(contenders, by_itself, left, strict=True):
            if error is not None and rest is not None:
                rows[index] = replace(
                    rows[index], alone=error, among=max(full - rest, 0.0), samples=large.count
                )
        return rows

    def _job(self, label: str, excluded: frozenset[str]) -> Job:
        """The model with everything but `excluded` quantized."""
        return Job(
            (self.quantizer.key, sorted(excluded)),
            lambda: self.quantizer.build(excluded),
            f"error of {label}",
        )


def _contenders(rows: Sequence[GroupError]) -> list[int]:
    """Indices of the groups that carry most of the error."""
    ranked = sorted(range(len(rows)), key=lambda index: -rows[index].alone)
    total = sum(row.alone for row in rows)
    chosen: list[int] = []
    carried = 0.0
    for index in ranked:
        if carried >= _CONTENDERS_CARRY * total and chosen:
            break
        chosen.append(index)
        carried += rows[index].alone
    return chosen
