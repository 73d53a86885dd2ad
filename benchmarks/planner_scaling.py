"""How long the planner's solver takes, against groups, options and pairs.

    python -m benchmarks.planner_scaling

Synthetic plans with the shape of real ones: latencies and sizes spread over two orders, options that save more the
more error they add, and neighbours that pay for a change of format or that share a tensor (amounts of either sign on
three of ten pairs of options). Minimised is energy, limited are the error
and, loosely, the latency. Told are wall time, the
process's own CPU time (other work on the machine does not count there) and the gap proven. Rows go to
`benchmarks/results/planner_scaling.json`, the plot to `docs/images/planner-scaling.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import __version__ as scipy_version

from benchmarks.scaling_plot import Curve, scaling_svg
from greencc.core.files import atomic_file
from greencc.planner.problem import Amounts, Limit, Option, Pair, Problem, Quantity, Unit
from greencc.planner.solve import solve

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "planner_scaling.json"
IMAGE = ROOT / "docs" / "images" / "planner-scaling.svg"

# Groups, options of each, neighbours that a group has pairs with.
SIZES: tuple[tuple[int, int, int], ...] = (
    *((groups, 5, 2) for groups in (10, 30, 100, 300, 1000, 3000, 10_000)),
    *((groups, 20, 2) for groups in (10, 30, 100, 300, 1000)),
    *((groups, 20, 0) for groups in (10, 30, 100, 300, 1000, 3000)),
)
ENTRIES = 0.3


@dataclass(frozen=True)
class Row:
    """One size: medians over the seeds, and the largest gap. `gap` is None where some seed had no answer."""

    groups: int
    options: int
    neighbours: int
    pairs: int
    wall_s: float
    cpu_s: float
    slowest_wall_s: float
    gap: float | None
    proven: int
    seeds: int


def synthetic(groups: int, options: int, neighbours: int, seed: int) -> tuple[Problem, tuple[Limit, ...]]:
    """A ring of groups, or groups on their own, and limits on error and latency."""
    rng = np.random.default_rng(seed)
    units, worst = [], []
    for index in range(groups):
        milliseconds, size = rng.lognormal(0, 1), rng.lognormal(10, 1)
        millijoules, sensitivity = milliseconds * rng.uniform(4, 6), rng.lognormal(-9, 1.5)
        found = []
        for step in range(options):
            depth = step / options
            left = 1 - 0.85 * depth * rng.uniform(0.7, 1) if step else 1.0
            found.append(
                Option(
                    f"o{step}",
                    {
                        Quantity.LATENCY: float(milliseconds * left),
                        Quantity.ENERGY: float(millijoules * left * (rng.uniform(0.9, 1.1) if step else 1)),
                        Quantity.SIZE: float(size * (1 - 0.7 * depth)),
                        Quantity.ERROR: float(sensitivity * depth**2 * rng.uniform(0.3, 2)),
                    },
                )
            )
        units.append(Unit(f"g{index}", tuple(found)))
        worst.append(found[-1].amounts[Quantity.ERROR])
    pairs = []
    for index in range(groups if neighbours else 0):
        whole, scale = units[index].options[0].amounts, worst[index]
        for first, second in np.argwhere(rng.random((options, options)) < ENTRIES):
            share = rng.normal() * 0.05
            amounts: Amounts = {
                Quantity.LATENCY: float(share * whole[Quantity.LATENCY]),
                Quantity.ENERGY: float(share * whole[Quantity.ENERGY]),
                Quantity.ERROR: float(rng.normal() * 0.1 * scale),
            }
            ends = (f"g{index}", f"o{first}"), (f"g{(index + 1) % groups}", f"o{second}")
            pairs.append(Pair(*ends, amounts))
    problem = Problem(tuple(units), tuple(pairs))
    before = problem.totals(problem.untouched())
    return problem, (
        Limit("error", {Quantity.ERROR: 1.0}, 0.2 * sum(worst)),
        Limit("latency", {Quantity.LATENCY: 1.0}, 0.75 * before[Quantity.LATENCY]),
    )


def measured(groups: int, options: int, neighbours: int, seeds: int, seconds: float) -> Row:
    """Solve some instances of one size."""
    walls, cpus, gaps = [], [], []
    for seed in range(seeds):
        problem, limits = synthetic(groups, options, neighbours, seed)
        wall, cpu = time.perf_counter(), time.process_time()
        found = solve(problem, {Quantity.ENERGY: 1.0}, limits, seconds=seconds)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        gaps.append(None if found is None else (found.gap, found.optimal))
    answered = [item for item in gaps if item is not None]
    return Row(
        groups,
        options,
        neighbours,
        len(problem.pairs),
        statistics.median(walls),
        statistics.median(cpus),
        max(walls),
        float(max(gap for gap, _ in answered)) if len(answered) == seeds else None,
        sum(bool(optimal) for _, optimal in answered),
        seeds,
    )


def plot(rows: Sequence[Row]) -> str:
    """Wall and CPU time against groups."""
    kinds = {
        (5, 2): ("5 options, pairs with 2 neighbours", "#0f766e"),
        (20, 2): ("20 options, pairs with 2 neighbours", "#b45309"),
        (20, 0): ("20 options, no pairs", "#4f46e5"),
    }
    curves = []
    for (options, neighbours), (label, colour) in kinds.items():
        own = [row for row in rows if (row.options, row.neighbours) == (options, neighbours)]
        curves.append(Curve(f"{label}, CPU", colour, [(row.groups, row.cpu_s) for row in own]))
        curves.append(Curve(f"{label}, wall", colour, [(row.groups, row.wall_s) for row in own], dashed=True))
    return scaling_svg("The planner's solver: to a proven gap of 1e-6", "groups", "seconds", curves)


def main() -> None:
    """Measure, write the rows and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of one solution")
    parser.add_argument("--most", type=int, default=10_000, help="leave out sizes of more groups")
    arguments = parser.parse_args()
    synthetic_start = synthetic(10, 5, 2, 0)
    # Imports of the solver are not part of a solution.
    solve(synthetic_start[0], {Quantity.ENERGY: 1.0}, synthetic_start[1])
    rows = []
    for groups, options, neighbours in SIZES:
        if groups > arguments.most:
            continue
        row = measured(groups, options, neighbours, arguments.seeds, arguments.seconds)
        gap = "none" if row.gap is None else f"{row.gap:.1e}"
        print(
            f"{groups:6d} groups x {options:2d} options, {row.pairs:7d} pairs: wall {row.wall_s:6.2f} s, "
            f"CPU {row.cpu_s:6.2f} s, largest gap {gap}, proven {row.proven}/{row.seeds}",
            flush=True,
        )
        rows.append(row)
    machine = {
        "cpus": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "scipy": scipy_version,
    }
    with atomic_file(RESULTS) as work:
        work.write_text(
            json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    with atomic_file(IMAGE) as work:
        work.write_text(plot(rows))


if __name__ == "__main__":
    main()
