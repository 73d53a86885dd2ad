"""Backends side by side: for every model and run time FP32 and INT8, untuned and tuned, on 1 thread and more.

Latency in turns within one process, time to compile and to tune, size, peak memory, start-up in fresh processes, the
largest difference to the graph run node by node, accuracy, what `greencc compile --target cpu` chooses, and how far
each layer is from the roofline. Every model is measured on its own and its results replace what an earlier run found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx

from benchmarks.backends_tools import (
    BATCHES,
    FP32,
    ITEMS,
    PLOT_BATCHES,
    PRECISIONS,
    Item,
    latency_of,
    thread_counts,
    tuning_seconds,
)
from benchmarks.bench_build import calibration_archive, slug
from benchmarks.bench_planner import empty, samples_of
from benchmarks.bench_quantization import evaluation_data
from benchmarks.cases import Case, find_cases
from benchmarks.child import Run, run_job
from benchmarks.results import Row, Settings, load, machine, save, spread
from greencc.calibration import synthetic, take
from greencc.core.data import Array, DataSource
from greencc.core.describe import input_specs
from greencc.core.errors import GreenccError
from greencc.core.model import load_model
from greencc.measure.memory import peak_memory
from greencc.targets import TARGETS, make_target

NAME, ROOFLINE = "backends", "backends_roofline"
SAMPLES = 64
JUDGED, QUICK_JUDGED = 1500, 200
STARTS = 5
FLOATS = ("fp32", "original")
"""Precisions that a report gives to forms without integers."""
BUILD_TIMEOUT, MEASURE_TIMEOUT, CHOICE_TIMEOUT, START_TIMEOUT = 900.0, 1800.0, 900.0, 120.0


def run(settings: Settings) -> None:
    """Measure every case and write `backends.json` and `backends_roofline.json`, case by case."""
    cases = find_cases(settings.models)
    wanted = [case for case in cases if not settings.cases or case.name in settings.cases]
    if settings.quick and not settings.cases:
        wanted = wanted[:2]
    for case in wanted:
        rows, note, roofline = _Bench(case, settings).run()
        # After every model, so that an interrupted run leaves what it has.
        _merge(settings, NAME, case, rows, note)
        _merge(settings, ROOFLINE, case, roofline["rows"], roofline["note"])
    if not settings.cases:
        for name in (NAME, ROOFLINE):
            _keep(settings, name, {case.name for case in wanted})


def _merge(settings: Settings, name: str, case: Case, rows: Sequence[Row], note: Row) -> None:
    """Put the results of a case in the place of its earlier ones."""
    found = load(name) or {"rows": [], "cases": {}}
    kept = [row for row in found["rows"] if row["case"] != case.name]
    _save(settings, name, [*kept, *rows], {**found["cases"], case.name: note})


def _keep(settings: Settings, name: str, names: set[str]) -> None:
    """Forget what a run of all models no longer has."""
    found = load(name)
    if found is not None and set(found["cases"]) - names:
        rows = [row for row in found["rows"] if row["case"] in names]
        _save(settings, name, rows, {key: note for key, note in found["cases"].items() if key in names})


def _save(settings: Settings, name: str, rows: Sequence[Row], cases: Mapping[str, Row]) -> None:
    save(name, settings, rows, cases=cases, samples=SAMPLES, batches=list(BATCHES))


class _Bench:
    """One case."""

    def __init__(self, case: Case, settings: Settings) -> None:
        self.case, self.settings = case, settings
        self.folder = settings.work / "backends" / slug(case)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.threads = thread_counts()
        self.rows: dict[str, Row] = {}
        self.built: dict[str, Row] = {}
        self.note: Row = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": settings.command,
            "quick": settings.quick,
            "load": round(os.getloadavg()[0], 2),
            "cpu": machine()["cpu"],
            "threads": list(self.threads),
            "convolutions": _convolutions(case.model),
            "labelled": case.labelled,
            "data": case.evaluation is not None,
            "tune_seconds": tuning_seconds(settings.quick),
        }

    def run(self) -> tuple[list[Row], Row, Row]:
        """Rows of all artifacts, what else is known of the case, and its rooflines."""
        try:
            self.calibration, self.samples = self._calibration()
            self.data = self._data()
        except GreenccError as error:
            return self._refused(str(error))
        for item in ITEMS:
            self.rows[item.key] = self._row(item)
        self._sizes()
        self._starts()
        self._latencies()
        self._judge()
        self.note["choice"] = self._choices()
        roofline = self._rooflines()
        self.note["load_after"] = round(os.getloadavg()[0], 2)
        return list(self.rows.values()), self.note, roofline

    def _refused(self, reason: str) -> tuple[list[Row], Row, Row]:
        self._say(reason)
        rows = [self._named(item) | {"error": reason} for item in ITEMS]
        return rows, self.note, {"rows": [], "note": {**self.note, "error": reason}}

    def _named(self, item: Item) -> Row:
        return {
            "case": self.case.name,
            "key": item.key,
            "backend": item.backend,
            "precision": item.precision,
            "tuned": item.tuned,
        }

    # --- data ---

    def _calibration(self) -> tuple[str, int]:
        """Calibration data, and how many samples; made-up ones where there are none."""
        if self.case.calibration is None:
            return f"synthetic:{SAMPLES}", SAMPLES
        samples = samples_of(self.case, SAMPLES)
        return str(calibration_archive(self.case, samples, self.settings.work)), samples

    def _data(self) -> Path:
        """What is fed and judged, as `.npz`: no image is decoded while something is measured."""
        most = QUICK_JUDGED if self.settings.quick else JUDGED
        path = self.folder / f"data-{most}.npz"
        if not path.is_file():
            if self.case.evaluation is None:
                inputs = input_specs(load_model(self.case.model))
                source: DataSource = synthetic(inputs, SAMPLES)
            else:
                source = take(evaluation_data(self.case, self.settings.work), most)
            np.savez(path, allow_pickle=False, **_arrays(source))
        return path

    # --- artifacts ---

    def _row(self, item: Item) -> Row:
        row = self._named(item)
        reason = missing(item.backend)
        if reason is None and item.tuned and not self.note["tune_seconds"]:
            reason = "not tuned in this run"
        if reason is not None:
            return row | {"error": reason}
        tuned = [each for each in ITEMS if each.tuned]
        share = self.note["tune_seconds"] / len(tuned) if item.tuned else 0.0
        arguments = {
            "model": str(self.case.model),
            "calibration": self.calibration,
            "evaluation": None if self.case.evaluation is None else str(self.data),
            "samples": self.samples,
            "backend": item.backend,
            "precision": item.precision,
            "threads": list(self.threads),
            "folder": str(self.folder / item.key),
            "tune_seconds": share,
        }
        empty(self.folder / item.key)
        done = run_job("build-backend", arguments, timeout=BUILD_TIMEOUT + 2 * share)
        error = _problem(done)
        self._say(f"{item.key}: {error or f'built in {done.seconds:.1f} s'}")
        if error is not None:
            return row | {"error": error, "job_seconds": done.seconds}
        self.built[item.key] = done.result
        return row | {
            "error": None,
            "job_seconds": done.seconds,
            "job_peak_mb": done.peak_mb,
            "passes_seconds": done.result["passes_seconds"],
            "build_seconds": done.result["build_seconds"],
            "tuning": done.result["tuning"],
        }

    def _asked(self, threads: int) -> list[Row]:
        """What the jobs need to know of each artifact."""
        return [
            {
                "key": item.key,
                "target": f"{item.backend}:threads={threads}",
                "artifact": self.built[item.key]["artifacts"][str(threads)],
                "form": self.built[item.key]["form"],
                "rivals": item.rivals,
                "group": "" if item.tuned else item.precision,
            }
            for item in ITEMS
            if item.key in self.built
        ]

    def _sizes(self) -> None:
        """Bytes on disk, and peak memory of loading and running it in a process of its own."""
        with np.load(self._first_feeds(), allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
        for asked in self._asked(1):
            artifact = Path(asked["artifact"])
            row = self.rows[asked["key"]]
            row["size_bytes"] = sum(
                file.stat().st_size for file in artifact.parent.iterdir() if file.is_file()
            )
            seen = peak_memory(make_target(asked["target"]), artifact, feeds)
            row["memory_mb"], row["memory_reason"] = seen.megabytes, seen.reason

    def _starts(self) -> None:
        """Fresh processes, in turns."""
        times: dict[str, list[Row]] = {}
        feeds = self._first_feeds()
        for repetition in range(2 if self.settings.quick else STARTS):
            asked = self._asked(1)
            for each in asked if repetition % 2 == 0 else reversed(asked):
                row = self.rows[each["key"]]
                if "start_error" in row:
                    continue
                arguments = {"target": each["target"], "artifact": each["artifact"], "feeds": str(feeds)}
                done = run_job(
                    "start-backend", {**arguments, "begun": time.monotonic()}, timeout=START_TIMEOUT
                )
                if error := _problem(done):
                    row["start_error"] = error
                else:
                    times.setdefault(each["key"], []).append(done.result)
        for key, found in times.items():
            parts = ("interpreter", "imports", "load", "first_run", "total")
            self.rows[key]["start"] = {part: spread([one[part] for one in found]) for part in parts}

    def _first_feeds(self) -> Path:
        """The inputs of one run."""
        path = self.folder / "first.npz"
        size = _fixed_batch(self.case.model) or 1
        with np.load(self.data, allow_pickle=False) as archive:
            first = {name: archive[name][:size] for name in archive.files if name != "labels"}
        np.savez(path, allow_pickle=False, **first)
        return path

    # --- measurements ---

    def _latencies(self) -> None:
        for threads in self.threads:
            asked = self._asked(threads)
            if not asked:
                return
            arguments = {
                "items": asked,
                "data": str(self.data),
                "threads": threads,
                "batches": list(BATCHES if self.settings.quick else PLOT_BATCHES),
                "table_batches": list(BATCHES),
                "quick": self.settings.quick,
            }
            done = run_job("measure-backends", arguments, timeout=MEASURE_TIMEOUT)
            error = _problem(done)
            for each in asked:
                row = self.rows[each["key"]]
                reason = error or done.result["errors"].get(each["key"])
                if reason is not None:
                    row.setdefault("latency_errors", {})[str(threads)] = reason
                else:
                    row.setdefault("latency", {})[str(threads)] = done.result["latency"][each["key"]]
            if error is None:
                self.note.setdefault("conditions", {})[str(threads)] = done.result["conditions"]
            self._say(f"{threads} thread(s): {error or self._shown(threads)}")

    def _shown(self, threads: int) -> str:
        points = {key: latency_of(row, threads, 1) for key, row in self.rows.items()}
        return ", ".join(f"{key} {point['median']:.3g} ms" for key, point in points.items() if point)

    def _judge(self) -> None:
        arguments = {
            "model": str(self.case.model),
            "items": self._asked(max(self.threads)),
            "data": str(self.data),
            "metric": self.case.metric,
            "labelled": self.case.labelled,
            "synthetic": self.case.evaluation is None,
        }
        done = run_job("judge-backends", arguments, timeout=MEASURE_TIMEOUT)
        error = _problem(done)
        for key in self.built:
            found = {"error": error} if error is not None else done.result["rows"][key]
            self.rows[key] |= {f"judge_{name}" if name == "error" else name: found[name] for name in found}

    def _choices(self) -> list[Row]:
        """What the measured choice picks, and its artifact's latency against the fastest single backend's."""
        found = []
        for precision in PRECISIONS:
            for threads in self.threads[:1] if self.settings.quick else self.threads:
                arguments = {
                    "model": str(self.case.model),
                    "calibration": self.calibration,
                    "evaluation": None if self.case.evaluation is None else str(self.data),
                    "samples": self.samples,
                    "precision": precision,
                    "target": f"cpu:threads={threads}",
                    "folder": str(self.folder / f"choice-{precision}-{threads}"),
                }
                done = run_job("choose-backend", arguments, timeout=CHOICE_TIMEOUT)
                row: Row = {"precision": precision, "threads": threads, "error": _problem(done)}
                if row["error"] is None:
                    key = Item(done.result["backend"], precision).key
                    # A compile that went back to floats has no counterpart among the INT8 artifacts.
                    same = (done.result["form"] in FLOATS) == (precision == FP32)
                    point = latency_of(self.rows.get(key), threads, 1) if same else None
                    row |= {name: done.result[name] for name in ("backend", "form")}
                    row["seconds"] = done.seconds
                    row |= {
                        "best": point and point["best"],
                        "ratio": _inverse(point and point["speedups"].get("best")),
                    }
                self._say(f"choice {precision}, {threads} thread(s): {row['error'] or row['backend']}")
                found.append(row)
        return found

    def _rooflines(self) -> Row:
        done = run_job(
            "profile-backends", {"items": self._asked(1), "data": str(self.data)}, timeout=MEASURE_TIMEOUT
        )
        error = _problem(done)
        note = {name: self.note[name] for name in ("created", "command", "quick", "load", "cpu")}
        if error is not None:
            self._say(f"rooflines: {error}")
            return {"rows": [], "note": {**note, "error": error}}
        rows = [
            self._named(item) | done.result["rows"][item.key]
            for item in ITEMS
            if item.key in done.result["rows"]
        ]
        return {"rows": rows, "note": {**note, "error": None, "peaks": done.result["peaks"]}}

    def _say(self, text: str) -> None:
        print(f"  backends {self.case.name}: {text}", flush=True)


def missing(backend: str) -> str | None:
    """Why a backend cannot be measured here, or None."""
    if backend not in {kind.name for kind in TARGETS}:
        return f"this version has no target {backend}"
    return make_target(backend).missing()


def _problem(done: Run) -> str | None:
    """Why a job has no result: it ended badly, or was refused."""
    error: str | None = done.error or done.result.get("error")
    return error


def _inverse(ratio: Row | None) -> Row | None:
    """A speed-up as a ratio of times."""
    if ratio is None:
        return None
    low, high = ratio["low"], ratio["high"]
    return {"value": 1 / ratio["value"], "low": high and 1 / high, "high": low and 1 / low}


def _convolutions(model: Path) -> int:
    nodes = onnx.load(model, load_external_data=False).graph.node
    return sum(node.op_type in ("Conv", "ConvTranspose") for node in nodes)


def _fixed_batch(model: Path) -> int | None:
    inputs = input_specs(load_model(model))
    return inputs[0].batch if inputs else None


def _arrays(source: DataSource) -> dict[str, Array]:
    """Samples, and labels where there are true ones."""
    parts: dict[str, list[Array]] = {}
    for batch in source.batches(64):
        arrays = batch.feeds if batch.labels is None else {**batch.feeds, "labels": batch.labels}
        for name, values in arrays.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}
