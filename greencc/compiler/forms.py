"""The forms a compile considers: the model as it came, cleaned up, and in lower precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.data import Splits
from greencc.compiler.options import Precision
from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.core.recipe import load_recipe
from greencc.core.report import PassRecord
from greencc.passes import PASSES, default_cleanup
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.quantize_int8 import QuantizeInt8, RangeMethod
from greencc.passes.quantize_weights import QuantizeWeights

ORIGINAL_RANK, CLEANED_RANK, HALF_RANK, INT8_RANK = range(4)


@dataclass
class Form:
    """A candidate: the model after `passes`, and the artifact built from it.

    `rank` orders forms from safe (0, the original) to aggressive, as the certificate wants them.
    """

    name: str
    precision: Precision
    rank: int
    model: ir.Model
    artifact: Path
    passes: tuple[Pass, ...] = ()
    records: list[PassRecord] = field(default_factory=list)
    applied: bool = True


class FormBuilder:
    """Builds forms one after another, each from the nearest one already built."""

    def __init__(self, session: Session, source: ir.Model, splits: Splits, samples: Sequence[Feeds]) -> None:
        self._session = session
        self._splits = splits
        self._capabilities = session.target.capabilities()
        self._context = Context(
            capabilities=self._capabilities,
            build=session.target.reference,
            samples=samples,
            calibration=splits.calibration,
            progress=session.progress,
            observe=session.target.calibration_engine,
        )
        self._source = source
        self._cleaned: Form | None = None

    def cleaned(self) -> Form:
        """The model after the target's clean-up passes: the same function, fewer nodes."""
        if self._cleaned is None:
            steps = default_cleanup(self._capabilities)
            self._cleaned = self._build("fp32", Precision.FP32, CLEANED_RANK, self._source, steps)
        return self._cleaned

    def int8(self, method: RangeMethod) -> Form:
        """Static INT8 with ranges set by `method`."""
        step = QuantizeInt8(method=method)
        return self._extend(f"int8-{method.value}", Precision.INT8, INT8_RANK, step)

    def float16(self) -> Form:
        return self._extend("fp16", Precision.FP16, HALF_RANK, ConvertFloat16())

    def recipe(self, path: Path) -> Form:
        """Exactly what a recipe file says."""
        steps = load_recipe(path, PASSES)
        lossy = any(step.lossy for step in steps)
        kinds = {type(step) for step in steps}
        if kinds & {QuantizeInt8, QuantizeWeights}:
            precision = Precision.INT8
        else:
            precision = Precision.FP16 if ConvertFloat16 in kinds else Precision.FP32
        return self._build("recipe", precision, INT8_RANK if lossy else CLEANED_RANK, self._source, steps)

    def _extend(self, name: str, precision: Precision, rank: int, step: Pass) -> Form:
        base = self.cleaned()
        form = self._build(name, precision, rank, base.model, (step,))
        form.passes = base.passes + form.passes
        form.records = base.records + form.records
        return form

    def _build(
        self, name: str, precision: Precision, rank: int, start: ir.Model, steps: tuple[Pass, ...]
    ) -> Form:
        with self._session.phase(f"building {name}"):
            model, records = Pipeline(self._context).run(start, steps)
            folder = self._session.scratch / name
            folder.mkdir()
            target = self._session.target
            artifact = target.build(target.lower(model), folder)
        applied = any(record.changed for record in records)
        return Form(name, precision, rank, model, artifact, steps, records, applied)
