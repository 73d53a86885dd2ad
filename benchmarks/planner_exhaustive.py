"""Job: how far a plan is from the true best of a small space, every member of which is built, judged and timed.

The space is data: units with options, as the planner's problem has them, and what recipe an assignment is. The
planner's own space of a model fits as well as `small_space`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_tools import Clock, Result

if TYPE_CHECKING:
    from benchmarks.planner_bench import Step, Workbench
    from greencc.core.engine import Target
    from greencc.core.passes import Pass

MOST = 64
FINALISTS = 5
"""The fastest at a glance that are timed once more beside the plan: the fastest of 64 glances is a lucky one."""
LAYERS = 5
CUT = 0.25
CHANNELS, LEFT, PRUNED = "channels", "left", "pruned"
FLOAT, INT8 = "float", "int8"

Assignment = Mapping[str, str]
"""The name of the option chosen, by the name of the unit; `greencc.planner.problem` has the same."""


@dataclass(frozen=True)
class Space:
    """A small space of plans.

    Attributes:
        units: Names of the options of every unit, the one that leaves it as it is first. Of the planner's problem:
            ``{unit.name: [option.name for option in unit.options] for unit in problem.units}``.
        passes: Those of an assignment, after the clean-up; a whole recipe will do, cleaning up twice changes nothing.
    """

    units: Mapping[str, Sequence[str]]
    passes: Callable[[Assignment], Sequence[Pass]]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.units.values()))

    def assignments(self) -> Iterator[dict[str, str]]:
        """All of them, the one that leaves every unit as it is first."""
        for chosen in itertools.product(*self.units.values()):
            yield dict(zip(self.units, chosen, strict=True))


def small_space(bench: Workbench, most: int) -> Space:
    """Float or INT8 for each of the layers with most work, and the channels as they are or a quarter of the work cut.

    The other layers follow: they are INT8 where any of those is. It has at most `most` members.
    """
    from benchmarks.planner_bench import passes_of

    layers = bench.layers()
    count = min(LAYERS, len(layers), int(math.log2(most)) - 1)
    units = {layer.name: (FLOAT, INT8) for layer in layers[:count]} | {CHANNELS: (LEFT, PRUNED)}
    return Space(units, lambda assignment: passes_of(small_steps(assignment)))


def small_steps(assignment: Assignment) -> list[Step]:
    """The passes of an assignment of `small_space`."""
    steps: list[Step] = []
    if assignment[CHANNELS] == PRUNED:
        steps.append({"name": "prune", "ratio": CUT, "measured": False})
    layers = {name: option for name, option in assignment.items() if name != CHANNELS}
    if INT8 in layers.values():
        kept = [name for name, option in layers.items() if option == FLOAT]
        steps.append({"name": "quantize-int8", "method": "mse", "bias": "analytic", "exclude": kept})
    return steps


@dataclass(frozen=True)
class Member:
    """An assignment that was built: its loss, and its latency by the original's at a glance."""

    assignment: dict[str, str]
    artifact: Path
    loss: float
    slowness: float


def exhaust(
    model: str,
    calibration: str,
    samples: int,
    evaluation: str,
    metric: str | None,
    folder: str,
    max_drop: float,
    plan: str,
    plan_target: str,
    most: int = MOST,
    quick: bool = False,
) -> Result:
    """Enumerate `small_space` and compare `plan`, an artifact of `greencc compile`, with the best of it."""
    from benchmarks.planner_bench import Workbench
    from greencc.targets import make_target

    clock = Clock()
    bench = Workbench(
        Path(model), Path(calibration), samples, Path(evaluation), metric, Path(folder).resolve()
    )
    try:
        chosen = (Path(plan), make_target(plan_target))
        return clock.result(
            chosen[0], **judge_space(bench, small_space(bench, most), max_drop, chosen, quick=quick)
        )
    finally:
        bench.close()


def judge_space(
    bench: Workbench, space: Space, max_drop: float, plan: tuple[Path, Target], *, quick: bool = False
) -> dict[str, Any]:
    """Build, judge and time every member of a space; then time the best beside the original and the plan, in turns.

    Args:
        bench: The model with its data; all samples judge, so that the best is the true one.
        space: What is enumerated.
        max_drop: What a member may lose.
        plan: The artifact that a planner chose, and the target that runs it.
        quick: Few measurements.
    """
    from greencc.measure.profiles import QUICK, Profile

    members: list[Member] = []
    refused = 0
    for assignment in space.assignments():
        member = _member(bench, space, assignment)
        if member is None:
            refused += 1
            continue
        members.append(member)
    finalists = fastest(members, max_drop, FINALISTS)
    profile = Profile("finalists", seconds=30.0, rounds=24, min_rounds=6, min_runs=50, warm_up_seconds=0.5)
    artifacts: list[tuple[Path, Target | None]] = [(bench.model, None), plan]
    artifacts += [(member.artifact, None) for member in finalists]
    original_ms, plan_ms, *found_ms = bench.latencies(artifacts, QUICK if quick else profile)
    # Who may lose nothing has the original still.
    best_ms, best = min(
        [(original_ms, None), *zip(found_ms, finalists, strict=True)], key=lambda pair: pair[0]
    )
    return {
        "members": space.size,
        "refused": refused,
        "kept_limit": sum(member.loss <= max_drop for member in members),
        "original_ms": original_ms,
        "plan_ms": plan_ms,
        "plan_loss": bench.loss(*plan),
        "best_ms": best_ms,
        "best_loss": 0.0 if best is None else best.loss,
        "best": None if best is None else best.assignment,
        "gap": plan_ms / best_ms - 1.0,
    }


def _member(bench: Workbench, space: Space, assignment: dict[str, str]) -> Member | None:
    """None where a pass refuses."""
    from benchmarks.planner_bench import REFUSALS

    try:
        artifact = bench.build(space.passes(assignment))
        return Member(assignment, artifact, bench.loss(artifact), bench.slowness(artifact))
    except REFUSALS:
        return None


def fastest(members: Sequence[Member], max_drop: float, count: int) -> list[Member]:
    """The fastest members that keep the limit."""
    good = [member for member in members if member.loss <= max_drop]
    return sorted(good, key=lambda member: member.slowness)[:count]
