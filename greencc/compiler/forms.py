"""The forms a compile considers: the model as it came, cleaned up, and in lower precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.data import Splits
from greencc.compiler.named import recipe_precision
from greencc.compiler.options import Precision, QuantizedFormat
from greencc.compiler.session import Session
from greencc.compiler.shards import WorkerShards
from greencc.compiler.tuning import tune
from greencc.core.data import Feeds
from greencc.core.engine import Target, Timing
from greencc.core.errors import InputError
from greencc.core.gradients import Differentiable
from greencc.core.graph import constant_tensor, is_op
from greencc.core.pass_list import parse_passes
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline
from greencc.core.recipe import load_recipe
from greencc.core.report import PassRecord
from greencc.measure.latency import quick_compare
from greencc.measure.profiles import GLANCE
from greencc.passes import PASSES, default_cleanup
from greencc.passes._affine import affine_of
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.float16 import ConvertFloat16, HalfType
from greencc.passes.fold_affine import normalizes_input
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights, WeightMethod
from greencc.passes.upgrade_opset import UpgradeOpset
from greencc.torch_graph import differentiate

ORIGINAL_RANK, CLEANED_RANK, HALF_RANK, DYNAMIC_RANK, MIXED_RANK, INT8_RANK, PLAN_RANK = range(7)
# Models that were prepared and are kept, in case that another form starts from one.
_PREPARED = 6


# A graph, the passes that made it of the original, and what they did.
_Start = tuple[ir.Model, tuple[Pass, ...], list[PassRecord]]


@dataclass
class Form:
    """A candidate: the model after `passes`, and the artifact built from it.

    Attributes:
        name: For people.
        precision: Its numeric form.
        rank: Orders forms from safe (0, the original) to aggressive, as the certificate wants them.
        model: The graph the artifact was built from.
        artifact: The main file.
        passes: From the original model to this one.
        records: What each of them did.
        applied: Whether any pass changed anything.
        quantized: The Q/DQ graph, where `model` has integer operators instead; otherwise `model`.
        float_model: What was quantized: the same values under the same names, in float.
        fitted: Whether calibration data shaped it: ranges, rounding, scores, repairs.
        target: What it was built for, where that is not the target of the compile.
    """

    name: str
    precision: Precision
    rank: int
    model: ir.Model
    artifact: Path
    passes: tuple[Pass, ...] = ()
    records: list[PassRecord] = field(default_factory=list)
    applied: bool = True
    quantized: ir.Model | None = None
    float_model: ir.Model | None = None
    fitted: bool = False
    target: Target | None = None

    def __post_init__(self) -> None:
        self.fitted |= self.precision.needs_calibration

    @property
    def built(self) -> Path | None:
        """The main file of what was built; None of the original, which may lie in a folder with anything else."""
        return None if self.rank == ORIGINAL_RANK else self.artifact

    @property
    def qdq(self) -> ir.Model:
        return self.model if self.quantized is None else self.quantized


class FormBuilder:
    """Builds forms one after another, each from the nearest one already built."""

    def __init__(self, session: Session, source: ir.Model, splits: Splits, samples: Sequence[Feeds]) -> None:
        self._session = session
        self._capabilities = session.target.capabilities()
        self.context = Context(
            capabilities=self._capabilities,
            build=session.target.reference,
            samples=samples,
            calibration=splits.calibration,
            progress=session.progress,
            observe=session.target.calibration_engine,
            observe_shards=WorkerShards(session),
            cache=session.cache,
            # An estimate is no measurement: passes that want one say that they had none. On a device every look would
            # be a build of its own, of minutes.
            time=self._time if session.estimator is None and not session.on_device else None,
            gradients=self._differentiate,
        )
        self._calibrated = splits.calibration is not None
        self._source = source
        self._cleaned: Form | None = None
        self._prepared: dict[tuple[tuple[Pass, ...], bool], tuple[ir.Model, list[PassRecord]]] = {}
        self._integer_base: _Start | None = None
        self._folders = 0

    def cleaned(self) -> Form:
        """The model after the target's clean-up passes: the same function, fewer nodes."""
        if self._cleaned is None:
            steps = default_cleanup(self._capabilities)
            self._cleaned = self._build("fp32", Precision.FP32, CLEANED_RANK, self._source, steps)
        return self._cleaned

    def prepared(
        self, steps: tuple[Pass, ...], *, integers: bool = True
    ) -> tuple[ir.Model, list[PassRecord]]:
        """The cleaned-up model after passes, kept for the next call; `integers`: ready to be quantized."""
        key = steps, integers
        if key not in self._prepared:
            start = self._for_integers()[0] if integers else self.cleaned().model
            while len(self._prepared) >= _PREPARED:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = Pipeline(self.context).run(start, steps)
        return self._prepared[key]

    def _for_integers(self) -> _Start:
        """What INT8 starts from: as `cleaned`, but for inputs whose features need their own scaling first."""
        if self._integer_base is None:
            base = self.cleaned()
            self._integer_base = base.model, base.passes, base.records
            nodes = (affine_of(node) for node in self._source.graph)
            if any(affine is not None and normalizes_input(affine) for affine in nodes):
                steps = default_cleanup(self._capabilities, fold_inputs=False)
                model, records = Pipeline(self.context).run(self._source, steps)
                self._integer_base = model, steps, records
        return self._integer_base

    def static(
        self,
        name: str,
        prepare: tuple[Pass, ...],
        quantize: QuantizeInt8,
        precision: Precision = Precision.INT8,
        rank: int = INT8_RANK,
        extra: tuple[Pass, ...] = (),
    ) -> Form:
        """Static INT8 and then `extra`, in the format asked for."""
        base, base_passes, base_records = self._for_integers()
        model, records = self.prepared(prepare)
        # Of the model before `prepare`, as `passes_of` has them, which builds nothing.
        steps = (quantize, *extra, *_tables(base))
        form = self._build(name, precision, rank, model, steps)
        form.applied = form.records[0].changed > 0
        if self._session.options.format is QuantizedFormat.QOPERATOR and form.applied:
            quantized = form.model
            records_before = form.records
            form = self._build(name, precision, rank, quantized, (ConvertQOperator(),))
            form.quantized, form.passes = quantized, (*steps, *form.passes)
            form.records = records_before + form.records
        form.float_model = model
        form.passes = base_passes + prepare + form.passes
        form.records = base_records + records + form.records
        return form

    def planned(
        self,
        name: str,
        prepare: tuple[Pass, ...],
        quantize: QuantizeInt8 | None,
        extra: tuple[Pass, ...],
    ) -> Form:
        """A plan: changes of the structure, static INT8 of some layers, other arithmetic of others."""
        if quantize is not None:
            form = self.static(name, prepare, quantize, Precision.MIXED, PLAN_RANK, extra)
        else:
            base = self.cleaned()
            model, records = self.prepared(prepare, integers=False)
            form = self._build(name, recipe_precision((*prepare, *extra)), PLAN_RANK, model, extra)
            form.passes = base.passes + prepare + form.passes
            form.records = base.records + records + form.records
        form.applied = True
        form.fitted |= self._calibrated and any(map(_fits, form.passes))
        return form

    def passes_of(
        self, prepare: tuple[Pass, ...], quantize: QuantizeInt8 | None, extra: tuple[Pass, ...]
    ) -> tuple[Pass, ...]:
        """All passes of a plan from the original model, as `planned` runs them."""
        if quantize is None:
            return (*self.cleaned().passes, *prepare, *extra)
        model, passes, _ = self._for_integers()
        written = self._session.options.format is QuantizedFormat.QOPERATOR
        return (
            *passes,
            *prepare,
            quantize,
            *extra,
            *_tables(model),
            *((ConvertQOperator(),) if written else ()),
        )

    def model_of(
        self, prepare: tuple[Pass, ...], quantize: QuantizeInt8 | None, extra: tuple[Pass, ...]
    ) -> ir.Model:
        """The graph of a plan, without an artifact.

        Raises:
            InputError: A pass that is to change the model does not.
        """
        model = self.restructured(prepare, integers=quantize is not None)
        steps = (() if quantize is None else (quantize,)) + extra
        return Pipeline(self.context).run(model, steps)[0]

    def restructured(self, prepare: tuple[Pass, ...], *, integers: bool) -> ir.Model:
        """The cleaned-up model after the structural passes of a plan.

        Raises:
            InputError: A pass that is to change the model does not.
        """
        model, records = self.prepared(prepare, integers=integers)
        for step, record in zip(prepare, records, strict=True):
            if step.lossy and not record.changed:
                why = record.findings[-1].message if record.findings else "it changed nothing"
                raise InputError(f"{step.name}: {why}")
        return model

    def on(self, form: Form, target: Target, name: str) -> Form:
        """A form built for another run time of the same device class.

        A statically quantized one is quantized anew by the same passes, which ask that run time where its kernels want
        integers. Any other is the same graph.

        Raises:
            GreenccError: It cannot be built there.
        """
        # A run time of its own is a difference, even where no pass changed anything.
        model, records, applied = form.model, form.records, True
        with self._session.phase(f"building for {target.name}"):
            if form.float_model is not None and not isinstance(form.passes[-1], ConvertQOperator):
                first = max(i for i, step in enumerate(form.passes) if isinstance(step, QuantizeInt8))
                context = replace(
                    self.context,
                    capabilities=target.capabilities(),
                    build=target.reference,
                    observe=target.calibration_engine,
                )
                model, again = Pipeline(context).run(form.float_model, form.passes[first:])
                records, applied = [*records[:first], *again], again[0].changed > 0
            artifact = target.build(target.lower(model), self._folder(f"on-{target.name}"))
        return replace(
            form,
            name=name,
            rank=PLAN_RANK,
            model=model,
            artifact=artifact,
            records=records,
            applied=applied,
            target=target,
        )

    def half(self, precision: Precision) -> Form:
        """FP16 or BF16: arithmetic where the target has it, else storage."""
        element = HalfType.BFLOAT16 if precision is Precision.BF16 else HalfType.FLOAT16
        return self._extend(precision.value, precision, HALF_RANK, (ConvertFloat16(element=element),))

    def dynamic(self) -> Form:
        """Dynamic INT8; what has no such form has its weights stored as INT8."""
        steps = (QuantizeDynamic(), QuantizeWeights(ops=_STORED, min_elements=SMALLEST_WEIGHT))
        return self._extend("int8-dynamic", Precision.INT8_DYNAMIC, DYNAMIC_RANK, steps)

    def weights(self, precision: Precision) -> Iterator[Form]:
        """Weights in 8 or 4 bits, arithmetic in float: forms from the smallest to the safest."""
        for steps in weight_only(precision, self._calibrated):
            bits = {step.bits for step in steps if isinstance(step, QuantizeWeights) and step.ops != _TABLES}
            kind = Precision.INT4_WEIGHTS if 4 in bits else Precision.INT8_WEIGHTS
            name = f"{kind.value}-convolutions-8" if bits == {4, 8} else kind.value
            yield self._extend(name, kind, INT8_RANK, steps)

    def recipe(self, path: Path) -> Form:
        """Exactly what a recipe file says."""
        return self._asked("recipe", load_recipe(path, PASSES), (self._source, (), []))

    def passes(self, text: str) -> Form:
        """A list of passes, after the clean-up."""
        steps = parse_passes(text, PASSES)
        if any(isinstance(step, QuantizeInt8) for step in steps):
            return self._asked("passes", steps, self._for_integers())
        base = self.cleaned()
        return self._asked("passes", steps, (base.model, base.passes, base.records))

    def _asked(self, name: str, steps: tuple[Pass, ...], start: _Start) -> Form:
        model, passes, records = start
        rank = INT8_RANK if any(step.lossy for step in steps) else CLEANED_RANK
        precision = recipe_precision(steps)
        ready: ir.Model | None = None
        if steps and isinstance(steps[-1], QuantizeInt8):
            # What is quantized is kept, to tell the error of each layer by.
            with self._session.phase(f"building {name}"):
                ready, done = Pipeline(self.context).run(model, steps[:-1], later=steps[-1:])
            model, passes, records, steps = ready, passes + steps[:-1], records + done, steps[-1:]
        form = self._build(name, precision, rank, model, steps)
        form.passes, form.records, form.float_model = passes + form.passes, records + form.records, ready
        form.applied |= any(record.changed for record in records)
        form.fitted |= self._calibrated and any(map(_fits, form.passes))
        return form

    def _time(self, models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        """What passes measure with: every model built for the target, in turns."""
        target, engines = self._session.target, []
        try:
            for model in models:
                engines.append(target.open(target.build(target.lower(model), self._folder("timed"))))
            confidence = self._session.options.confidence
            found = quick_compare(engines, feeds, profile=GLANCE, confidence=confidence)
        finally:
            for engine in engines:
                engine.close()
        return Timing(found.median_ms, found.ratios)

    def _folder(self, name: str) -> Path:
        """A new folder for an artifact."""
        self._folders += 1
        folder = self._session.scratch / f"{self._folders:03d}-{name}"
        folder.mkdir()
        return folder

    def _differentiate(self, model: ir.Model, by: Sequence[str]) -> Differentiable:
        """What passes take gradients with."""
        threads = int(self._session.target.device().facts.get("threads", "1"))
        return differentiate(model, by, threads=threads)

    def _extend(self, name: str, precision: Precision, rank: int, steps: tuple[Pass, ...]) -> Form:
        base = self.cleaned()
        form = self._build(name, precision, rank, base.model, steps)
        form.passes = base.passes + form.passes
        form.records = base.records + form.records
        return form

    def _build(
        self, name: str, precision: Precision, rank: int, start: ir.Model, steps: tuple[Pass, ...]
    ) -> Form:
        with self._session.phase(f"building {name}"):
            model, records = Pipeline(self.context).run(start, steps)
        tune(self._session, model, name)
        with self._session.phase(f"building {name}"):
            target = self._session.target
            artifact = target.build(target.lower(model), self._folder(name))
        # What only prepares (a newer opset) is no conversion.
        lossy = any(step.lossy for step in steps)
        applied = any(
            record.changed for step, record in zip(steps, records, strict=True) if step.lossy or not lossy
        )
        return Form(name, precision, rank, model, artifact, steps, records, applied)


def _fits(step: Pass) -> bool:
    """Whether calibration data shape what a pass does."""
    if isinstance(step, QuantizeWeights):
        return step.method is WeightMethod.GPTQ
    return step.lossy and not isinstance(step, QuantizeDynamic | ConvertFloat16)


_TABLES = ("Gather",)
_STORED = ("Conv", "ConvTranspose", "Gather")
# Below this many weights, scales and nodes take back what the integers save.
SMALLEST_WEIGHT = 1024
BLOCK = 32


def _tables(model: ir.Model) -> tuple[Pass, ...]:
    """Rows that are looked up need no integer kernels, and are most of a small language model."""
    return (QuantizeWeights(ops=("Gather",), min_elements=SMALLEST_WEIGHT),) if _has_table(model) else ()


def _has_table(model: ir.Model) -> bool:
    tables = (constant_tensor(node.inputs[0]) for node in model.graph if is_op(node, "Gather"))
    return any(
        tensor is not None and tensor.dtype is ir.DataType.FLOAT and tensor.size >= SMALLEST_WEIGHT
        for tensor in tables
    )


def weight_only(precision: Precision, calibrated: bool) -> tuple[tuple[Pass, ...], ...]:
    """The passes of weight-only forms, from the smallest to the safest.

    Tables take 8 bits. At 4 bits GPTQ rounds where there are data; convolutions also get zero points, and the second
    form leaves them 8 bits: they have few weights to hide an error among (docs/quantization.md). The
    last is all 8 bits.
    """
    tables = QuantizeWeights(ops=_TABLES, min_elements=SMALLEST_WEIGHT)
    products = QuantizeWeights(ops=("Gemm", "MatMul"), min_elements=SMALLEST_WEIGHT, block_size=BLOCK)
    filters = QuantizeWeights(ops=("Conv", "ConvTranspose"), min_elements=SMALLEST_WEIGHT)
    eight = (tables, products, filters)
    if precision is Precision.INT8_WEIGHTS:
        return (eight,)
    method = WeightMethod.GPTQ if calibrated else WeightMethod.NEAREST
    products = replace(products, bits=4, method=method)
    small = replace(filters, bits=4, method=method, symmetric=False)
    # 4-bit types exist since opset 21.
    newer = UpgradeOpset(target=21, below=21)
    return (newer, tables, products, small), (tables, products, filters), eight
