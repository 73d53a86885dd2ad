"""`greencc targets`: what can be compiled for, and what its kernels can do here."""

from __future__ import annotations

import json

import click

# A longer list of operators is counted; --json has it whole.
_MOST = 16


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the targets, whether they run on this machine, and the facts passes are steered by."""
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout
    from greencc.targets import TARGETS

    rows = []
    for kind in TARGETS:
        target = kind()
        missing = target.missing()
        capabilities = None if missing else target.capabilities()
        rows.append((kind, missing, capabilities))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "name": kind.name,
                        "summary": kind.summary,
                        "missing": missing,
                        "int8": capabilities.int8.reason if capabilities and capabilities.int8 else None,
                        "float16": sorted(capabilities.float16) if capabilities else [],
                        "bfloat16": sorted(capabilities.bfloat16) if capabilities else [],
                        "notes": list(capabilities.notes) if capabilities else [],
                    }
                    for kind, missing, capabilities in rows
                ],
                indent=2,
            )
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("Target", no_wrap=True)
    table.add_column("Here", no_wrap=True)
    table.add_column("What it is, and what its kernels can do")
    for kind, missing, capabilities in rows:
        lines = [kind.summary]
        if missing:
            lines.append(missing)
        if capabilities:
            lines.append(
                f"INT8: {capabilities.int8.reason if capabilities.int8 else 'no kernels worth using'}"
            )
            lines.append(f"FP16: {_listed(capabilities.float16)}; BF16: {_listed(capabilities.bfloat16)}")
            lines += capabilities.notes
        table.add_row(kind.name, "no" if missing else "yes", Text("\n".join(lines)))
    stdout().print(table)


def _listed(ops: frozenset[str]) -> str:
    if len(ops) > _MOST:
        return f"{len(ops)} operators"
    return ", ".join(sorted(ops)) if ops else "no kernels worth using"
