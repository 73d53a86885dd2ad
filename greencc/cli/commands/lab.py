"""`greencc lab`: the energy laboratory."""

from __future__ import annotations

import click


@click.group("lab")
def command() -> None:
    """Calibrate this machine and list device profiles."""


@command.command("devices")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(as_json: bool) -> None:
    """List the device profiles that 'greencc estimate' knows, with grade and source."""
    import json

    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout
    from greencc.meters.device_store import stored_profiles, user_folder

    entries = stored_profiles()
    if as_json:
        rows = [
            {"name": entry.name, "origin": entry.origin, "problem": entry.problem}
            if entry.profile is None
            else {
                "name": entry.name,
                "origin": entry.origin,
                "title": entry.profile.title,
                "grade": entry.profile.grade.name,
                "boundary": entry.profile.boundary,
                "source": entry.profile.source,
                "modes": [mode.name for mode in entry.profile.modes],
            }
            for entry in entries
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Device", no_wrap=True)
    table.add_column("Grade")
    table.add_column("Modes", overflow="fold", min_width=8)
    table.add_column("What and from where", overflow="fold")
    for entry in entries:
        profile = entry.profile
        if profile is None:
            table.add_row(Text(entry.name), "-", "", Text(f"unusable: {entry.problem}", style="yellow"))
            continue
        detail = Text(f"{profile.title}; {profile.source}")
        if entry.origin != "shipped":
            detail.append(f"\n{entry.origin}", style="dim")
        if profile.calibration is not None:
            detail.append(f"\nlatency: leave-one-out error {profile.calibration.latency_mape:.0%}")
        modes = ", ".join(mode.name for mode in profile.modes) or "-"
        table.add_row(Text(entry.name), profile.grade.name, modes, detail)
    stdout().print(table)
    stdout().print(f"Your own profiles go into {user_folder()}", style="dim", markup=False, soft_wrap=True)
