"""The planner beside what else there is: for every model with data latency, energy and size at a drop of one point.

greencc's plan, uniform INT8 of greencc, ONNX Runtime and NNCF, and a blind search over greencc's own passes in the time
that the plan took. All get the same calibration samples; the search and the plan get the same planning split; all are
judged on the certification split and timed in turns, in one process. Then: what compiling costs, cold and with a warm
cache, and how far the plan is from the true best of a space that is small enough to build whole.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_build import calibration_archive, slug
from benchmarks.bench_quantization import (
    evaluation_data,
    is_transformer,
    labelled_arrays,
    peers_model,
)
from benchmarks.cases import Case, find_cases
from benchmarks.child import Run, run_job
from benchmarks.planner_exhaustive import MOST
from benchmarks.planner_tools import (
    GREENCC_INT8,
    MAX_DROP,
    METHODS,
    PLAN,
    QUICK_TIME_BUDGET,
    QUICK_TRIALS,
    SAMPLES,
    SEARCH,
    TARGET,
    TIME_BUDGET,
    TRIALS,
    Method,
    plan_flags,
    second_flags,
    within,
)
from benchmarks.results import Row, Settings, load, save
from greencc.calibration import open_data, take
from greencc.core.describe import input_specs
from greencc.core.model import load_model

EVALUATED, QUICK_EVALUATED = 4000, 600
"""Evaluation samples: a quarter of them plans, the rest certifies and judges."""
LIMIT_MB = 8000
PEER_TIMEOUT = 300.0
COMPILE_TIMEOUT = 1800.0
SEARCH_SLACK = 300.0
"""Seconds that the last trial of a search may take."""
QUALITY_TIMEOUT = 1800.0
EXHAUSTIVE_CASES = ("fashion-mnist (shipped)", "cifar10-resnet8")
EXHAUSTIVE_TIMEOUT = 3000.0
QUICK_MEMBERS = 8
SEARCH_PACKAGE = "optuna"


def run(settings: Settings) -> None:
    """Measure every case with data and write `planner.json`."""
    every = [case for case in find_cases(settings.models) if case.calibration and case.evaluation]
    rows, notes = _earlier(settings, [case.name for case in every])
    wanted = [case for case in every if not settings.cases or case.name in settings.cases]
    if settings.quick and not settings.cases:
        wanted = wanted[:2]
    if not has_search():
        print(
            f"  planner: no search, {SEARCH_PACKAGE} is not installed: pip install -e '.[bench]'", flush=True
        )
    for case in wanted:
        found, note = _Bench(case, settings).run()
        rows += found
        notes[case.name] = {**note, "time_budget": _seconds(settings)}
        # After every model, so that an interrupted run leaves what it has.
        save(
            "planner",
            settings,
            rows,
            cases=notes,
            max_drop=MAX_DROP,
            target=TARGET,
            samples=SAMPLES,
            trials=QUICK_TRIALS if settings.quick else TRIALS,
            time_budget=_seconds(settings),
            searched=has_search(),
        )


def has_search() -> bool:
    """Whether Optuna is installed."""
    return importlib.util.find_spec(SEARCH_PACKAGE) is not None


def _seconds(settings: Settings) -> float:
    """Of planning; small nets need less than the default: ``BENCH_TIME_BUDGET=120`` seconds."""
    return QUICK_TIME_BUDGET if settings.quick else float(os.environ.get("BENCH_TIME_BUDGET", TIME_BUDGET))


def _earlier(settings: Settings, names: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """What an earlier run found on the cases that this one leaves out."""
    found = load("planner")
    if not settings.cases or found is None:
        return [], {}
    kept = set(names) - set(settings.cases)
    return (
        [row for row in found["rows"] if row["case"] in kept],
        {name: value for name, value in found["cases"].items() if name in kept},
    )


class _Bench:
    """One case."""

    def __init__(self, case: Case, settings: Settings) -> None:
        self.case, self.settings = case, settings
        self.folder = settings.work / "planner" / slug(case)
        self.samples = samples_of(case, SAMPLES)
        self.calibration = calibration_archive(case, self.samples, settings.work)
        most = QUICK_EVALUATED if settings.quick else EVALUATED
        self.evaluation = evaluation_archive(case, settings.work, most)
        self.runs: dict[str, Run] = {}

    def run(self) -> tuple[list[Row], dict[str, Any]]:
        """Rows of all methods, and what else was found."""
        split = self._job("split-plan", "split", timeout=PEER_TIMEOUT, evaluation=str(self.evaluation))
        if split.error is not None:
            return self._rows({}, split.error), {"error": split.error}
        plan = self.runs[PLAN] = self._compile(PLAN, plan_flags(self._seconds))
        second = self._second(plan)
        self._uniform()
        self._peers()
        if has_search():
            self.runs[SEARCH] = self._search(split.result["planning"], plan)
        else:
            self.runs[SEARCH] = Run(0.0, error=f"{SEARCH_PACKAGE} is not installed")
        judged = self._measure(split.result["certification"])
        note = {
            "planning": split.result["planning_samples"],
            "scored": split.result["certification_samples"],
            "samples": self.samples,
            "against": judged.get("against"),
            "clean": judged.get("clean"),
            "error": judged.get("error"),
            "compile": _compile_note(plan, second),
            "search": self.runs[SEARCH].result.get("notes"),
            "exhaustive": self._exhaust(plan) if self.case.name in EXHAUSTIVE_CASES else None,
        }
        return self._rows(judged.get("rows", {}), judged.get("error")), note

    @property
    def _seconds(self) -> float:
        return _seconds(self.settings)

    def _job(self, job: str, name: str, *, timeout: float, memory_mb: int | None = None, **more: Any) -> Run:
        """A job with what all of them get."""
        ours = {
            "model": str(self.case.model),
            "calibration": str(self.calibration),
            "samples": self.samples,
            "folder": str(self.folder / name),
        }
        found = run_job(job, {**ours, **more}, timeout=timeout, memory_limit_mb=memory_mb)
        print(f"  planner {self.case.name}: {name} {found.error or f'{found.seconds:.1f} s'}", flush=True)
        return found

    def _compile(self, name: str, flags: Sequence[str]) -> Run:
        """`greencc compile`; the runs of a case share one cache, which the first finds empty."""
        cache = self.folder / "cache"
        if name == PLAN and cache.is_dir():
            empty(cache)
        return self._job(
            "compile-plan",
            name,
            timeout=COMPILE_TIMEOUT,
            evaluation=str(self.evaluation),
            metric=self.case.metric,
            flags=list(flags),
            target=TARGET,
            effort="quick" if self.settings.quick else "standard",
            cache=str(cache),
        )

    def _second(self, plan: Run) -> Run | None:
        if plan.error is not None:
            return None
        latency = float(plan.result["notes"]["latency_ms"])
        return self._compile("second", second_flags(self._seconds, latency))

    def _uniform(self) -> None:
        """greencc's INT8; where it breaks the limit and is refused for that, what it would have been."""
        flags = ["--precision", "int8"]
        found = self._compile(GREENCC_INT8, flags)
        if found.error is not None:
            found = self._compile(GREENCC_INT8, [*flags, "--max-drop", "50%"])
        self.runs[GREENCC_INT8] = found

    def _peers(self) -> None:
        transformer = is_transformer(self.case.model)
        model = str(peers_model(self.case, self.settings.work))
        for method in METHODS:
            if method.job:
                self.runs[method.key] = self._job(
                    method.job,
                    method.key,
                    timeout=PEER_TIMEOUT,
                    memory_mb=LIMIT_MB,
                    **{"model": model, **self._settings(method, transformer)},
                )

    def _settings(self, method: Method, transformer: bool) -> dict[str, Any]:
        found = method.settings(transformer)
        if "samples" in found:
            found["samples"] = min(found["samples"], self.samples)
        return found

    def _search(self, planning: str, plan: Run) -> Run:
        """In the time of the compile, its start and imports included."""
        seconds = self._seconds if plan.error is not None else plan.seconds
        return self._job(
            "search-plan",
            SEARCH,
            timeout=seconds + SEARCH_SLACK,
            planning=planning,
            metric=self.case.metric,
            max_drop=MAX_DROP,
            trials=QUICK_TRIALS if self.settings.quick else TRIALS,
            seconds=seconds,
        )

    def _measure(self, certification: str) -> dict[str, Any]:
        items = self._items()
        arguments = {
            "model": str(self.case.model),
            "evaluation": certification,
            "metric": self.case.metric,
            "items": items,
            "max_drop": MAX_DROP,
            "quick": self.settings.quick,
        }
        found = run_job("measure-plans", arguments, timeout=QUALITY_TIMEOUT)
        shown = found.error or f"{found.seconds:.0f} s"
        print(f"  planner {self.case.name}: judging {len(items)} variants: {shown}", flush=True)
        return {"error": found.error} if found.error is not None else dict(found.result)

    def _items(self) -> list[dict[str, Any]]:
        """What there is to judge, the original first."""
        paths = {method.key: self._path(method) for method in METHODS}
        return [
            {
                "key": method.key,
                "path": str(paths[method.key]),
                "runtime": method.runtime,
                "target": self.runs[method.key].result.get("target") if method.key in self.runs else None,
                "counted": None if (counted := paths[method.counted or method.key]) is None else str(counted),
            }
            for method in METHODS
            if paths[method.key] is not None
        ]

    def _path(self, method: Method) -> Path | None:
        if not method.job and method.key not in (PLAN, SEARCH, GREENCC_INT8):
            return self.case.model
        found = self.runs[method.key]
        return None if found.error is not None else Path(found.result["artifact"])

    def _rows(self, judged: Mapping[str, Mapping[str, Any]], problem: str | None) -> list[Row]:
        rows = []
        for method in METHODS:
            found = self.runs.get(method.key)
            row: Row = {"case": self.case.name, "method": method.key, "label": method.label}
            row["seconds"] = None if found is None else found.seconds
            row["peak_mb"] = None if found is None else found.peak_mb
            if found is not None and found.error is not None:
                row["error"] = found.error
            else:
                row |= judged.get(method.key, {"error": problem or "not judged"})
            row["within"] = within(row)
            rows.append(row)
        return rows

    def _exhaust(self, plan: Run) -> dict[str, Any]:
        if plan.error is not None:
            return {"error": plan.error}
        found = self._job(
            "exhaust-plan",
            "exhaustive",
            timeout=EXHAUSTIVE_TIMEOUT,
            evaluation=str(self.evaluation),
            metric=self.case.metric,
            max_drop=MAX_DROP,
            plan=plan.result["artifact"],
            plan_target=plan.result["target"],
            most=QUICK_MEMBERS if self.settings.quick else MOST,
            quick=self.settings.quick,
        )
        return {"error": found.error, "seconds": found.seconds, **found.result}


def _compile_note(plan: Run, second: Run | None) -> dict[str, Any]:
    """Times of both compiles, and what the plan is."""
    found: dict[str, Any] = {"first_seconds": plan.seconds, "first_error": plan.error}
    if plan.error is None:
        found |= plan.result["notes"]
    if second is not None:
        found |= {"second_seconds": second.seconds, "second_error": second.error}
        found["second_precision"] = second.result.get("notes", {}).get("precision")
    return found


def empty(folder: Path) -> None:
    """What an earlier run kept must not make this one fast."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def samples_of(case: Case, most: int) -> int:
    """How many calibration samples the tools get."""
    assert case.calibration is not None
    return min(most, open_data(case.calibration, input_specs(load_model(case.model))).count)


def evaluation_archive(case: Case, work: Path, most: int) -> Path:
    """Up to `most` evaluation samples with labels, spread over all of them."""
    path = work / f"{slug(case)}-planner-{most}.npz"
    if not path.is_file():
        np.savez(path, allow_pickle=False, **labelled_arrays(case, take(evaluation_data(case, work), most)))
    return path
