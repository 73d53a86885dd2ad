"""What `greencc doctor` reports, as plain data."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from greencc.core.engine import Target
from greencc.measure.conditions import record_conditions
from greencc.meters import probe
from greencc.targets import TARGETS

Status = Literal["ok", "missing", "note"]

_EXTRAS = (
    ("images", "PIL", "folders of images as calibration and evaluation data"),
    ("finetune", "torch", "'greencc recover', and scores from gradients for pruning"),
    ("mqtt", "paho", "energy meters behind an MQTT broker"),
    ("parquet", "pyarrow", "traces of 'greencc measure' as Parquet"),
    ("rtx", "tensorrt_rtx", "TensorRT's parser without a GPU, and engines for RTX GPUs built ahead of time"),
    ("zeus", "zeus", "a cross-check of energy meters with Zeus"),
)


_EXTERNAL = (
    "outside the device, grade A: wall plugs (Shelly), HTTP, MQTT, PTDaemon, recordings; "
    "greencc measure --meter SPEC, such as shelly:http://192.168.1.5 (docs/energy.md)"
)


@dataclass(frozen=True)
class Row:
    """One line: `fix` says what is wrong and what to do about it, where there is something to do."""

    group: str
    name: str
    status: Status
    detail: str
    fix: str | None = None


def diagnose() -> list[Row]:
    """Look at targets, meters, extras and conditions of this machine."""
    rows: list[Row] = []
    for kind in TARGETS:
        rows += _target(kind())
    for meter in probe():
        what = "measures" if meter.grade.measured else "estimates"
        detail = f"{what} {meter.boundary}, grade {meter.grade.name} ({meter.grade.value})"
        if meter.ok:
            rows.append(Row("Energy meters", meter.name, "ok", detail))
        else:
            detail = f"{meter.boundary}, grade {meter.grade.name}"
            rows.append(Row("Energy meters", meter.name, "missing", detail, meter.reason))
    rows.append(Row("Energy meters", "external", "note", _EXTERNAL))
    for extra, module, purpose in _EXTRAS:
        there = importlib.util.find_spec(module) is not None
        fix = None if there else f"pip install 'greencc[{extra}]'"
        rows.append(Row("Extras", extra, "ok" if there else "missing", purpose, fix))
    conditions = record_conditions(threads=1)
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in conditions.facts.items() if name != "threads"
    )
    rows.append(Row("Measuring conditions", "now", "note", facts))
    rows += [Row("Measuring conditions", "warning", "note", text) for text in conditions.warnings]
    return rows


def _target(target: Target) -> list[Row]:
    missing = target.missing()
    if missing:
        return [Row("Targets", target.name, "missing", target.summary, missing)]
    capabilities = target.capabilities()
    versions = ", ".join(f"{name} {version}" for name, version in target.versions().items())
    device = target.device()
    cores = device.facts.get("physical_cores")
    int8 = capabilities.int8.reason if capabilities.int8 else "no integer kernels worth using"
    rows = [
        Row("Targets", target.name, "ok", f"{target.summary}; {versions}"),
        Row("Targets", "device", "note", device.name + (f", {cores} cores" if cores is not None else "")),
        Row("Targets", "INT8", "note", int8),
    ]
    return rows + [Row("Targets", "", "note", note) for note in capabilities.notes]
