"""`greencc compile` as a user runs it: the same command for every model, its JSON report back."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.bench_build import slug
from benchmarks.cases import Case
from benchmarks.child import execute, first_error
from benchmarks.metrics import encode_lines

TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Compiled:
    """One `greencc compile`: its exit code, its report where there is one, its message where there is none."""

    exit_code: int
    seconds: float
    bundle: Path
    report: dict[str, Any] | None = None
    message: str | None = None


def compile_case(case: Case, work: Path, effort: str) -> Compiled:
    """Compile a case with its data, if it has any; a bundle that is there already is used again."""
    bundle = bundle_path(case, work)
    answer = bundle.with_suffix(".json")
    command = [*arguments(case, work), "--effort", effort]
    if answer.is_file():
        kept = json.loads(answer.read_text(encoding="utf-8"))
        if kept["command"] == command:
            report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
            return Compiled(0, kept["seconds"], bundle, report)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    seconds, finished = execute(
        [sys.executable, "-m", "greencc", *command, "-o", str(bundle), "--force", "--json"], TIMEOUT_SECONDS
    )
    if finished is None:
        return Compiled(-1, seconds, bundle, message=f"took more than {seconds:g} s")
    if finished.returncode != 0:
        return Compiled(finished.returncode, seconds, bundle, message=first_error(finished.stderr))
    answer.write_text(json.dumps({"command": command, "seconds": seconds}), encoding="utf-8")
    return Compiled(0, seconds, bundle, json.loads(finished.stdout))


def bundle_path(case: Case, work: Path) -> Path:
    return work / "bundles" / f"{slug(case)}.greencc"


def arguments(case: Case, work: Path) -> list[str]:
    """The command line of a case: model, data where there are any, the metric where top-1 is not meant."""
    found = ["compile", str(case.model), "--target", "cpu", "--max-drop", "1%", "--confidence", "95%"]
    if case.calibration is not None:
        found += ["--calibration", str(case.calibration)]
    if case.evaluation is not None:
        found += ["--eval", str(case.evaluation)]
    labels = true_labels(case, work)
    if labels is not None:
        found += ["--labels", str(labels)]
    if case.metric is not None and case.metric != "top1":
        found += ["--metric", case.metric]
    return found


def true_labels(case: Case, work: Path) -> Path | None:
    """The label file of a case. True texts become class ids, by the characters that the model's metadata lists."""
    if case.truth is None:
        return case.labels
    path = work / f"{slug(case)}-labels.npy"
    if not path.is_file():
        metadata = {item.key: item.value for item in onnx.load(case.model).metadata_props}
        texts = json.loads(case.truth.read_text(encoding="utf-8"))
        assert case.evaluation is not None
        with np.load(case.evaluation) as archive:
            count = len(archive[archive.files[0]])
        np.save(path, encode_lines(texts[:count], metadata["character"].split("\n")))
    return path
