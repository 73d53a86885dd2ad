"""`greencc tune`: faster kernels, found by measuring and kept for compiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greencc.cli.types import SECONDS

if TYPE_CHECKING:
    from greencc.core.tuning import TuningReport
    from greencc.targets._tvm.database import Database
    from greencc.targets._tvm.records import Record

_FAILED_SHOWN = 5
_KEY_DIGITS = 6


@click.command("tune")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--target", "-t", default="tvm-cpu", show_default=True, help="Target, e.g. tvm-cpu or tvm-cpu:threads=1."
)
@click.option("--time", "seconds", type=SECONDS, default="10m", show_default=True, help="Longest time.")
@click.option("--list", "listing", is_flag=True, help="Show the schedules that are kept.")
@click.option("--export", "exported", type=click.Path(path_type=Path), help="Write them to a new file.")
@click.option("--import", "imported", type=click.Path(path_type=Path), help="Add those of a file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path | None,
    target: str,
    seconds: float,
    listing: bool,
    exported: Path | None,
    imported: Path | None,
    as_json: bool,
) -> None:
    """Find faster kernels for MODEL (ONNX) by measuring them on this machine.

    Schedules are kept in ~/.cache/greencc, or in $GREENCC_CACHE, by kernel, processor, threads and
    versions: every model with the same kernel gains, at its next compile. A run that was
    interrupted goes on where it ended.
    """
    from greencc.core.errors import UsageError

    asked = (model is not None, listing, exported is not None, imported is not None)
    if sum(asked) != 1:
        raise UsageError(
            "give one of MODEL, --list, --export and --import", hint="greencc tune model.onnx --time 10m"
        )
    if model is not None:
        _tune(model, target, seconds, as_json)
    elif exported is not None:
        _export(exported, as_json)
    elif imported is not None:
        _import(imported, as_json)
    else:
        _list(as_json)


def _tune(model: Path, target: str, seconds: float, as_json: bool) -> None:
    from dataclasses import asdict

    from greencc.cli.console import progress_bars
    from greencc.compiler.tune_job import tune_model

    with progress_bars() as progress:
        found = tune_model(model, target, seconds, progress=progress)
    for warning in found.warnings:
        _warn(warning)
    _say(as_json, lambda: asdict(found) | {"gain": found.gain}, lambda: _summary(found))


def _summary(found: TuningReport) -> str:
    lines = [
        f"{found.kernels} kernels, {found.trials} schedules tried in {found.seconds:.0f} s",
        f"{found.faster} kernels have a faster schedule than without tuning; all of them together, each measured "
        f"alone: {found.default_us / 1e3:.4g} ms before, {found.tuned_us / 1e3:.4g} ms now ({found.gain:.2f}x)",
    ]
    if found.complete < found.kernels:
        lines.append(
            f"{found.kernels - found.complete} kernels have schedules left to try: another run goes on there"
        )
    lines += [f"not used: {text}" for text in found.failed[:_FAILED_SHOWN]]
    if len(found.failed) > _FAILED_SHOWN:
        lines.append(f"not used: {len(found.failed) - _FAILED_SHOWN} more (--json shows all)")
    return "\n".join(lines)


def _list(as_json: bool) -> None:
    records = _database().records()
    if as_json or not records:
        _say(as_json, lambda: [_row(each) for each in records], lambda: "no schedules are kept yet")
        return
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout

    out = stdout()
    for place in dict.fromkeys(each.place for each in records):
        members = [each for each in records if each.place == place]
        names = Counter(each.label for each in members)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("Kernel", overflow="fold")
        for heading in ("Default", "Tuned", "Gain", "Tried"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in members:
            table.add_row(
                Text(
                    each.label if names[each.label] == 1 else f"{each.label} [{each.workload[-_KEY_DIGITS:]}]"
                ),
                f"{each.best_us.value * each.gain.value:.4g} µs",
                f"{each.best_us.value:.4g} µs",
                f"{each.gain.value:.2f}x",
                f"{each.trials} of {each.space}",
            )
        out.print(place.text, style="dim", markup=False, soft_wrap=True)
        out.print(table)


def _export(path: Path, as_json: bool) -> None:
    from greencc.core.errors import InputError

    if path.exists():
        raise InputError(f"{path} already exists", hint="choose another name")
    count = _database().export(path)
    _say(as_json, lambda: {"path": str(path), "schedules": count}, lambda: f"{count} schedules in {path}")


def _import(path: Path, as_json: bool) -> None:
    records, new = _database().take(path)
    places = sorted({each.place.text for each in records})
    _say(
        as_json,
        lambda: {"schedules": len(records), "new": new, "places": places},
        lambda: "\n".join([f"{len(records)} schedules in {path}, {new} of them new, for:", *places]),
    )


def _database() -> Database:
    from greencc.core.errors import UsageError
    from greencc.targets._tvm.database import Database, default_path

    path = default_path()
    if path is None:
        raise UsageError("$GREENCC_CACHE is set to nothing, so no schedules are kept")
    return Database(path, _warn)


def _warn(message: str) -> None:
    click.echo(f"greencc: {message}", err=True)


def _row(record: Record) -> dict[str, Any]:
    from dataclasses import asdict, replace

    facts = asdict(replace(record, out={}))
    facts["out"] = [[asdict(schedule), reason] for schedule, reason in record.out.items()]
    return facts | {"trials": record.trials, "complete": record.complete}


def _say(as_json: bool, data: Callable[[], Any], text: Callable[[], str]) -> None:
    import json

    click.echo(json.dumps(data(), indent=2) if as_json else text())
