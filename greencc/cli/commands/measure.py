"""`greencc measure`: the whole measuring protocol, on a bundle or a model."""

from __future__ import annotations

from pathlib import Path

import click

from greencc.cli.types import EFFORTS, SHARE


@click.command("measure")
@click.argument("subject", type=click.Path(path_type=Path))
@click.option(
    "--baseline", "-b", type=click.Path(path_type=Path), help="A model or bundle to measure beside it."
)
@click.option(
    "--input", "-i", "data", metavar="DATA", help="Real inputs: .npz, .npy, a folder, module:function."
)
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="TOML preprocessing spec for image folders."
)
@click.option("--target", "-t", default="cpu", show_default=True, help="Where to run a model.")
@click.option(
    "--effort", type=click.Choice(EFFORTS), default="standard", show_default=True, help="Time to measure."
)
@click.option("--confidence", type=SHARE, default="95%", show_default=True, help="Of the intervals.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    subject: Path,
    baseline: Path | None,
    data: str | None,
    preprocess: Path | None,
    target: str,
    effort: str,
    confidence: float,
    as_json: bool,
) -> None:
    """Measure SUBJECT (a bundle or an ONNX model) in turns with a baseline: latency, energy, memory.

    Energy is measured where a meter works (see 'greencc doctor') and marked as estimated elsewhere.
    """
    import json
    from dataclasses import asdict

    from greencc.cli.console import progress_bars, stderr, stdout
    from greencc.compiler.check import measure
    from greencc.compiler.options import Effort
    from greencc.core.errors import InputError
    from greencc.report import measurement_table

    for path in (subject, baseline):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist", hint="give an ONNX model or a bundle folder")
    with progress_bars() as progress:
        found, warnings = measure(
            subject,
            baseline=baseline,
            data=data,
            preprocess=preprocess,
            target=target,
            effort=Effort(effort),
            confidence=confidence,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps({**asdict(found), "warnings": list(warnings)}, indent=2))
        return
    clean = found.conditions.get("clean") is not False
    stdout().print(measurement_table(found.baseline, found.artifact, found.ratio, clean=clean))
    for warning in warnings:
        stderr().print(f"Warning: {warning}", style="yellow", markup=False)
