"""`greencc compile`: model in, verified and measured bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greencc.cli.carbon import carbon_options, chosen
from greencc.cli.device import device_option, power_mode_option
from greencc.cli.types import BUDGET, EFFORTS, FORMATS, OBJECTIVES, PRECISIONS, RATE, SECONDS, SHARE

if TYPE_CHECKING:
    from greencc.planner.budget import BudgetLimit


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    default="",
    show_default="cpu, or what fits the device",
    help="cpu, openvino, tvm-cpu, tvm-arm, jetson, tensorrt or tensorrt-rtx, with options: cpu:threads=1, "
    "tvm-arm:preset=rpi5, jetson:jetson-nano (see greencc targets).",
)
@click.option(
    "--calibration",
    "-c",
    metavar="DATA",
    help="Unlabelled inputs that set INT8 ranges: .npz, .npy, a folder, module:function, or 'synthetic'.",
)
@click.option("--eval", "evaluation", metavar="DATA", help="Held-out inputs that certify the accuracy.")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels in a file of their own.")
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="TOML preprocessing spec for image folders."
)
@click.option("--metric", metavar="MODULE:FUNCTION", help="Score samples with your own function.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option(
    "--max-drop", type=SHARE, default="1%", show_default=True, help="Largest accuracy drop accepted."
)
@click.option("--confidence", type=SHARE, default="95%", show_default=True, help="Of the certificate.")
@click.option("--require-certified", is_flag=True, help="Exit 3 rather than ship an uncertified artifact.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="TOML recipe instead of greencc's own choice."
)
@click.option(
    "--passes",
    metavar="LIST",
    help="Passes after the clean-up, instead of greencc's own choice: prune:ratio=0.3,decompose:tucker,quantize.",
)
@click.option("--samples", type=int, default=256, show_default=True, help="Calibration samples used at most.")
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default="standard",
    show_default=True,
    help="How long to measure, how many ways to quantize are tried, and how many plans are built (4, 14, 40).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the data splits.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    default="qdq",
    show_default=True,
    help="How static INT8 is written: float operators between Q/DQ pairs, or integer operators.",
)
@click.option(
    "--search-time",
    type=SECONDS,
    default="5m",
    show_default=True,
    help="Longest time spent on finding the layers that must stay in float.",
)
@click.option(
    "--budget",
    type=BUDGET,
    default=(),
    metavar="LIMITS",
    help="What the artifact may take, e.g. 5W,33ms,40MB (W, mJ, ms [p50|p95|p99], MB, MACs): plans layer by layer.",
)
@click.option(
    "--minimize",
    type=click.Choice(OBJECTIVES),
    help="What the plan minimises within the budget [default: energy]; plans without a budget, too.",
)
@click.option("--rate", type=RATE, help="Requests per second that a budget in W is for [default: flat out].")
@click.option(
    "--time-budget", type=SECONDS, default="10m", show_default=True, help="Longest time that planning takes."
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="ENGINE",
    help="Where candidates are evaluated: local, ray, ray://HOST:PORT or HOST:PORT.",
)
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that evaluate candidates.")
@click.option(
    "--tune",
    type=SECONDS,
    help="Time to spend on finding faster kernels, e.g. 10m, where the target generates code (tvm-cpu).",
)
@device_option("Build, verify and measure")
@power_mode_option
@carbon_options
@click.option("--no-cache", is_flag=True, help="Neither use nor keep results of earlier compiles.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Bundle folder [default: MODEL.greencc]."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print report.json to standard output and nothing else there."
)
def command(
    model: Path,
    target: str,
    calibration: str | None,
    evaluation: str | None,
    labels: Path | None,
    preprocess: Path | None,
    metric: str | None,
    precision: str,
    max_drop: float,
    confidence: float,
    require_certified: bool,
    recipe: Path | None,
    passes: str | None,
    samples: int,
    effort: str,
    seed: int,
    fmt: str,
    search_time: float,
    budget: tuple[BudgetLimit, ...],
    minimize: str | None,
    rate: float | None,
    time_budget: float,
    engine: str,
    workers: int,
    tune: float | None,
    device: str,
    set_power_mode: str | None,
    grid_intensity: float | None,
    country: str | None,
    embodied: float | None,
    lifetime: float | None,
    no_cache: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compile MODEL (ONNX) into a bundle: artifact, manifest, report.

    The artifact is verified against the model on held-out data and measured beside it. With
    --precision auto it is whatever form measured best within --max-drop; that may be the
    cleaned-up FP32 model, and the report says so.

    With --budget or --minimize every layer is decided on its own: what to prune, factorise,
    quantize or leave, on measured cost, so that the whole keeps the budget (docs/planner.md).
    Where the target's times are estimated (jetson, tvm-arm) it is forms of the whole model and
    power modes that are chosen among, by estimate.
    """
    from greencc.cli.console import progress_bars, stdout
    from greencc.compiler import CompileOptions, compile_model
    from greencc.compiler.options import Effort, Precision, QuantizedFormat
    from greencc.planner.budget import Objective
    from greencc.report import dump_report, summary

    options = CompileOptions(
        target=target,
        calibration=calibration,
        evaluation=evaluation,
        labels=labels,
        preprocess=preprocess,
        metric=metric,
        precision=Precision(precision),
        max_drop=max_drop,
        confidence=confidence,
        require_certified=require_certified,
        recipe=recipe,
        passes=passes,
        samples=samples,
        effort=Effort(effort),
        seed=seed,
        format=QuantizedFormat(fmt),
        search_seconds=search_time,
        cache=not no_cache,
        carbon=chosen(grid_intensity, country, embodied, lifetime),
        budget=budget,
        minimize=None if minimize is None else Objective(minimize),
        rate=rate,
        time_budget=time_budget,
        engine=engine,
        workers=workers,
        tune=tune,
        device=device,
        set_power_mode=set_power_mode,
    )
    with progress_bars() as progress:
        bundle = compile_model(model, options, output=output, force=force, progress=progress)
    if as_json:
        click.echo(dump_report(bundle.report), nl=False)
        return
    console = stdout()
    console.print(summary(bundle.report))
    console.print(f"Report: {bundle.path / 'report.html'}", soft_wrap=True)
