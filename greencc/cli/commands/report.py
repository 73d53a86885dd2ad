"""`greencc report`: a bundle's report in another form."""

from __future__ import annotations

from pathlib import Path

import click

from greencc.cli.carbon import carbon_options, chosen


@click.command("report")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(("text", "json", "md", "html")), default="text", show_default=True
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write to a file instead of standard output."
)
@carbon_options
def command(
    bundle: Path,
    form: str,
    output: Path | None,
    grid_intensity: float | None,
    country: str | None,
    embodied: float | None,
    lifetime: float | None,
) -> None:
    """Print the report of BUNDLE, or write it as Markdown, JSON or one self-contained HTML file.

    Carbon figures are as compiled, unless another grid or device is given here; the bundle is not changed.
    """
    from dataclasses import replace

    from greencc.bundle import load
    from greencc.cli.console import stdout
    from greencc.cli.paths import refuse_inside
    from greencc.core.errors import UsageError
    from greencc.core.files import atomic_file
    from greencc.measure.carbon import CarbonOptions, carbon_of
    from greencc.report import dump_report, render_html, render_markdown, stored, summary

    options = chosen(grid_intensity, country, embodied, lifetime)
    if output is not None:
        refuse_inside(output, bundle)
    with load(bundle) as loaded:
        report = loaded.report
    if options != CarbonOptions():
        old, new = report.baseline, report.artifact
        latencies = (old.latency_ms.median, new.latency_ms.median)
        carbon = carbon_of(old.energy_mj, new.energy_mj, latencies, options)
        if carbon is None:
            raise UsageError(f"{bundle} has no energy figures, so carbon cannot be told from them")
        report = stored(replace(report, carbon=carbon), "report")
    if form == "text":
        if output is not None:
            raise UsageError("--output needs a format", hint="add --format md, json or html")
        stdout().print(summary(report))
        return
    render = {"json": dump_report, "md": render_markdown, "html": render_html}[form]
    text = render(report)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    with atomic_file(output) as work:
        work.write_text(text, encoding="utf-8")
