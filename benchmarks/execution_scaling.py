"""Wall time of an error table against groups, samples and workers, and the scheduler on up to 1,000 simulated devices.

    python -m benchmarks.execution_scaling [--case FOLDER] [--repetitions 3]

The table is a real one, of the shipped example: models quantized group by group, run on held-out images. Executors
take turns, nothing is cached between them, and the smallest of the repetitions counts, because whatever else the
machine does only adds to it. Starting the workers is told apart: it happens once in a compile. The simulated devices
are just that: nothing runs on them. Ray takes part where it is installed (`make test-ray` makes an environment with
it).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.cases import ROOT, Case, example, read_case
from benchmarks.execution_plots import Lines, panels_svg
from benchmarks.results import Row, Settings, save
from greencc.compiler import CompileOptions, Effort, Precision
from greencc.compiler.data import open_splits
from greencc.compiler.evaluation import Evaluator, Job
from greencc.compiler.forms import FormBuilder
from greencc.compiler.groups import quantized_groups
from greencc.compiler.memo import MemoEngine
from greencc.compiler.session import Session
from greencc.compiler.slices import Slice, make_slice
from greencc.compiler.variants import variants
from greencc.core.cache import Cache
from greencc.core.describe import input_specs
from greencc.core.files import atomic_file
from greencc.core.graph import ensure_names
from greencc.core.model import infer_shapes, load_model
from greencc.core.passes import RewriteLog
from greencc.core.progress import silent
from greencc.execution import Demand, Executor, make_executor
from greencc.execution.simulate import Faults, simulate
from greencc.targets import CpuTarget

GROUPS = (3, 6, 12)
SAMPLES = (16, 32, 64, 128)
ENGINES = (("local", 1), ("local", 2), ("ray", 2))
DEVICES = (1, 10, 100, 300, 1000)
TASKS = 10_000
FAULTS = (0.0, 0.01, 0.05)
# Of the simulated devices, which are never of one kind.
_KINDS = 10
PLOT = ROOT / "docs" / "images" / "execution-scaling.svg"


class Tables:
    """A model with everything that its error tables need."""

    def __init__(self, case: Case, scratch: Path) -> None:
        options = CompileOptions(
            calibration=case.calibration,
            evaluation=case.evaluation,
            precision=Precision.INT8,
            effort=Effort.QUICK,
            cache=False,
            samples=64,
        )
        self.session = Session(options, CpuTarget(), scratch)
        source = load_model(case.model)
        ensure_names(source)
        splits = open_splits(self.session, input_specs(source))
        baseline = MemoEngine(self.session.target.open(case.model))
        batch = input_specs(source)[0].batch
        builder = FormBuilder(self.session, source, splits, splits.samples(baseline, batch))
        cleaned = builder.cleaned().model
        variant = next(variants(options.effort, builder.context.capabilities, cleaned))
        prepared, _ = builder.prepared(variant.prepare)
        groups = quantized_groups(builder.static(variant.name, variant.prepare, variant.plain).qdq)
        everything = {name for group in groups for name in group.nodes}
        context = replace(builder.context, progress=silent)

        def build(excluded: frozenset[str]) -> ir.Model:
            model = prepared.clone()
            step = replace(variant.plain, exclude=tuple(sorted(excluded)))
            step.apply(model, replace(context, rewrites=RewriteLog()))
            infer_shapes(model)
            return model

        self.jobs = [
            Job((group.name,), lambda left=frozenset(everything - set(group.nodes)): build(left), group.name)  # type: ignore[misc]
            for group in groups
        ]
        self.slices: dict[int, Slice] = {
            count: make_slice(baseline.engine, splits.planning, count) for count in SAMPLES
        }
        baseline.close()

    def time(self, executor: Executor, groups: int, samples: int) -> tuple[float, list[float | None]]:
        """Seconds of a table, and its errors."""
        evaluator = replace(Evaluator.of(self.session), executor=executor, cache=Cache())
        begun = time.perf_counter()
        errors = evaluator.errors(self.jobs[:groups], self.slices[samples])
        return time.perf_counter() - begun, errors


def table_rows(case: Case, repetitions: int, scratch: Path) -> list[Row]:
    """Measure all tables on all executors, in turns."""
    tables = Tables(case, scratch)
    engines = [
        (spec, workers) for spec, workers in ENGINES if spec != "ray" or importlib.util.find_spec("ray")
    ]
    executors = {f"{spec}, {workers}": make_executor(spec, workers) for spec, workers in engines}
    starts = {}
    for name, executor in executors.items():
        # As many tasks as workers: all of them start.
        starts[name], _ = tables.time(executor, executor.workers, SAMPLES[0])
    most = min(len(tables.jobs), max(GROUPS))
    sizes = [(count, SAMPLES[2]) for count in sorted({min(count, most) for count in GROUPS})]
    sizes += [(most, count) for count in SAMPLES if count != SAMPLES[2]]
    seconds: defaultdict[tuple[str, int, int], list[float]] = defaultdict(list)
    same: dict[tuple[int, int], list[float | None]] = {}
    for _ in range(repetitions):
        for groups, samples in sizes:
            for name, executor in executors.items():
                taken, errors = tables.time(executor, groups, samples)
                seconds[name, groups, samples].append(taken)
                if same.setdefault((groups, samples), errors) != errors:
                    raise SystemExit(f"{name} found other errors")
    for executor in executors.values():
        executor.close()
    tables.session.close()
    return [
        {
            "kind": "table",
            "engine": name,
            "threads": executors[name].threads,
            "groups": groups,
            "samples": tables.slices[samples].count,
            "seconds": round(min(found), 3),
            "all_seconds": [round(value, 3) for value in found],
            "first_table_s": round(starts[name], 3),
        }
        for (name, groups, samples), found in seconds.items()
    ]


def simulation_rows() -> list[Row]:
    """Ten thousand tasks of mixed length on ever more devices of ten kinds."""
    rows: list[Row] = []
    for probability in FAULTS:
        for devices in DEVICES:
            kinds = min(_KINDS, devices)
            names = [tuple(f"{kind}.{index}" for index in range(devices // kinds)) for kind in range(kinds)]
            wanted = [Demand(1.0 + index * 7 % 13, names[index % kinds]) for index in range(TASKS)]
            begun = time.perf_counter()
            found = simulate(wanted, faults=Faults(probability, repair=20.0, retries=5))
            rows.append(
                {
                    "kind": "simulation",
                    "devices": devices,
                    "tasks": TASKS,
                    "lost_share": probability,
                    "lost": found.lost,
                    "failed": len(found.failed),
                    "makespan": round(found.makespan, 2),
                    "bound": round(found.bound, 2),
                    "scheduling_s": round(time.perf_counter() - begun, 3),
                }
            )
    return rows


def plot(rows: Sequence[Row], name: str) -> str:
    """The picture of the rows."""
    tables = [row for row in rows if row["kind"] == "table"]
    most = max((row["groups"] for row in tables), default=0)
    by_groups = _lines([row for row in tables if row["samples"] == SAMPLES[2]], "engine", "groups", "seconds")
    by_samples = _lines([row for row in tables if row["groups"] == most], "engine", "samples", "seconds")
    simulated: Lines = _lines(
        [
            {**row, "name": f"{100 * row['lost_share']:g} % lost", "ratio": row["makespan"] / row["bound"]}
            for row in rows
            if row["kind"] == "simulation"
        ],
        "name",
        "devices",
        "ratio",
    )
    return panels_svg(
        f"Search at scale: error tables of {name}, and {TASKS:,} tasks on simulated devices",
        (
            (f"groups ({SAMPLES[2]} samples)", "seconds, measured", by_groups),
            (f"samples ({most} groups)", "seconds, measured", by_samples),
            ("devices, simulated", "time over the lower bound", simulated),
        ),
    )


def _lines(rows: Sequence[Row], name: str, across: str, up: str) -> Lines:
    lines: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        lines[str(row[name])].append((float(row[across]), float(row[up])))
    return lines


def main() -> None:
    """Run and save; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", type=Path, help="a folder with model.onnx, calibration.npz and eval.npz")
    parser.add_argument("--repetitions", type=int, default=3)
    chosen: Any = parser.parse_args()
    load = os.getloadavg()[0]
    case = example() if chosen.case is None else read_case(chosen.case)
    with tempfile.TemporaryDirectory(prefix="greencc-scaling-") as folder:
        rows = [*table_rows(case, chosen.repetitions, Path(folder)), *simulation_rows()]
        settings = Settings(
            models=None if chosen.case is None else chosen.case.parent,
            repetitions=chosen.repetitions,
            quick=False,
            command=f"python -m benchmarks.execution_scaling --repetitions {chosen.repetitions}",
            work=Path(folder),
            load=load,
        )
        path = save("execution_scaling", settings, rows, case=case.name)
    with atomic_file(PLOT) as work:
        work.write_text(plot(rows, case.name) + "\n", encoding="utf-8")
    for row in rows:
        print(row)
    print(f"{path}\n{PLOT}")


if __name__ == "__main__":
    main()
