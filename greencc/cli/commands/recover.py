"""`greencc recover`: fine-tune the network of a bundle with the original model as the teacher."""

from __future__ import annotations

from pathlib import Path

import click

from greencc.cli.types import EFFORTS, SHARE

OPTIMIZERS = ("adam", "sgd")
"""Values of greencc.recover.Optimizer, repeated so that --help imports nothing; a test compares them."""


@click.command("recover")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, type=click.Path(path_type=Path), help="The original model, which teaches."
)
@click.option("--data", required=True, metavar="DATA", help="Training inputs, with or without labels.")
@click.option("--eval", "evaluation", metavar="DATA", help="Held-out inputs [default: half of --data].")
@click.option("--labels", is_flag=True, help="Learn from the labels in --data as well.")
@click.option("--epochs", type=int, default=10, show_default=True, help="Passes over the data.")
@click.option("--batch", type=int, default=64, show_default=True, help="Samples per step.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate at its peak.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adam", show_default=True)
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Of the distillation.")
@click.option("--features", type=float, default=1.0, show_default=True, help="Weight of inner values.")
@click.option(
    "--alpha", type=float, default=0.7, show_default=True, help="With --labels: the teacher's share."
)
@click.option("--mixup", is_flag=True, help="Blend samples: helps where there are few.")
@click.option("--shift", type=int, default=0, show_default=True, help="Move images by up to N pixels.")
@click.option("--flip", is_flag=True, help="Mirror images left to right.")
@click.option(
    "--group-sparsity",
    type=float,
    default=0.0,
    show_default=True,
    help="Empty whole channels, then cut them.",
)
@click.option(
    "--int8-share", type=SHARE, default="25%", show_default=True, help="INT8 bundles: epochs with rounding."
)
@click.option("--evaluator", metavar="MODULE:FUNCTION", help="Score networks by your own function.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Score samples with your own function.")
@click.option(
    "--max-drop", type=SHARE, default="1%", show_default=True, help="Largest accuracy drop accepted."
)
@click.option("--confidence", type=SHARE, default="95%", show_default=True, help="Of the certificate.")
@click.option("--require-certified", is_flag=True, help="Exit 3 rather than ship an uncertified artifact.")
@click.option("--effort", type=click.Choice(EFFORTS), default="standard", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the splits and of the training.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep checkpoints.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Bundle folder [default: NAME-recovered.greencc]."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print report.json to standard output and nothing else there."
)
def command(
    bundle: Path,
    model: Path,
    data: str,
    evaluation: str | None,
    labels: bool,
    epochs: int,
    batch: int,
    lr: float,
    optimizer: str,
    temperature: float,
    features: float,
    alpha: float,
    mixup: bool,
    shift: int,
    flip: bool,
    group_sparsity: float,
    int8_share: float,
    evaluator: str | None,
    metric: str | None,
    max_drop: float,
    confidence: float,
    require_certified: bool,
    effort: str,
    seed: int,
    no_cache: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fine-tune the network of BUNDLE, and write a new bundle (needs greencc[finetune]).

    The original model teaches the compressed one on --data: its outputs, and inner values that
    both have. Quantized networks are trained with their rounding in the last epochs. The energy
    this takes is measured, or estimated, and reported.

    An interrupted run goes on where it was, when it is started again.
    """
    from greencc.cli.console import progress_bars, stdout
    from greencc.cli.paths import refuse_inside
    from greencc.compiler.options import Effort
    from greencc.recover import Optimizer, RecoverJob, RecoverOptions, recover_bundle
    from greencc.report import dump_report, summary

    job = RecoverJob(
        bundle=bundle,
        model=model,
        data=data,
        evaluation=evaluation,
        evaluator=evaluator,
        metric=metric,
        max_drop=max_drop,
        confidence=confidence,
        require_certified=require_certified,
        effort=Effort(effort),
        cache=not no_cache,
        options=RecoverOptions(
            epochs=epochs,
            batch=batch,
            lr=lr,
            optimizer=Optimizer(optimizer),
            temperature=temperature,
            features=features,
            labels=labels,
            alpha=alpha,
            mixup=mixup,
            shift=shift,
            flip=flip,
            group_sparsity=group_sparsity,
            int8_share=int8_share,
            seed=seed,
        ),
    )
    if output is not None:
        refuse_inside(output, bundle)
    with progress_bars() as progress:
        recovered = recover_bundle(job, output=output, force=force, progress=progress)
    report = recovered.report
    if as_json:
        click.echo(dump_report(report), nl=False)
        return
    console = stdout()
    console.print(summary(report))
    for finding in report.passes[-1].findings:
        console.print(finding.message, markup=False, soft_wrap=True)
    console.print(f"Report: {recovered.path / 'report.html'}", soft_wrap=True)
