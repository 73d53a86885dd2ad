"""`greencc measure`: the whole measuring protocol, on a bundle or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greencc.cli.carbon import carbon_options, chosen
from greencc.cli.device import device_option, power_mode_option
from greencc.cli.trusting import given, trust_option
from greencc.cli.types import PROTOCOLS, RATE, SECONDS, SHARE, TRACE_FORMATS

if TYPE_CHECKING:
    from greencc.compiler.campaign import Campaign
    from greencc.compiler.measurement import Measurement
    from greencc.measure.carbon import CarbonOptions


@click.command("measure")
@click.argument("subject", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--against",
    "--baseline",
    "-b",
    "baseline",
    metavar="BASELINE",
    type=click.Path(path_type=Path),
    help="A model or bundle to measure beside it.",
)
@click.option(
    "--input", "-i", "data", metavar="DATA", help="Real inputs: .npz, .npy, a folder, module:function."
)
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="TOML preprocessing spec for image folders."
)
@click.option(
    "--target",
    "-t",
    default="",
    show_default="cpu, or what fits the device",
    help="What to run a model with.",
)
@device_option("Measure, with the device's own meter,")
@power_mode_option
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="default",
    show_default=True,
    help="Windows, blocks and stopping rule.",
)
@click.option("--rate", type=RATE, help="Requests at a rate such as 30/s.  [default: flat out]")
@click.option("--poisson", is_flag=True, help="Requests come at random (Poisson), at --rate on average.")
@click.option("--until", type=SHARE, help="Stop at this half-width of the energy ratio, such as 2%.")
@click.option("--limit", type=SECONDS, help="Stop measuring energy after this time, such as 10m.")
@click.option("--meter", metavar="SPEC", help="Which meter.  [default: the best that works here]")
@click.option("--confidence", type=SHARE, default="95%", show_default=True, help="Of the intervals.")
@click.option(
    "--save",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write measurement.json, blocks.csv and the trace into this folder.",
)
@click.option("--plot", is_flag=True, help="Draw the trace as well, into DIR/trace.svg.")
@click.option(
    "--trace-format", type=click.Choice(TRACE_FORMATS), default="csv", show_default=True, help="Of the trace."
)
@click.option("--force", is_flag=True, help="Replace DIR.")
@carbon_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@trust_option
def command(
    subject: Path,
    baseline: Path | None,
    data: str | None,
    preprocess: Path | None,
    target: str,
    device: str,
    set_power_mode: str | None,
    protocol: str,
    rate: float | None,
    poisson: bool,
    until: float | None,
    limit: float | None,
    meter: str | None,
    confidence: float,
    save: Path | None,
    plot: bool,
    trace_format: str,
    force: bool,
    grid_intensity: float | None,
    country: str | None,
    embodied: float | None,
    lifetime: float | None,
    as_json: bool,
    trust: tuple[str, ...],
) -> int:
    """Measure ARTIFACT (a bundle or an ONNX model) in turns with a baseline: latency, energy, memory.

    Energy is measured where a meter works (see 'greencc doctor') and marked as estimated elsewhere. Where a meter
    gave nothing, or failed on the way, what was measured is printed and the exit code is 5.
    """
    import json

    from greencc.cli.console import progress_bars
    from greencc.compiler import campaign_files as files
    from greencc.compiler.campaign import make_plan
    from greencc.compiler.check import measure
    from greencc.core.errors import ExitCode, InputError, UsageError

    for path in (subject, baseline):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist", hint="give an ONNX model or a bundle folder")
    if save is None and (plot or force):
        raise UsageError(f"{'--plot' if plot else '--force'} needs a folder", hint="add --save DIR")
    options, carbon = None, chosen(grid_intensity, country, embodied, lifetime)
    if save is not None:
        options = files.SaveOptions(save, files.TraceFormat(trace_format), plot, force, carbon)
        files.check_writable(options)
    plan = make_plan(protocol, rate=rate, poisson=poisson, until=until, limit_seconds=limit, meter=meter)
    with progress_bars() as progress:
        found, warnings = measure(
            subject,
            baseline=baseline,
            data=data,
            preprocess=preprocess,
            target=target,
            plan=plan,
            confidence=confidence,
            trust=given(trust),
            device=device,
            set_power_mode=set_power_mode,
            progress=progress,
        )
    # Printed before they are saved: if that fails, at least the figures are not lost.
    if as_json:
        click.echo(json.dumps(files.measurement_json(found, warnings, carbon), indent=2))
    else:
        _print(found, warnings, carbon)
    if options is not None:
        names = files.save(found, warnings, options)
        if not as_json:
            _print_saved(found, options.folder, names)
    failed = found.campaign is not None and found.campaign.result.problem is not None
    return int(ExitCode.UNAVAILABLE if failed else ExitCode.OK)


def _print(
    found: Measurement,
    warnings: tuple[str, ...],
    carbon: CarbonOptions,
) -> None:
    from greencc.cli.console import stderr, stdout
    from greencc.report import measurement_table
    from greencc.report.energy import carbon_note

    out = stdout()
    out.print(measurement_table(found.baseline, found.artifact, found.ratio, found.conditions))
    energy = found.artifact.energy_mj
    if energy is not None:
        out.print(f"Energy: {energy.method}. Boundary: {energy.boundary}.", markup=False)
    if note := carbon_note(found.carbon(carbon)):
        out.print(note, markup=False)
    campaign = found.campaign
    if campaign is not None:
        _print_load(campaign)
        out.print(f"Measuring ended: {campaign.result.stopped}.", markup=False)
    for warning in warnings:
        stderr().print(f"Warning: {warning}", style="yellow", markup=False)


def _print_saved(found: Measurement, folder: Path, names: list[str]) -> None:
    from greencc.cli.console import stdout

    stdout().print(f"Saved in {folder}: {', '.join(names)}", markup=False, soft_wrap=True)
    if found.campaign is None or not found.campaign.trace:
        stdout().print("No trace: no meter.")


def _print_load(campaign: Campaign) -> None:
    """Percentiles of both variants under the load."""
    from rich import box
    from rich.table import Table

    from greencc.cli.console import stdout
    from greencc.compiler.campaign import describe_load
    from greencc.report.figures import time_ms

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(f"Load: {describe_load(campaign.plan.load)}")
    for name in ("p50", "p95", "p99", "p99.9", "requests", "late"):
        table.add_column(name, justify="right")
    for label, figures in (("Baseline", campaign.baseline), ("Artifact", campaign.artifact)):
        if figures is None:
            continue
        rows = [("latency", figures.latency_ms)]
        if campaign.plan.load.rate is not None:
            rows.append(("service", figures.service_ms))
        for kind, values in rows:
            times = (values.p50, values.p95, values.p99, values.p999)
            table.add_row(
                f"{label}, {kind}",
                *(time_ms(each) for each in times),
                f"{figures.requests:,}",
                f"{figures.late:,}",
            )
    if table.row_count:
        stdout().print(table)
