"""What `greencc inspect --sensitivity` prints and draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greencc.cli.console import progress_bars, stderr, stdout
from greencc.core.files import atomic_file

if TYPE_CHECKING:
    from rich.console import Console

    from greencc.compiler.inspect import SensitivityRow, SensitivityTable
    from greencc.compiler.options import CompileOptions

_TOP = 20
_BAR = 12
_WIDE = 100
_LONGEST_NAME = 36


def show_sensitivity(
    path: Path,
    options: CompileOptions,
    precisions: Sequence[str],
    *,
    everything: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure the table of the model `path`, print it and draw it."""
    from greencc.compiler.inspect import sensitivity
    from greencc.compiler.options import Precision
    from greencc.report.sensitivity import sensitivity_svg

    wanted = [Precision(item) for item in precisions] or [Precision.INT8, Precision.INT4_WEIGHTS]
    with progress_bars() as progress:
        table = sensitivity(path, options, wanted, progress)
    if plot is not None:
        drawn = sensitivity_svg(
            [row.name for row in table.rows],
            table.precisions,
            [row.errors for row in table.rows],
            f"{path.name}: output error with one layer quantized",
        )
        with atomic_file(plot) as file:
            file.write_text(drawn, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(asdict(table), indent=2))
        return
    _print(stdout(), table, everything)
    for warning in table.warnings:
        stderr().print(f"Warning: {warning}", markup=False)
    if plot is not None:
        stdout().print(f"Plot: {plot}", soft_wrap=True)


def _print(console: Console, table: SensitivityTable, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    ranked = sorted(table.rows, key=lambda row: -row.worst)
    shown = table.rows if everything else ranked[:_TOP]
    largest = max((row.worst for row in table.rows), default=0.0)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    wide = console.width >= _WIDE
    grid.add_column("Layer", overflow="fold", min_width=_LONGEST_NAME if wide else _LONGEST_NAME // 2)
    for precision in table.precisions:
        grid.add_column(f"{precision} alone", justify="right")
        grid.add_column("among all", justify="right")
    if wide:
        grid.add_column("", no_wrap=True)
    grid.add_column("saves us", justify="right")
    grid.add_column("est. uJ", justify="right")
    for row in shown:
        cells = []
        for precision in table.precisions:
            cells += [_number(row.errors.get(precision)), _number(row.among.get(precision))]
        share = row.worst / largest if largest > 0 else 0.0
        bar = [Text("█" * round(_BAR * share), style="red" if share > 0.5 else "yellow")] if wide else []
        grid.add_row(
            Text(row.name),
            *cells,
            *bar,
            "" if row.saved_us is None else f"{row.saved_us:,.1f}",
            _energy(row),
        )
    console.print(grid)
    if not everything and len(ranked) > _TOP:
        console.print(f"... and {len(ranked) - _TOP} less sensitive layers (--all lists them in graph order)")
    console.print(
        f"Error: KL divergence of the class probabilities, or noise over signal power, on {table.samples} held-out "
        "samples. Savings are those of INT8.",
        style="dim",
    )
    if table.energy is not None:
        kind = table.energy
        console.print(
            f"Energy: grade {kind.grade}, {kind.boundary}, per inference; {kind.method}.",
            style="dim",
            markup=False,
        )


def _energy(row: SensitivityRow) -> str:
    """Microjoules with their interval."""
    if row.saved_mj is None or row.saved_mj_low is None or row.saved_mj_high is None:
        return ""
    value, low, high = (1e3 * item for item in (row.saved_mj, row.saved_mj_low, row.saved_mj_high))
    return f"{value:,.3g} [{low:,.3g}, {high:,.3g}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
