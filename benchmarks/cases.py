"""The models that benchmarks run on: the shipped example, and those of a folder given with `--models`.

A models folder holds one folder per case with `model.onnx` and `case.toml` (name, metric), and where there are
data `calibration.npz` and `eval.npz`, or `calibration/`, `images/` and `labels.csv` with a `[preprocess]` table.
Other `.onnx` files one level down are models without data.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "fashion_mnist"
METRICS = "benchmarks.metrics"


@dataclass(frozen=True)
class Case:
    """A model and its data. `extra` are more metrics to certify, each as `(name, --metric value)`."""

    name: str
    model: Path
    calibration: Path | None = None
    evaluation: Path | None = None
    labels: Path | None = None
    metric: str | None = None
    truth: Path | None = None
    extra: tuple[tuple[str, str], ...] = field(default=())

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured, rather than fidelity to the original alone."""
        return self.evaluation is not None and (self.metric is not None or self.labels is not None)


def example() -> Case:
    """The shipped classifier."""
    return Case(
        "fashion-mnist (shipped)",
        EXAMPLE / "model.onnx",
        EXAMPLE / "calibration.npz",
        EXAMPLE / "eval.npz",
        metric="top1",
    )


def find_cases(models: Path | None) -> list[Case]:
    """The shipped example, then every model of the folder in the order of their names."""
    found = [example()]
    if models is None:
        return found
    folders = sorted(path for path in models.iterdir() if path.is_dir())
    plain: list[Case] = []
    for folder in folders:
        if (folder / "model.onnx").is_file():
            found.append(read_case(folder))
        else:
            plain += [Case(f"{folder.name}/{file.stem}", file) for file in sorted(folder.glob("*.onnx"))]
    return found + plain


def read_case(folder: Path) -> Case:
    """Read one case folder."""
    table: dict[str, Any] = {}
    if (folder / "case.toml").is_file():
        table = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    metric, extra = _metric(str(table.get("metric", "none")))
    labels = folder / "labels.csv"
    truth = folder / "texts.json"
    return Case(
        name=str(table.get("name", folder.name)),
        model=folder / "model.onnx",
        calibration=_first(folder / "calibration.npz", folder / "calibration"),
        evaluation=_first(folder / "eval.npz", folder / "images"),
        labels=labels if labels.is_file() else None,
        metric=metric,
        truth=truth if truth.is_file() else None,
        extra=extra,
    )


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _metric(name: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """How `case.toml` calls a metric -> the `--metric` to compile with, and others to report."""
    if name == "top1":
        return "top1", ()
    if name == "auc":
        # Decisions can be certified sample by sample; the area under the curve is reported beside them.
        return "top1", (("AUC", f"{METRICS}:auc"),)
    if name == "ctc-line-accuracy":
        return f"{METRICS}:ctc_line_accuracy", ()
    return None, ()
