"""`greencc lab`: the energy laboratory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from greencc.lab.calibrate import Calibrated
    from greencc.lab.campaign_record import CellRecord
    from greencc.lab.campaign_run import Plan
    from greencc.lab.campaign_spec import CampaignSpec
    from greencc.meters.model import Range
    from greencc.report.campaign_summary import CampaignSummary


@click.group("lab")
def command() -> None:
    """Run test campaigns, calibrate this machine and list device profiles."""


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


@command.command("calibrate")
@click.option("--target", "-t", default="cpu", show_default=True, help="What runs the benchmarks.")
@click.option(
    "--meter", metavar="SPEC", help="A meter, as for 'measure', or 'none' [default: the best one that works]."
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The profile [default: among your own profiles]."
)
@click.option("--quick", is_flag=True, help="Shorter runs: a rougher fit.")
def calibrate(target: str, meter: str | None, output: Path | None, quick: bool) -> None:
    """Run the benchmark suite on this machine and fit its device profile.

    With a meter the energy coefficients are fitted (grade C), without one the times alone. An
    interrupted run goes on where it was. 'greencc estimate --device local' uses the result.
    """
    from greencc.cli.console import progress_bars, stderr
    from greencc.lab.calibrate import calibrate as run
    from greencc.lab.calibrate import chosen_meter

    with progress_bars() as progress:
        done = run(target=target, meter=chosen_meter(meter), output=output, quick=quick, progress=progress)
    _print(done)
    for warning in done.warnings:
        stderr().print(f"Warning: {warning}", style="yellow", markup=False)


@command.command("run")
@click.argument("campaign", metavar="CAMPAIGN.TOML", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Folder of the results [default: NAME.campaign]."
)
@click.option(
    "--resume/--fresh",
    default=True,
    help="Go on with what is measured already, which is the default, or remove it and begin anew.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check the file, say what would be measured, and write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json.")
def run(campaign: Path, output: Path | None, resume: bool, dry_run: bool, as_json: bool) -> int:
    """Run a test campaign: models x variants x devices x repetitions, each variant against its model.

    What is measured is kept at once, so that a run that was interrupted goes on where it was. Writes blocks.csv (a row
    for each block), cells.jsonl, summary.json, summary.md and index.html. Exits with 5 where some could not be
    measured, or only in part because the meter failed; the summary says why.
    """
    from greencc.cli.console import progress_bars
    from greencc.core.errors import ExitCode
    from greencc.lab.campaign_bench import LabBench
    from greencc.lab.campaign_file import read_campaign
    from greencc.lab.campaign_run import RunCallbacks, plan_run, run_test_campaign
    from greencc.report.campaign_summary import dump_summary

    spec = read_campaign(campaign)
    folder = output or Path(f"{spec.name}.campaign")
    with progress_bars() as progress:
        bench = LabBench(spec, progress)
        if dry_run:
            _print_plan(spec, folder, plan_run(spec, folder, bench, fresh=not resume))
            return int(ExitCode.OK)
        summary = run_test_campaign(
            spec, folder, bench, fresh=not resume, callbacks=RunCallbacks(progress, _print_cell)
        )
    if as_json:
        click.echo(dump_summary(summary), nl=False)
    else:
        _print_summary(summary, folder)
    return int(ExitCode.OK if summary.complete else ExitCode.UNAVAILABLE)


def _print_plan(spec: CampaignSpec, folder: Path, plan: Plan) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    for heading in ("Model", "Variant", "Device", "Repetition", "State"):
        table.add_column(heading, overflow="fold")
    for number, cell in enumerate(plan.cells, 1):
        problem = plan.problems.get(cell.device)
        state = (
            "measured" if cell in plan.done else f"cannot be measured: {problem}" if problem else "to measure"
        )
        table.add_row(
            str(number),
            Text(cell.model),
            Text(cell.variant),
            Text(cell.device),
            str(cell.repetition),
            Text(state),
        )
    out = stdout()
    out.print(table)
    protocol = spec.protocol
    out.print(
        f"{len(plan.cells) - len(plan.done)} of {len(plan.cells)} measurements to do: {protocol.name} protocol, order "
        f"drawn with seed {protocol.seed}. Results go into {folder}.",
        markup=False,
        soft_wrap=True,
    )


def _print_cell(record: CellRecord, number: int, total: int) -> None:
    """A line for each finished cell, on standard error: a campaign takes hours."""
    from greencc.cli.console import stderr
    from greencc.report.figures import ratio_text

    figures = record.figures
    said = f"{record.status}: {record.reason}"
    if figures is not None:
        said = "latency not known" if figures.latency is None else f"latency {ratio_text(figures.latency)}"
        said += "" if figures.clean else ", disturbed by other processes"
        said += "" if record.problem is None else f"; partial: {record.problem}"
    stderr().print(f"[{number}/{total}] {record.cell}: {said}", markup=False, soft_wrap=True)


def _print_summary(summary: CampaignSummary, folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stderr, stdout
    from greencc.lab.campaign_run import PAGE
    from greencc.report.campaign_text import energy_kinds, missing, row_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Variant", "Accuracy", "Latency", "Energy", "Size", "Cells"):
        table.add_column(heading, overflow="fold")
    for row in summary.rows:
        found = row_text(row, summary.repetitions)
        texts = (
            f"{row.model}, {row.variant} on {row.device}",
            found.accuracy,
            found.latency,
            found.energy,
            found.size,
            found.repetitions,
        )
        table.add_row(*map(Text, texts))
    out = stdout()
    out.print(table)
    for kind in energy_kinds(summary):
        out.print(f"Energy: {kind}.", markup=False, soft_wrap=True)
    out.print(f"Summary: {folder / PAGE}", markup=False, soft_wrap=True)
    for model, variant, device, why in missing(summary):
        stderr().print(
            f"Not measured in whole: {model}, {variant}, {device}: {why}", style="yellow", markup=False
        )


def _print(done: Calibrated) -> None:
    from rich.table import Table

    from greencc.cli.console import stdout

    console, profile, times = stdout(), done.profile, done.times
    factor = 1.0 if done.energies is None else done.energies.error.factor
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Type", "Work"):
        table.add_column(heading)
    for heading in ("GOP/s", "pJ per operation"):
        table.add_column(heading, justify="right")
    for dtype, rates in profile.rates.items():
        energy = _around(profile.operation_joules(dtype), factor, 1e12)
        for work, rate in rates.items():
            table.add_row(dtype, work.value, f"{rate.central / 1e9:,.4g}", energy)
    console.print(table)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Memory")
    for heading in ("kB", "GB/s", "pJ per byte"):
        table.add_column(heading, justify="right")
    for level in profile.levels:
        size = "" if level.bytes is None else f"{level.bytes / 1e3:,.0f}"
        speed, energy = level.bytes_per_second.central / 1e9, _around(level.joules_per_byte, factor, 1e12)
        table.add_row(level.name, size, f"{speed:,.4g}", energy)
    console.print(table)
    console.print()
    console.print(
        f"Overhead: {times.kernel_seconds * 1e6:.3g} µs per kernel, {times.run_seconds * 1e6:.3g} µs per run. "
        f"Latency of a benchmark left out of the fit: {times.error.mape:.1%} off on average, "
        f"95 % within a factor of {times.error.factor:.2f}."
    )
    if done.energies is None:
        console.print(
            "Energy: no meter, so its coefficients and their ranges are those of the uncalibrated model (estimated, "
            f"grade D), {_around(profile.busy_watts, factor)} W while busy; {profile.boundary}.",
            markup=False,
        )
    else:
        error = done.energies.error
        console.print(
            f"Energy: fitted (estimated, grade C), {_around(profile.busy_watts, factor)} W while busy; a benchmark "
            f"left out of the fit {error.mape:.1%} off on average, 95 % within a factor of {error.factor:.2f}, which "
            f"is the interval of each coefficient here; {profile.boundary}.",
            markup=False,
        )
    console.print(f"Profile: {done.path}", markup=False, soft_wrap=True)


def _around(range_: Range, factor: float, unit: float = 1.0) -> str:
    """``2.1 [1.6, 2.8]``: the range, or a fitted figure within the leave-one-out factor."""
    low, central, high = (
        value * unit for value in (range_.low / factor, range_.central, range_.high * factor)
    )
    return f"{central:.3g} [{low:.3g}, {high:.3g}]"
