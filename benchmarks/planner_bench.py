"""Build what passes make of a model, judge it and time it: one set of data and one baseline for a whole job.

The search and the enumeration of the planner's benchmark drive greencc's own passes with it, as `greencc compile` does:
the same clean-up, the same capabilities, the same gate.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.planner_tools import loss_of
from benchmarks.quality import Remembering
from greencc.calibration import open_data, take
from greencc.core.data import DataSource, Feeds
from greencc.core.describe import input_specs, nodes_cost
from greencc.core.engine import Engine, Target
from greencc.core.errors import GreenccError
from greencc.core.model import load_model
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.core.recipe import make_pass
from greencc.core.shapes import bind_dims
from greencc.measure.latency import measure_latency
from greencc.measure.profiles import GLANCE, Profile
from greencc.passes import PASSES, default_cleanup
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets.cpu import CpuTarget
from greencc.verify.compare import compare

FEEDS = 16

Step = dict[str, Any]
"""A pass by name, with options, as a table of a recipe has them."""


def passes_of(steps: Sequence[Step]) -> tuple[Pass, ...]:
    """The passes that steps name."""
    return tuple(make_pass(step, PASSES) for step in steps)


class NothingDoneError(Exception):
    """No pass changed the model: it would be built and judged for nothing."""


@dataclass(frozen=True)
class Layer:
    """A node with weights, of the cleaned-up model."""

    name: str
    op_type: str
    macs: int


class Workbench:
    """A model with its data.

    Args:
        model: The original.
        calibration: `.npz`, of which `samples` are used.
        judging: `.npz` with labels: what decides whether a variant keeps its accuracy.
        metric: As `--metric` takes it.
        folder: Artifacts are built here.
        threads: That the target runs with.
    """

    def __init__(
        self,
        model: Path,
        calibration: Path,
        samples: int,
        judging: Path,
        metric: str | None,
        folder: Path,
        threads: int = 1,
    ) -> None:
        self.model, self.folder, self.metric = model, folder, metric
        self.target = CpuTarget(threads=threads)
        self.source = load_model(model)
        data = take(open_data(calibration, input_specs(self.source)), samples)
        self.context = Context(
            capabilities=self.target.capabilities(),
            build=self.target.reference,
            samples=[batch.feeds for batch in take(data, 2).batches(1)],
            calibration=data,
            observe=self.target.calibration_engine,
        )
        self.baseline = Remembering(CpuTarget().open(model))
        self.judging: DataSource = open_data(judging, self.baseline.inputs, role="evaluation")
        self.feeds: list[Feeds] = [batch.feeds for batch in take(self.judging, FEEDS).batches(1)]
        self._timed: Engine = self.target.open(model)
        self._bases: dict[bool, ir.Model] = {}
        self._count = 0

    def base(self, *, integers: bool) -> ir.Model:
        """The cleaned-up model; INT8 wants inputs that are scaled feature by feature to stay so."""
        if integers not in self._bases:
            steps = default_cleanup(self.context.capabilities, fold_inputs=not integers)
            self._bases[integers] = Pipeline(self.context).run(self.source, steps)[0]
        return self._bases[integers]

    def layers(self) -> list[Layer]:
        """Nodes with work to do, those with most first."""
        bound = bind_dims(
            self.base(integers=True), {name: value.shape for name, value in self.feeds[0].items()}
        )
        found = [
            Layer(str(node.name), node.op_type, cost.macs)
            for node, cost in zip(bound.graph, nodes_cost(bound), strict=True)
            if cost.macs and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        ]
        return sorted(found, key=lambda layer: (-layer.macs, layer.name))

    def has(self, *op_types: str) -> bool:
        """Whether the cleaned-up model has such nodes."""
        return any(node.op_type in op_types for node in self.base(integers=True).graph)

    def build(self, passes: Sequence[Pass]) -> Path:
        """The artifact after the clean-up and these passes, in a new folder.

        Raises:
            NothingDoneError: Some of them may change the function, and none did.
            GreenccError: A pass refuses, or the target does.
        """
        integers = any(isinstance(step, QuantizeInt8) for step in passes)
        built, records = Pipeline(self.context).run(self.base(integers=integers), passes)
        asked = [record for step, record in zip(passes, records, strict=True) if step.lossy]
        if asked and not any(record.changed for record in asked):
            raise NothingDoneError
        self._count += 1
        folder = self.folder / f"{self._count:03d}"
        folder.mkdir(parents=True)
        return self.target.build(self.target.lower(built), folder)

    def discard(self, artifact: Path) -> None:
        """Remove what `build` made."""
        if artifact.parent.parent == self.folder:
            shutil.rmtree(artifact.parent)

    def loss(self, artifact: Path, target: Target | None = None) -> float:
        """Share of accuracy lost on the judging data, or of decisions changed where there are no labels.

        Args:
            artifact: A main file.
            target: Of a bundle; None: ONNX Runtime.
        """
        engine = (target or CpuTarget()).open(artifact)
        try:
            seen = compare(self.baseline, engine, self.judging, metric=self.metric)
        finally:
            engine.close()
        return loss_of({"drop": seen.drop, "agreement": seen.agreement})

    def slowness(self, artifact: Path) -> float:
        """The artifact's latency by the original's, measured in turns for a glance."""
        engine = self.target.open(artifact)
        try:
            ratio = measure_latency((self._timed, engine), self.feeds, GLANCE).ratios[0]
        finally:
            engine.close()
        return 1.0 / ratio.value

    def latencies(self, artifacts: Sequence[tuple[Path, Target | None]], profile: Profile) -> list[float]:
        """Median milliseconds, all in turns; targets as in `loss`."""
        engines: list[Engine] = []
        try:
            for artifact, target in artifacts:
                engines.append((target or self.target).open(artifact))
            found = measure_latency(engines, self.feeds, profile)
        finally:
            for engine in engines:
                engine.close()
        return [latency.median for latency in found.latencies]

    def close(self) -> None:
        self._timed.close()
        self.baseline.close()


REFUSALS = (GreenccError, NothingDoneError)
"""What ends a variant rather than the job."""
