"""What `greencc inspect --groups` prints and draws."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greencc.cli.console import progress_bars, stdout
from greencc.core.files import atomic_file

if TYPE_CHECKING:
    from rich.console import Console

    from greencc.compiler.inspect_groups import GroupRow, GroupTable

_TOP = 25
_NODES = 5


def show_groups(path: Path, target: str, *, everything: bool, plot: Path | None, as_json: bool) -> None:
    """Find the prune groups of the model `path`, print and draw them."""
    from greencc.compiler.inspect_groups import prune_groups

    with progress_bars() as progress:
        table = prune_groups(path, target, progress)
    if plot is not None:
        drawn = _drawn(table, f"{path.name}: prune groups and the layers between them")
        with atomic_file(plot) as file:
            file.write_text(drawn, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(asdict(table), indent=2))
        return
    _print(stdout(), table, everything)
    if plot is not None:
        stdout().print(f"Plot: {plot}", soft_wrap=True)


def _drawn(table: GroupTable, title: str) -> str:
    from greencc.report.groups import Arc, GroupBar, groups_svg

    rows = {row.name: index for index, row in enumerate(table.groups)}
    return groups_svg(
        [
            GroupBar(row.name, _what(row), row.params_share, row.macs_share, row.reason)
            for row in table.groups
        ],
        [Arc(rows[link.reads], rows[link.writes], link.layer) for link in table.links],
        title,
    )


def _what(row: GroupRow) -> str:
    return f"{row.channels:,} {row.kind}" + (f" of {row.width:,}" if row.width > 1 else "")


def _print(console: Console, table: GroupTable, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    free = [row for row in table.groups if row.reason is None]
    ranked = sorted(table.groups, key=lambda row: (row.reason is not None, -row.params_share))
    names = {row.name for row in (table.groups if everything else ranked[:_TOP])}
    shown = [row for row in table.groups if row.name in names]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("Group", overflow="fold", min_width=12)
    grid.add_column("Channels", overflow="fold", min_width=12)
    for heading in ("Tensors", "Params each", "MACs each", "Params", "MACs"):
        grid.add_column(heading, justify="right")
    for row in shown:
        grid.add_row(
            Text(row.name),
            _what(row),
            f"{row.tensors:,}",
            f"{row.params:,}",
            "?" if row.macs is None else f"{row.macs:,}",
            f"{row.params_share:.1%}",
            "?" if row.macs_share is None else f"{row.macs_share:.1%}",
            style="" if row.reason is None else "dim",
        )
    if table.groups:
        console.print(grid)
    if len(shown) < len(table.groups):
        console.print(f"... and {len(table.groups) - len(shown)} more groups (--all lists them)")
    console.print(
        f"{len(table.groups)} groups, {len(free)} of them can be cut. A weight counts in the group that it computes "
        "and in the one that it reads, so shares add up to more than 100 %.",
        style="dim",
    )
    for row in shown:
        if row.reason is not None:
            console.print(Text(f"{row.name} must stay: {row.reason}"))
    for operator, nodes in table.unknown.items():
        more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
        found = f"No rule is known for {operator}, where groups end: {', '.join(nodes[:_NODES])}{more}"
        console.print(Text(found))
