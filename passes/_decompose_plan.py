"""Ranks that are given: which form and ranks a layer gets, as text and as a candidate.

``NODE=FORM:RANKS``, such as ``/layer1/conv=svd:16`` or ``/layer2/conv=tucker:8x12`` (input channels, then outputs). The
forms are those of `_decompose_forms`. What a run has chosen is written in the same way, so that it can be given back.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.passes import Finding
from greencc.passes._decompose_factors import Candidate
from greencc.passes._decompose_forms import Method, families, form_problem
from greencc.passes._decompose_jobs import RULE, Job
from greencc.passes._decompose_problem import Matrix, Problem

WHERE = f"{RULE}: ranks"
"""How messages begin."""

_ITEM = re.compile(r"(?P<node>.+)=(?P<form>[^=:]*):(?P<ranks>[0-9]+(?:x[0-9]+)*)")
_GRAMMAR = "write NODE=FORM:RANK, such as /conv=svd:16, and NODE=tucker:8x12 for the two ranks of tucker"


@dataclass(frozen=True)
class Planned:
    """What a layer becomes.

    Attributes:
        form: Not `auto`.
        ranks: Two for Tucker, one for the others.
    """

    form: Method
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.form.value}:{'x'.join(map(str, self.ranks))}"


Plan = Mapping[str, Planned]
"""By the name of the layer's node."""


def parse_plan(items: Iterable[str], where: str) -> dict[str, Planned]:
    """Read a plan.

    Raises:
        UsageError: An item is malformed, it names an unknown form, or a node comes twice.
    """
    plan: dict[str, Planned] = {}
    for item in items:
        found = _ITEM.fullmatch(item)
        if found is None:
            raise UsageError(f"{where}: {item!r} is no layer with its ranks", hint=_GRAMMAR)
        forms = {form.value: form for form in Method if form is not Method.AUTO}
        if found["form"] not in forms:
            raise UsageError(
                f"{where}: {item!r} has the unknown form {found['form']!r}",
                hint=did_you_mean(found["form"], forms),
            )
        form, ranks = forms[found["form"]], tuple(map(int, found["ranks"].split("x")))
        wanted = 2 if form is Method.TUCKER else 1
        if len(ranks) != wanted:
            count = "two ranks" if wanted == 2 else "one rank"
            raise UsageError(f"{where}: {item!r}: {form.value} has {count}, not {len(ranks)}", hint=_GRAMMAR)
        if found["node"] in plan:
            raise UsageError(f"{where}: {found['node']!r} comes twice", hint="name every layer once")
        plan[found["node"]] = Planned(form, ranks)
    return plan


def format_plan(plan: Plan) -> tuple[str, ...]:
    """The items that `parse_plan` reads."""
    return tuple(f"{node}={planned}" for node, planned in plan.items())


def planned_of(candidate: Candidate) -> Planned:
    """What a candidate is."""
    return Planned(Method(candidate.form), candidate.ranks)


def check_plan(plan: Plan, jobs: Sequence[Job], model: ir.Model, findings: Sequence[Finding]) -> None:
    """Make sure that every planned layer is there and can have its form.

    Args:
        plan: The plan.
        jobs: What can be factorised.
        model: Whose layers they are.
        findings: Say of layers why they cannot be.

    Raises:
        UsageError: A name is none of a layer, or its form does not fit.
    """
    known = {job.name: job for job in jobs}
    reasons = {found.node: found.message for found in findings if found.kind == "refused"}
    for name, planned in plan.items():
        if name in known:
            view = known[name].view
            reason = form_problem(view, planned.form)
            if reason is not None:
                raise UsageError(f"{WHERE}: {view.node.op_type} {name!r} cannot be {planned}: {reason}")
        elif name in reasons:
            raise UsageError(f"{WHERE}: {name!r} cannot be factorised: {reasons[name]}")
        elif any(node.name == name for node in model.graph):
            raise UsageError(
                f"{WHERE}: {name!r} cannot be factorised: it has no constant weights, fewer than min_elements, or "
                "those of another layer, or its operator is not among ops",
                hint=did_you_mean(name, known),
            )
        else:
            raise UsageError(f"{WHERE}: no node is named {name!r}", hint=did_you_mean(name, known))


def candidate_of(problem: Problem, planned: Planned) -> Candidate:
    """The layer in the planned form and ranks.

    Raises:
        UsageError: A rank is out of range, or such factors take no less work and parameters than the layer.
    """
    name = f"{WHERE}: {problem.view.node.op_type} {problem.view.node.name!r} cannot be {planned}"
    *inner, rank = planned.ranks
    if inner and not 1 <= inner[0] <= problem.channels:
        most = _largest(
            problem.channels, lambda first: next(iter(families(problem, planned.form, [first]))).saves(1)
        )
        what = f"it reads {problem.channels} channels" if inner[0] else "a rank is at least 1"
        raise UsageError(f"{name}: {what}", hint=_between(most))
    family = next(iter(families(problem, planned.form, inner)))
    if not 1 <= rank <= family.top or not family.saves(rank):
        if rank < 1:
            what = "a rank is at least 1"
        elif rank > family.top:
            what = f"its rank is at most {family.top}"
        else:
            what = "that saves no work, or no parameters"
        raise UsageError(f"{name}: {what}", hint=_between(_largest(family.top, family.saves)))
    return family.candidate(rank)


def approximation_of(problem: Problem, planned: Planned) -> Matrix:
    """The weights that a layer amounts to in a form and ranks that it can have, (groups, outputs, inputs)."""
    *inner, rank = planned.ranks
    return next(iter(families(problem, planned.form, inner))).solve(rank)[1]


def _largest(top: int, saves: Callable[[int], bool]) -> int:
    """The largest rank up to `top` that saves something, 0 where none does."""
    return bisect_left(range(1, top + 1), True, key=lambda rank: not saves(rank))


def _between(most: int) -> str:
    """What to do, given the largest rank that saves something."""
    if not most:
        return "leave the layer out: this form saves nothing at any rank"
    return f"give a rank between 1 and {most}"
