"""`greencc cache`: what compiles keep for later ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from greencc.cli.types import BYTES, SECONDS

if TYPE_CHECKING:
    from greencc.core.cache_upkeep import StoredEntry

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHOWN = 20


@click.group("cache")
def command() -> None:
    """List, verify and prune what compiles keep for later ones.

    Statistics, rounding decisions, error tables and measured times lie in ~/.cache/greencc, or in
    $GREENCC_CACHE. All of it can be removed at any time: it costs the next compile time, nothing else.
    """


def _json(function: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


@command.command("list")
@_json
def list_entries(as_json: bool) -> None:
    """Show what is kept, by kind: number, bytes, age, devices and versions of greencc."""
    import json

    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout
    from greencc.core.cache_upkeep import stored_entries

    folder = _folder()
    entries = [] if folder is None else stored_entries(folder)
    rows = [_kind_row(kind, entries) for kind in dict.fromkeys(entry.kind for entry in entries)]
    if as_json:
        found = {
            "folder": None if folder is None else str(folder),
            "bytes": sum(entry.size for entry in entries),
            "kinds": rows,
            "entries": [_entry_row(entry) for entry in entries],
        }
        click.echo(json.dumps(found, indent=2))
        return
    if folder is None or not entries:
        click.echo(_nothing(folder))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Kind", no_wrap=True)
    for heading in ("Entries", "Size", "Oldest", "Newest"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Where measured, and by which greencc", overflow="fold")
    for row in rows:
        origin = Text("; ".join((*row["devices"], *(f"greencc {version}" for version in row["versions"]))))
        for state in ("other version", "damaged", "unreadable"):
            if row["states"].get(state):
                origin.append(f"\n{row['states'][state]} {state}: not used", style="yellow")
        counts = (f"{row['entries']:,}", _bytes(row["bytes"]), _age(row["oldest"]), _age(row["newest"]))
        table.add_row(Text(row["kind"]), *counts, origin)
    out = stdout()
    out.print(table)
    total = sum(entry.size for entry in entries)
    out.print(
        f"{len(entries):,} entries, {_bytes(total)} in {folder}", style="dim", markup=False, soft_wrap=True
    )


@command.command("verify")
@click.option("--remove", "removing", is_flag=True, help="Remove the damaged entries.")
@_json
def verify(removing: bool, as_json: bool) -> int:
    """Check the hash of every entry.

    Exits with 4 where entries are damaged or cannot be read, and with 0 once --remove has removed them. A compile
    ignores such entries: they cost time, nothing else.
    """
    import json

    from greencc.cli.console import progress_bars
    from greencc.core.cache_upkeep import State, remove, stored_entries, verified
    from greencc.core.errors import ExitCode

    folder = _folder()
    entries = [] if folder is None else stored_entries(folder)
    with progress_bars() as progress:
        looked = [verified(entry) for entry in progress(entries, label="Verifying", total=len(entries))]
    checked = [entry for entry in looked if entry is not None]
    bad = [entry for entry in checked if entry.state in (State.DAMAGED, State.UNREADABLE)]
    others = sum(entry.state is State.OTHER_VERSION for entry in checked)
    if removing:
        remove(bad)
    if as_json:
        found = {
            "folder": None if folder is None else str(folder),
            "checked": len(checked),
            "other_versions": others,
            "bad": [_entry_row(entry) for entry in bad],
            "removed": len(bad) if removing else 0,
        }
        click.echo(json.dumps(found, indent=2))
    elif not checked:
        click.echo(_nothing(folder))
    else:
        for entry in bad:
            click.echo(f"{entry.state.value}: {entry.path}")
        click.echo(f"{len(checked):,} entries checked: {_verdict(len(bad), others, removing)}")
    return int(ExitCode.BAD_INPUT if bad and not removing else ExitCode.OK)


@command.command("prune")
@click.option("--older-than", type=SECONDS, help="Entries that were not used for so long: 30d, 12h.")
@click.option(
    "--larger-than", type=BYTES, help="The least recently used, until the rest fits: 500MB, 2GB (10^6, 10^9)."
)
@click.option("--kind", help="Only entries of this kind; alone: all of them.")
@click.option("--all", "everything", is_flag=True, help="All entries.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@_json
def prune(
    older_than: float | None,
    larger_than: int | None,
    kind: str | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove entries."""
    import json
    import time

    from greencc.core.cache import remove_abandoned
    from greencc.core.cache_upkeep import Limits, chosen, remove, stored_entries

    limits = Limits(kind, older_than, larger_than, everything)
    folder = _folder()
    entries = [] if folder is None else stored_entries(folder)
    gone = chosen(entries, limits, time.time()) if entries else []
    if not dry_run and folder is not None:
        remove(gone)
        remove_abandoned(folder)
    kept = sum(entry.size for entry in entries) - sum(entry.size for entry in gone)
    if as_json:
        found = {
            "folder": None if folder is None else str(folder),
            "dry_run": dry_run,
            "removed": [_entry_row(entry) for entry in gone],
            "kept_entries": len(entries) - len(gone),
            "kept_bytes": kept,
        }
        click.echo(json.dumps(found, indent=2))
        return
    if not entries:
        click.echo(_nothing(folder))
        return
    if dry_run:
        for entry in gone[:_SHOWN]:
            label = "" if entry.header is None else entry.header.label
            used = f"used {_age(entry.used)} ago"
            click.echo("  ".join(filter(None, (entry.kind, _bytes(entry.size), used, label))))
        if len(gone) > _SHOWN:
            click.echo(f"and {len(gone) - _SHOWN:,} more (--json shows all)")
    said = "would be removed" if dry_run else "removed"
    size = _bytes(sum(entry.size for entry in gone))
    click.echo(f"{len(gone):,} entries ({size}) {said}, {len(entries) - len(gone):,} ({_bytes(kept)}) stay")


def _folder() -> Path | None:
    from greencc.core.cache import default_folder

    return default_folder()


def _nothing(folder: Path | None) -> str:
    if folder is None:
        return "$GREENCC_CACHE is set to nothing, so nothing is kept"
    return f"nothing is kept in {folder} yet"


def _verdict(bad: int, others: int, removing: bool) -> str:
    parts = [
        f"{bad:,} damaged or unreadable" + (", removed" if removing and bad else "") if bad else "all whole"
    ]
    if others:
        parts.append(f"{others:,} of another version of greencc, which this one does not use")
    return "; ".join(parts)


def _kind_row(kind: str, entries: list[StoredEntry]) -> dict[str, Any]:
    from collections import Counter

    members = [entry for entry in entries if entry.kind == kind]
    headers = [entry.header for entry in members if entry.header is not None]
    return {
        "kind": kind,
        "entries": len(members),
        "bytes": sum(entry.size for entry in members),
        "oldest": min(entry.used for entry in members),
        "newest": max(entry.used for entry in members),
        "devices": sorted({header.device for header in headers if header.device}),
        "versions": sorted({header.version for header in headers}),
        "states": dict(Counter(entry.state.value for entry in members)),
    }


def _entry_row(entry: StoredEntry) -> dict[str, Any]:
    from dataclasses import asdict

    facts = {} if entry.header is None else asdict(entry.header)
    facts |= {"kind": entry.kind, "path": str(entry.path), "bytes": entry.size, "used": entry.used}
    return facts | {"state": entry.state.value}


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def _age(moment: float) -> str:
    """How long ago, in the largest unit that fits."""
    import time

    seconds = max(0.0, time.time() - moment)
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
