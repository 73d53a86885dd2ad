"""`greencc explain`: why a layer of a bundle is as it is."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("explain")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("layer", required=False)
@click.option("--all", "everything", is_flag=True, help="List every unit, not only the rarest decisions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: Path, layer: str | None, everything: bool, as_json: bool) -> None:
    """Tell why LAYER of BUNDLE is as it is: what could be done to it, what that would cost and save, what was chosen.

    LAYER is the name of a node of the source model, or of a group or block, or a part of only one such name.
    Without it, all units of the plan are listed with what they became.
    """
    import json

    from greencc.bundle import load
    from greencc.cli.console import stdout
    from greencc.report.explain import explain
    from greencc.report.explain_text import explanation_text, overview_text
    from greencc.report.json_out import to_plain

    if layer is not None and everything:
        raise click.UsageError("--all goes without a LAYER")
    with load(bundle) as loaded:
        report = loaded.report
    if layer is not None:
        found = explain(report, layer)
        if as_json:
            click.echo(json.dumps(to_plain(found, "explanation"), indent=2, ensure_ascii=False))
        else:
            stdout().print(explanation_text(report, found))
        return
    if as_json:
        plan = None if report.plan is None else to_plain(report.plan, "plan")
        choices = [to_plain(item, "layer_choices") for item in report.layer_choices]
        data = {"form": report.precision, "plan": plan, "layer_choices": choices}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    stdout().print(overview_text(report, everything=everything))
