"""How well the times of single operations agree with those of the same nodes inside a model, in float and INT8.

python -m benchmarks.kernel_agreement MODEL.onnx ...        # inputs: the calibration.npz beside it, else random

Profiles that other processes slowed down are left out.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.compiler.charging import charge
from greencc.compiler.kernel_times import KernelTimes, Source
from greencc.compiler.layers import Origins
from greencc.compiler.micro import working_set
from greencc.compiler.profiling import Repeats, merged, quiet_profiles
from greencc.compiler.signatures import signatures
from greencc.core.cache import Cache
from greencc.core.data import Feeds
from greencc.core.describe import nodes_cost
from greencc.core.graph import ensure_names
from greencc.core.loading import load_model
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.core.rehearsal import carry_out
from greencc.core.shapes import bind_dims
from greencc.passes import default_cleanup
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget

# Whole microseconds say little of shorter kernels.
_LONG_US = 10.0


@dataclass(frozen=True)
class Pair:
    """Microseconds of a node inside its model, and alone."""

    name: str
    label: str
    inside: float
    alone: float


def compare(target: CpuTarget, model: ir.Model, feeds: Feeds, steps: tuple[Pass, ...]) -> list[Pair]:
    """Every weighted node of a cleaned-up model, after `steps`."""
    context = Context(target.capabilities(), target.reference, [feeds], observe=target.calibration_engine)
    ready, _ = carry_out(steps, model, [feeds], context)
    named = signatures(model, feeds)
    macs = {
        cost.name: cost.macs or 0
        for cost in nodes_cost(bind_dims(model, {name: array.shape for name, array in feeds.items()}))
    }
    repeats = Repeats(runs=20, least=4, most=12)
    with tempfile.TemporaryDirectory() as folder:
        artifact = target.build(target.lower(ready), Path(folder))
        profiles = quiet_profiles(lambda: target.profile(artifact, feeds, repeats.runs), repeats)
    charged = charge(merged(profiles), Origins(model), list(named), macs)
    times = KernelTimes(target, Cache(), working_set(named.values()))
    alone = times.measure(list(named.values()), steps)
    for finding in (*charged.findings, *times.findings):
        print(f"  {finding.message}")
    return [
        Pair(name, signature.label, charged.times[name], alone[signature].us)
        for name, signature in named.items()
        if name not in charged.shared and alone[signature].source is Source.MEASURED
    ]


def told(pairs: Sequence[Pair]) -> str:
    """Median and spread of the ratios alone / inside, and of the sums."""
    ratios = np.array([pair.alone / pair.inside for pair in pairs])
    low, high = np.percentile(ratios, [10, 90])
    total = sum(pair.alone for pair in pairs) / sum(pair.inside for pair in pairs)
    return f"{len(pairs):3} nodes: median {np.median(ratios):.3f}, 10-90 % {low:.3f}-{high:.3f}, total {total:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    target = CpuTarget(threads=1)
    for path in parser.parse_args().models:
        model = load_model(path)
        ensure_names(model)
        feeds = _feeds(model, path.with_name("calibration.npz"))
        context = Context(target.capabilities(), target.reference, [feeds], observe=target.calibration_engine)
        clean, _ = Pipeline(context).run(model, default_cleanup(target.capabilities()))
        found = {
            "float": compare(target, clean, feeds, ()),
            "INT8": compare(target, clean, feeds, (QuantizeInt8(),)),
        }
        for arithmetic, pairs in found.items():
            print(f"{path.parent.name} {arithmetic}, {len({pair.label for pair in pairs})} signatures")
            print(f"  all    {told(pairs)}")
            if long := [pair for pair in pairs if pair.inside >= _LONG_US]:
                print(f"  >10 us {told(long)}")
            worst = sorted(pairs, key=lambda pair: -abs(pair.alone - pair.inside))[:3]
            for pair in worst:
                print(f"    {pair.label}: {pair.inside:.1f} us inside, {pair.alone:.1f} alone")
        before = {pair.name: pair for pair in found["float"] if pair.inside >= _LONG_US}
        gains = [
            (before[pair.name].alone / pair.alone) / (before[pair.name].inside / pair.inside)
            for pair in found["INT8"]
            if pair.name in before
        ]
        if gains:
            low, middle, high = np.percentile(gains, [10, 50, 90])
            print(f"  speed-up by INT8, alone / inside: median {middle:.3f}, 10-90 % {low:.3f}-{high:.3f}")


def _feeds(model: ir.Model, data: Path) -> Feeds:
    if data.is_file():
        with np.load(data, allow_pickle=False) as archive:
            return {str(value.name): archive[str(value.name)][:1] for value in model.graph.inputs}
    rng = np.random.default_rng(0)
    shapes = {
        str(value.name): [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
        for value in model.graph.inputs
    }
    assert all(math.prod(shape) for shape in shapes.values())
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


if __name__ == "__main__":
    main()
