"""`greencc doctor`: what works on this machine, what does not, and how to get it."""

from __future__ import annotations

import click


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
        table = Table(
            box=None, pad_edge=False, show_header=False, title=group, title_justify="left", title_style="bold"
        )
        table.add_column(no_wrap=True, min_width=7)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            if row.group == group:
                detail = Text(row.detail)
                if row.fix:
                    detail.append(f"\n{row.fix}", style="bold")
                table.add_row(marks[row.status], row.name, detail)
        console.print(table)
        console.print()
