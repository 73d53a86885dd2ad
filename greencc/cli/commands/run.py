"""`greencc run`: inference with a bundle, from file to file."""

from __future__ import annotations

from pathlib import Path

import click

from greencc.cli.device import device_option
from greencc.cli.trusting import given, trust_option


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input", "-i", "source", required=True, metavar="DATA", help=".npz, .npy, folder or module:function."
)
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The .npz file to write."
)
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="TOML preprocessing spec for image folders."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per run.")
@device_option("Run")
@trust_option
def command(
    bundle: Path,
    source: str,
    output: Path,
    preprocess: Path | None,
    batch: int,
    device: str,
    trust: tuple[str, ...],
) -> None:
    """Run BUNDLE on every sample of DATA and write the outputs, stacked on the first axis.

    The bundle's hashes are checked before anything of it is loaded. Compiled code in it runs only if it is trusted.
    """
    import zipfile
    from contextlib import ExitStack

    import numpy as np

    from greencc.bundle import load
    from greencc.calibration import open_data
    from greencc.cli.console import progress_bars, stdout
    from greencc.cli.paths import refuse_inside
    from greencc.compiler.on_device import opened_engine
    from greencc.core.errors import InputError, UsageError
    from greencc.core.files import atomic_file

    if output.suffix != ".npz":
        raise UsageError(f"--output is {output}", hint="outputs are written as an .npz file")
    refuse_inside(output, bundle)
    with load(bundle, trust=given(trust)) as loaded, progress_bars() as progress, ExitStack() as opened:
        engine = opened_engine(loaded, device, progress, opened)
        data = open_data(source, engine.inputs, preprocess=preprocess, role="input")
        found: dict[str, list[np.ndarray]] = {spec.name: [] for spec in engine.outputs}
        for piece in progress(data.batches(batch), label="Running", total=-(-data.count // batch)):
            for name, values in engine.run(piece.feeds).items():
                found[name].append(values)
    try:
        stacked = {name: np.concatenate(pieces) for name, pieces in found.items()}
    except ValueError as error:
        raise InputError(
            f"the outputs of {bundle} differ in shape from sample to sample and cannot be stacked: {error}",
            hint="use the Python API: greencc.load(bundle).run(feeds)",
        ) from error
    with atomic_file(output) as work, zipfile.ZipFile(work, "w") as archive:
        for name, values in stacked.items():
            # Not np.savez: an output may be called "file", which is that function's own parameter.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, values, allow_pickle=False)
    stdout().print(f"{data.count} samples -> {output}", soft_wrap=True)
