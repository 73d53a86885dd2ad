"""`greencc lint`: what TensorRT makes of a model, found in the graph alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greencc.core.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from greencc.targets._tensorrt.lint import Fault
    from greencc.targets._tensorrt.spec import Subject

_DEFAULT = "jetson"


@click.command("lint")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    default=None,
    help="Such as tensorrt:10.3, tensorrt:version=10.3,gpu=sm87, jetson:jetson-nano, tensorrt-rtx. "
    "[default: that of the bundle, else jetson]",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: Path, target: str | None, strict: bool, as_json: bool) -> int:
    """Check PATH, an ONNX model or a bundle, against what TensorRT reads and computes.

    It needs neither TensorRT nor a GPU. Errors are what TensorRT refuses or silently computes
    otherwise, warnings what is slower or not what was meant. With errors the exit code is 4,
    otherwise 0; --strict makes it 4 with warnings, too.
    """
    import json
    from dataclasses import asdict

    from greencc.bundle import load
    from greencc.cli.console import stdout
    from greencc.core.graph import ensure_names
    from greencc.core.loading import input_defaults
    from greencc.core.model import load_model
    from greencc.targets._tensorrt.lint import Severity, lint
    from greencc.targets._tensorrt.spec import is_tensorrt, machine_of

    # A mistyped target should be found out before a bundle is read.
    subject = None if target is None else machine_of(target)
    file, target = path, target or _DEFAULT
    if path.is_dir():
        with load(path) as bundle:
            file = bundle.graph
            if subject is None and is_tensorrt(bundle.manifest.target):
                target = bundle.manifest.target
    subject = subject or machine_of(target)
    model = load_model(file)
    ensure_names(model)
    faults = lint(model, subject.machine, dla=subject.dla, gpu=subject.gpu, defaults=input_defaults(file))
    errors = sum(fault.severity is Severity.ERROR for fault in faults)
    if as_json:
        rows = [
            {**asdict(fault), "rule": fault.rule.value, "severity": fault.severity.value} for fault in faults
        ]
        click.echo(
            json.dumps(
                {
                    "path": str(file),
                    "target": target,
                    "checked_against": subject.title,
                    "dla": subject.dla,
                    "gpu_known": subject.gpu,
                    "errors": errors,
                    "warnings": len(faults) - errors,
                    "faults": rows,
                },
                indent=2,
            )
        )
    else:
        _print(stdout(), file, subject, faults, errors)
    failed = errors or (strict and faults)
    return int(ExitCode.BAD_INPUT if failed else ExitCode.OK)


def _print(console: Console, path: Path, subject: Subject, faults: Sequence[Fault], errors: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.targets._tensorrt.lint import Severity

    where = ", for the DLA" if subject.dla else ""
    console.print(f"{path}, checked against {subject.title}{where}", markup=False, soft_wrap=True)
    if not subject.gpu:
        console.print(
            "Rules that depend on the GPU were left out: name it, e.g. gpu=sm87", style="dim", markup=False
        )
    if faults:
        console.print()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("Severity", "Rule"):
            table.add_column(heading, no_wrap=True)
        table.add_column("Node", overflow="fold", min_width=10)
        table.add_column("What happens, and the remedy", overflow="fold", min_width=40)
        for alike in _grouped(faults):
            fault = alike[0]
            more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            table.add_row(
                Text(fault.severity.value, style="red" if fault.severity is Severity.ERROR else "yellow"),
                fault.rule.value,
                Text((fault.node or "the model") + more),
                Text(f"{fault.message}. Remedy: {fault.hint}"),
            )
        console.print(table)
        console.print()
    warnings = len(faults) - errors
    by_rule = Counter(fault.rule.value for fault in faults)
    rules = "" if not faults else f" ({', '.join(f'{count} {rule}' for rule, count in by_rule.items())})"
    console.print(
        f"{_count(errors, 'error')}, {_count(warnings, 'warning')}{rules}", markup=False, soft_wrap=True
    )


def _grouped(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Faults that differ in their node alone, in order of the first; JSON has them one by one."""
    found: dict[tuple[object, ...], list[Fault]] = {}
    for fault in faults:
        found.setdefault((fault.severity, fault.rule, fault.message, fault.hint), []).append(fault)
    return list(found.values())


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
