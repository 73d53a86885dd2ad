"""`greencc doctor`: what works on this machine, what does not, and how to get it."""

from __future__ import annotations

import click

_MARK = 9


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Check targets, energy meters, optional extras and measuring conditions on this machine."""
    import json
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout
    from greencc.compiler.doctor import diagnose

    rows = diagnose()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    console = stdout()
    marks = {
        "ok": Text("ok", style="green"),
        "missing": Text("missing", style="yellow"),
        "note": Text(""),
    }
    for group in dict.fromkeys(row.group for row in rows):
        console.print(Text(group, style="bold"))
        members = [row for row in rows if row.group == group]
        width = max(len(row.name) for row in members)
        for row in members:
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(no_wrap=True, min_width=_MARK - 2)
            table.add_column(no_wrap=True, min_width=width)
            table.add_column(overflow="fold")
            table.add_row(marks[row.status], row.name, Text(row.detail))
            console.print(table)
            if row.fix:
                # Unwrapped: it is there to be copied, udev rules and all.
                console.print(Text(" " * _MARK + row.fix, style="bold"), soft_wrap=True)
        console.print()
