"""`greencc passes`: what can stand in a recipe."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any

import click


@click.command("passes")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the passes, or show one with its options and defaults.

    The options are the keys of a [[pass]] table in a recipe file.
    """
    from rich.table import Table

    from greencc.cli.console import stdout
    from greencc.core.errors import UsageError, did_you_mean
    from greencc.passes import PASSES

    console = stdout()
    if name is None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("Pass", no_wrap=True)
        table.add_column("Preserves outputs")
        table.add_column("What it does")
        for kind in PASSES:
            table.add_row(kind.name, "no" if kind.lossy else "yes", kind.summary)
        console.print(table)
        return
    by_name = {kind.name: kind for kind in PASSES}
    if name not in by_name:
        raise UsageError(f"unknown pass {name!r}", hint=did_you_mean(name, by_name))
    kind = by_name[name]
    console.print(f"[bold]{kind.name}[/bold]: {kind.summary}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Option", "Type", "Default"):
        table.add_column(heading)
    defaults = kind()
    for option in fields(kind):
        table.add_row(
            option.name, _type_name(getattr(defaults, option.name)), _shown(getattr(defaults, option.name))
        )
    console.print(table if table.rows else "no options")


def _type_name(value: Any) -> str:
    if isinstance(value, Enum):
        return " | ".join(str(member.value) for member in type(value))
    return "list of text" if isinstance(value, tuple) else type(value).__name__


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return str(list(value)) if isinstance(value, tuple) else repr(value)
