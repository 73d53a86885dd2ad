"""`greencc inspect`: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greencc.cli.types import SECONDS, TABLE_PRECISIONS

if TYPE_CHECKING:
    from rich.console import Console

    from greencc.core.data import TensorSpec
    from greencc.core.describe import ModelDescription

_TOP = 12


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True, help="Also time every layer here, on synthetic inputs.")
@click.option("--target", "-t", default="cpu", show_default=True, help="Where to profile.")
@click.option("--all", "everything", is_flag=True, help="List all layers, not only the heaviest.")
@click.option("--sensitivity", is_flag=True, help="Measure how much each layer suffers when it is quantized.")
@click.option("--groups", is_flag=True, help="List the prune groups: channels that can be cut together.")
@click.option("--calibration", "-c", metavar="DATA", help="With --sensitivity: inputs that set ranges.")
@click.option("--eval", "evaluation", metavar="DATA", help="With --sensitivity: held-out inputs to judge on.")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels in a file of their own.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="Preprocessing of image folders.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Score samples with your own function.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(TABLE_PRECISIONS),
    multiple=True,
    help="A column of the table, may be repeated [default: int8 and int4-weights].",
)
@click.option("--samples", type=int, default=256, show_default=True, help="Calibration samples used at most.")
@click.option("--search-time", type=SECONDS, default="5m", show_default=True, help="Longest time to measure.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep results of earlier runs.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw the table or the groups into this SVG file."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: Path,
    profile: bool,
    target: str,
    everything: bool,
    sensitivity: bool,
    groups: bool,
    calibration: str | None,
    evaluation: str | None,
    labels: Path | None,
    preprocess: Path | None,
    metric: str | None,
    precisions: tuple[str, ...],
    samples: int,
    search_time: float,
    no_cache: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Describe PATH, an ONNX model or a bundle: inputs, operators, parameters, MACs, layers.

    With --sensitivity and data, measure for every layer what quantizing it alone does to the
    outputs, what it adds when all others are quantized too, and what its INT8 form saves.
    Weights are rounded to nearest; greencc compile may do better.

    With --groups, find after the clean-up which channels, heads and hidden units must be cut
    together, what hangs on each of them, and why others must stay.
    """
    import json

    if groups and (sensitivity or profile):
        other = "--sensitivity" if sensitivity else "--profile"
        raise click.UsageError(f"--groups and {other} exclude each other")
    if sensitivity:
        from greencc.cli.sensitivity import show_sensitivity
        from greencc.compiler import CompileOptions

        options = CompileOptions(
            target=target,
            calibration=calibration,
            evaluation=evaluation,
            labels=labels,
            preprocess=preprocess,
            metric=metric,
            samples=samples,
            search_seconds=search_time,
            cache=not no_cache,
        )
        show_sensitivity(path, options, precisions, everything=everything, plot=plot, as_json=as_json)
        return
    for flag, value in {"--calibration": calibration, "--eval": evaluation, "--metric": metric}.items():
        if value is not None:
            raise click.UsageError(f"{flag} goes with --sensitivity")
    if groups:
        from greencc.cli.groups import show_groups

        if path.is_dir():
            raise click.UsageError("--groups goes with a model, not with a bundle")
        show_groups(path, target, everything=everything, plot=plot, as_json=as_json)
        return
    if plot is not None:
        raise click.UsageError("--plot goes with --sensitivity or --groups")
    from dataclasses import asdict

    from greencc.cli.console import stdout
    from greencc.core.describe import describe
    from greencc.core.model import digest, load_model

    model_path = path
    if path.is_dir():
        from greencc.bundle import load

        with load(path) as bundle:
            model_path = bundle.graph
    model = load_model(model_path)
    facts = describe(model)
    times = _profile(model_path, target, facts) if profile else {}
    if as_json:
        data: dict[str, Any] = {"path": str(model_path), "digest": digest(model), **asdict(facts)}
        for key in ("inputs", "outputs"):
            data[key] = [_plain(spec) for spec in data[key]]
        data["microseconds"] = times
        click.echo(json.dumps(data, indent=2))
        return
    _print(stdout(), model_path, facts, times, everything)


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "dtype": str(spec["dtype"])}


def _profile(path: Path, spec: str, facts: ModelDescription) -> dict[str, float]:
    from greencc.calibration import synthetic
    from greencc.compiler.session import timed_target

    size = facts.inputs[0].batch or 1
    feeds = next(iter(synthetic(facts.inputs, size).batches(size))).feeds
    return {row.name: row.microseconds for row in timed_target(spec).profile(path, feeds, 20)}


def _print(
    console: Console, path: Path, facts: ModelDescription, times: dict[str, float], everything: bool
) -> None:
    from rich.table import Table
    from rich.text import Text

    macs = "unknown" if facts.macs is None else f"{facts.macs / 1e6:,.1f} M per inference"
    head = Table.grid(padding=(0, 2))
    for label, value in (
        ("Model", str(path)),
        ("Opset", f"{facts.opset}, IR version {facts.ir_version}"),
        ("Inputs", "\n".join(_spec(spec) for spec in facts.inputs)),
        ("Outputs", "\n".join(_spec(spec) for spec in facts.outputs)),
        ("Parameters", f"{facts.params:,} ({facts.weight_bytes / 1e6:,.2f} MB)"),
        ("MACs", macs),
        ("Nodes", f"{facts.nodes}: " + ", ".join(f"{count} {op}" for op, count in facts.ops.items())),
    ):
        head.add_row(Text(label, style="bold"), Text(value))
    console.print(head)
    console.print()
    rows = sorted(facts.costs, key=lambda cost: -(cost.macs or 0))
    shown = facts.costs if everything else rows[:_TOP]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Layer", overflow="fold")
    table.add_column("Operator")
    table.add_column("Type")
    table.add_column("MMAC", justify="right")
    table.add_column("Share", justify="right")
    table.add_column("Weights, kB", justify="right")
    for cost in shown:
        share = "" if not facts.macs or cost.macs is None else f"{cost.macs / facts.macs:.1%}"
        table.add_row(
            Text(cost.name),
            cost.op_type,
            cost.dtype.lower(),
            "?" if cost.macs is None else f"{cost.macs / 1e6:,.2f}",
            share,
            f"{cost.weight_bytes / 1e3:,.1f}",
        )
    console.print(table)
    if not everything and len(rows) > _TOP:
        console.print(f"... and {len(rows) - _TOP} lighter layers (--all lists them)")
    if times:
        console.print()
        timed = Table(box=None, pad_edge=False, header_style="bold")
        timed.add_column("Node of the runtime's graph", overflow="fold")
        timed.add_column("Microseconds", justify="right")
        timed.add_column("Share", justify="right")
        total = sum(times.values())
        ranked = sorted(times.items(), key=lambda item: -item[1])
        for name, microseconds in ranked if everything else ranked[:_TOP]:
            timed.add_row(Text(name), f"{microseconds:,.1f}", f"{microseconds / total:.1%}")
        console.print(timed)
    for finding in facts.findings:
        console.print(f"Note: {finding.message}", markup=False)


def _spec(spec: TensorSpec) -> str:
    shape = (
        "unknown rank" if spec.shape is None else " × ".join("?" if d is None else str(d) for d in spec.shape)
    )
    return f"{spec.name}: {spec.dtype} {shape or 'scalar'}"
