"""`greencc estimate`: what a model would take on a device that is not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greencc.cli.types import ESTIMATE_PRECISIONS, RATE, SIZE

if TYPE_CHECKING:
    from greencc.core.report import Energy, Interval
    from greencc.lab.estimate import ModelEstimate
    from greencc.meters.roofline import Estimated

_TOP = 10
_WIDE = 100


@click.command("estimate")
@click.argument("path", type=click.Path(path_type=Path), metavar="MODEL")
@click.option(
    "--device", "-d", required=True, help="A device of 'greencc lab devices', 'local', or a .toml profile."
)
@click.option("--mode", help="Power mode of the device, such as 15W [default: the device's own].")
@click.option(
    "--precision",
    type=click.Choice(ESTIMATE_PRECISIONS),
    help="Count a float model as if it ran so [default: as it is].",
)
@click.option("--batch", type=int, default=1, show_default=True, help="Samples per inference.")
@click.option(
    "--size", "sizes", type=SIZE, multiple=True, help="Size of a dynamic dimension; may be repeated."
)
@click.option("--threads", type=int, help="Threads, on a CPU [default: all cores of the profile].")
@click.option(
    "--rate", type=RATE, help="Inferences asked for, such as 30/s: power and energy with idle time."
)
@click.option("--all", "everything", is_flag=True, help="List all layers, not only the heaviest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: Path,
    device: str,
    mode: str | None,
    precision: str | None,
    batch: int,
    sizes: tuple[tuple[str, int], ...],
    threads: int | None,
    rate: float | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Estimate MODEL (ONNX, or a bundle of it) on a device: latency, energy, power, heaviest layers.

    Nothing is run. Every figure is an estimate with an interval; see docs/estimate.md for how far
    to trust it.
    """
    import json

    from greencc.lab.estimate import EstimateOptions, EstimatePrecision, estimate_model

    found = estimate_model(
        path,
        EstimateOptions(
            device=device,
            mode=mode,
            precision=None if precision is None else EstimatePrecision(precision),
            batch=batch,
            threads=threads,
            rate=rate,
            sizes=dict(sizes),
        ),
    )
    if as_json:
        click.echo(json.dumps(_data(found), indent=2))
        return
    _print(found, everything)


def _data(found: ModelEstimate) -> dict[str, Any]:
    from dataclasses import asdict

    device = found.device
    return {
        "schema": "greencc.estimate/1",
        "model": found.model,
        "device": device.name,
        "title": device.title,
        "source": device.source,
        "mode": found.mode.name,
        "cap_watts": found.mode.watts,
        "precision": found.precision,
        "batch": found.batch,
        "threads": found.threads,
        **asdict(found.result),
    }


def _print(found: ModelEstimate, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout

    console, result, device = stdout(), found.result, found.device
    cap = "" if found.mode.watts is None else f", cap {found.mode.watts:g} W"
    mode = f", mode {found.mode.name}{cap}" if device.modes else ""
    head = Table.grid(padding=(0, 2))
    rows = [
        ("Model", f"{found.model}, {found.precision}, batch {found.batch}"),
        ("Device", f"{device.title}{mode}"),
        ("Latency", f"{_span(result.latency_ms)} ms (estimated)"),
    ]
    if result.throttled:
        rows.append(("", f"slowed down by the power cap, {result.unthrottled_ms:.3g} ms without"))
    energy = result.energy
    rows += [
        ("Energy", f"{_span(energy)} mJ per inference (estimated, gross, {_kind(energy)})"),
        ("Power", f"{_span(result.watts)} W while it runs (estimated, {_kind(result.watts)})"),
    ]
    rows += [("At the rate", text) for text in _at_rate(found)]
    for label, value in rows:
        head.add_row(Text(label, style="bold"), Text(value))
    console.print(head)
    console.print()
    ranked = sorted(result.layers, key=lambda layer: -layer.microseconds)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("Layer", overflow="fold")
    table.add_column("Operators", overflow="fold", min_width=9)
    table.add_column("Type", no_wrap=True)
    for heading in ("µs", "Share", "MOP", "kB", f"mJ, grade {energy.grade}"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Bound", min_width=8)
    for layer in result.layers if everything else ranked[:_TOP]:
        table.add_row(
            Text(layer.name),
            layer.op_type,
            layer.dtype,
            f"{layer.microseconds:,.3g}",
            f"{layer.share:.1%}",
            f"{layer.operations / 1e6:,.3g}",
            f"{layer.bytes / 1e3:,.4g}",
            _span(layer.millijoules).replace(" [", " [" if console.width >= _WIDE else "\n["),
            f"memory ({layer.level})" if layer.bound == "memory" else layer.bound,
        )
    console.print(table)
    if not everything and len(ranked) > _TOP:
        console.print(f"... and {len(ranked) - _TOP} lighter layers (--all lists them)")
    console.print()
    layers = (
        "Layers: before any slowing down by a power cap and without the overhead of a run, so they do not add up to "
        f"the figures above; mJ are estimated, gross, {_kind(energy)}"
    )
    for text in (layers, f"Latency: {result.latency_method}", f"Energy: {energy.method}", *result.notes):
        console.print(f"Note: {text}", markup=False)


def _at_rate(found: ModelEstimate) -> list[str]:
    at = found.result.at_rate
    if at is None:
        return []
    if at.reachable == "no":
        return [
            f"{at.rate:g}/s is out of reach: it would keep the device busy {at.utilisation.low:.0%} of the time"
        ]
    assert at.watts is not None
    assert at.millijoules is not None
    text = [
        f"{_span(at.watts)} W, {_span(at.millijoules)} mJ per inference with idle time at {at.rate:g}/s (estimated, "
        f"{_kind(at.watts)})"
    ]
    if at.reachable == "uncertain":
        text.append("whether it is reached is uncertain: the slow end of the latency is too slow for it")
    return text


def _span(value: Interval | Energy) -> str:
    """``2.1 [1.3, 4.0]``, three digits."""
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _kind(value: Estimated | Energy) -> str:
    return f"grade {value.grade}, {value.boundary}"
