"""`greencc inspect`: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: Path, profile: bool, target: str, everything: bool, as_json: bool) -> None:
    """Describe PATH, an ONNX model or a bundle: inputs, operators, parameters, MACs, layers."""
    import json
    from dataclasses import asdict

    from greencc.cli.console import stdout
    from greencc.core.describe import describe
    from greencc.core.model import digest, load_model

    model_path = path
    if path.is_dir():
        from greencc.bundle import load

        with load(path) as bundle:
            model_path = bundle.artifact
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
    from greencc.compiler.session import available_target

    size = facts.inputs[0].batch or 1
    feeds = next(iter(synthetic(facts.inputs, size).batches(size))).feeds
    return {row.name: row.microseconds for row in available_target(spec).profile(path, feeds, 20)}


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
