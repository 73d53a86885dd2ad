"""`greencc verify`: hashes always, accuracy when there is a model and data to compare with."""

from __future__ import annotations

from pathlib import Path

import click

from greencc.cli.device import device_option
from greencc.cli.trusting import given, trust_option
from greencc.cli.types import SHARE


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model", type=click.Path(path_type=Path), help="The original model, to compare accuracy with."
)
@click.option("--eval", "evaluation", metavar="DATA", help="Held-out inputs.")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels in a file of their own.")
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="TOML preprocessing spec for image folders."
)
@click.option("--metric", metavar="MODULE:FUNCTION", help="Score samples with your own function.")
@click.option(
    "--max-drop", type=SHARE, default="1%", show_default=True, help="Largest accuracy drop accepted."
)
@click.option("--confidence", type=SHARE, default="95%", show_default=True, help="Of the certificate.")
@click.option("--require-certified", is_flag=True, help="Exit 3 when the accuracy cannot be certified.")
@device_option("Run the artifact")
@click.option("--json", "as_json", is_flag=True, help="Print the accuracy as JSON.")
@trust_option
def command(
    bundle: Path,
    model: Path | None,
    evaluation: str | None,
    labels: Path | None,
    preprocess: Path | None,
    metric: str | None,
    max_drop: float,
    confidence: float,
    require_certified: bool,
    device: str,
    as_json: bool,
    trust: tuple[str, ...],
) -> None:
    """Check every hash of BUNDLE, and its accuracy when --model and --eval are given.

    The model must be the model that BUNDLE was compiled from. Samples that the compile has used are left out.

    Exits with 3 when the accuracy drop exceeds --max-drop.
    """
    import json
    from dataclasses import asdict

    from greencc.bundle import load
    from greencc.cli.console import progress_bars, stdout
    from greencc.core.errors import UsageError

    if (model is None) != (evaluation is None):
        raise UsageError(
            "--model and --eval go together", hint="give both, or neither to check the hashes only"
        )
    if evaluation is None and (labels or preprocess or metric or require_certified or device):
        raise UsageError(
            "--labels, --preprocess, --metric, --require-certified and --device are about accuracy",
            hint="give --model and --eval with them",
        )
    with load(bundle, trust=given(trust)) as loaded:
        if model is None or evaluation is None:
            if as_json:
                click.echo(json.dumps({"bundle": str(bundle), "hashes": "ok", "accuracy": None}))
            else:
                stdout().print(f"{bundle}: every file matches its hash", soft_wrap=True, markup=False)
            return
        from greencc.compiler.check import verify_accuracy
        from greencc.compiler.options import CompileOptions
        from greencc.compiler.select import refuse

        options = CompileOptions(
            max_drop=max_drop,
            confidence=confidence,
            require_certified=require_certified,
            evaluation=evaluation,
        )
        with progress_bars() as progress:
            accuracy = verify_accuracy(
                loaded,
                model,
                evaluation,
                labels=labels,
                preprocess=preprocess,
                metric=metric,
                max_drop=max_drop,
                confidence=confidence,
                device=device,
                progress=progress,
            )
    if as_json:
        click.echo(
            json.dumps({"bundle": str(bundle), "hashes": "ok", "accuracy": asdict(accuracy)}, indent=2)
        )
    else:
        console = stdout()
        console.print(f"{bundle}: every file matches its hash", soft_wrap=True, markup=False)
        if accuracy.baseline is not None and accuracy.artifact is not None:
            console.print(
                f"{accuracy.metric}: {accuracy.baseline:.4f} -> {accuracy.artifact:.4f}", markup=False
            )
        console.print(accuracy.reason, markup=False)
    problem = refuse(accuracy, options)
    if problem is not None:
        raise problem
