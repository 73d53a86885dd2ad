"""`greencc passes`: what can stand in a recipe."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from greencc.core.passes import Pass


@click.command("passes")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the passes, or show one with its options and defaults.

    The options are the keys of a [[pass]] table in a recipe file, and of a pass in
    'greencc compile --passes', where a bare value sets the primary option.
    """
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout
    from greencc.core.errors import UsageError, did_you_mean
    from greencc.core.pass_list import ALIASES
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
    if ALIASES.get(name, name) not in by_name:
        raise UsageError(f"unknown pass {name!r}", hint=did_you_mean(name, [*by_name, *ALIASES]))
    kind = by_name[ALIASES.get(name, name)]
    console.print(f"[bold]{kind.name}[/bold]: {kind.summary}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Option", "Type", "Default", ""):
        table.add_column(heading)
    defaults = kind()
    for option in fields(kind):
        value = getattr(defaults, option.name)
        table.add_row(
            option.name, _type_name(value), _shown(value), "primary" if option.name == kind.primary else ""
        )
    console.print(table if table.rows else "no options")
    console.print()
    for line in _examples(defaults):
        console.print(Text(line), soft_wrap=True)


def _examples(step: Pass) -> list[str]:
    """How the pass is written in a list of passes."""
    from greencc.core.pass_list import ALIASES, format_option

    lines = [f"Short name: {alias}" for alias, full in ALIASES.items() if full == step.name]
    values = {option.name: format_option(getattr(step, option.name)) for option in fields(step)}
    # What is empty by default makes no example.
    parts = [f"{name}={value}" for name, value in values.items() if value and name != step.primary]
    if step.primary is not None and values[step.primary]:
        lines.append(f"Example:    --passes {step.name}:{values[step.primary]}")
    spelled = [f"{step.primary}={values[step.primary]}"] if step.primary and values[step.primary] else []
    lines.append(f"Example:    --passes {':'.join((step.name, *spelled, *parts[:1]))}")
    return lines


def _type_name(value: Any) -> str:
    if isinstance(value, Enum):
        return " | ".join(str(member.value) for member in type(value))
    return "list of text" if isinstance(value, tuple) else type(value).__name__


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return str(list(value)) if isinstance(value, tuple) else repr(value)
