"""Choose among forms: accuracy on the planning split, latency measured side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from greencc.compiler.advice import output_errors, way_out
from greencc.compiler.contender import Contender, contender, observed_loss
from greencc.compiler.data import Splits
from greencc.compiler.forms import CLEANED_RANK, Form, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.session import Session
from greencc.compiler.static import static_int8
from greencc.compiler.untimed import BY_ESTIMATE
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import InputError, LimitError, UnavailableError
from greencc.core.report import NOTHING_CONVERTED, Accuracy, Candidate, Interval, LayerChoice
from greencc.measure.latency import quick_compare

# A smaller gain than this is not worth leaving a safer form for, whatever the interval says.
_WORTH = 0.02
WORTH_ESTIMATED = 0.1
"""The same for what was only estimated."""


@dataclass(frozen=True)
class Safer:
    """A form with less error than the one before it, and what was decided for each layer."""

    contender: Contender
    layers: tuple[LayerChoice, ...] = ()


@dataclass
class Choice:
    """Contenders in order of preference, the chosen one first.

    `all` has every form that was built; `layers` what was decided for each layer of a statically quantized one.
    `safer` builds further forms of the precision that was asked for, in case that none of the ranked ones holds.
    """

    ranked: list[Contender]
    all: list[Contender] = field(default_factory=list)
    layers: tuple[LayerChoice, ...] = ()
    safer: Iterator[Safer] = field(default_factory=lambda: iter(()))

    def next_safer(self) -> Contender | None:
        """Build the next safer form, make it the preferred one, and return it; None where there is none."""
        found = next(self.safer, None)
        if found is None:
            return None
        self.ranked, self.layers = [found.contender], found.layers
        self.all.append(found.contender)
        return found.contender

    def candidates(self, chosen: Contender) -> tuple[Candidate, ...]:
        """What the report says of every form."""
        return tuple(
            Candidate(
                item.form.name,
                item.latency_ms,
                item.loss if item.form.applied or item is chosen else None,
                item is chosen,
                item.explanation,
            )
            for item in self.all
        )

    def close(self) -> None:
        for item in self.all:
            item.engine.close()


def choose(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> Choice:
    """Build the forms that the options ask for, and rank them.

    Raises:
        LimitError: The precision that was asked for loses more accuracy than allowed.
        UnavailableError: The target has no kernels for it.
    """
    options, capabilities = session.options, session.target.capabilities()
    wanted = options.precision
    if options.recipe is not None:
        return _by_name(session, builder.recipe(options.recipe), baseline, splits)
    if options.passes is not None:
        return _by_name(session, builder.passes(options.passes), baseline, splits)
    if wanted is Precision.AUTO:
        return _automatic(session, builder, baseline, original, splits, feeds)
    if wanted is Precision.FP32:
        return _only(session, builder.cleaned(), baseline, splits)
    if wanted.needs_calibration:
        found = static_int8(session, builder, baseline, splits, feeds)
        _required(found.best.form, "INT8", capabilities.int8 is not None)
        safer = (Safer(item.best, item.choices) for item in found.safer)
        return Choice([found.best], found.all, found.choices, safer)
    if wanted in (Precision.FP16, Precision.BF16):
        form = _required(builder.half(wanted), wanted.value.upper(), supported=True)
        if not (capabilities.float16 if wanted is Precision.FP16 else capabilities.bfloat16):
            session.warn(
                f"the target computes in FP32: weights are stored in {wanted.value.upper()}, "
                "which halves the file and leaves speed and energy as they are"
            )
        return _only(session, form, baseline, splits)
    if wanted is Precision.INT8_DYNAMIC:
        return _only(
            session,
            _required(builder.dynamic(), "dynamic INT8", capabilities.int8 is not None),
            baseline,
            splits,
        )
    return _weights(session, builder, baseline, splits)


def _only(session: Session, form: Form, baseline: Engine, splits: Splits) -> Choice:
    item = contender(session, form, baseline, splits)
    item.reason = "as asked"
    return Choice([item], [item])


def _by_name(session: Session, form: Form, baseline: Engine, splits: Splits) -> Choice:
    """The form of the passes that were asked for; those that gave up are warned of with their reason."""
    for step, record in zip(form.passes, form.records, strict=True):
        if step.lossy and not record.changed:
            # What ended the pass comes last.
            reason = f": {record.findings[-1].message}" if record.findings else ""
            session.warn(f"{step.name} changed nothing{reason}")
    return _only(session, form, baseline, splits)


def _weights(session: Session, builder: FormBuilder, baseline: Engine, splits: Splits) -> Choice:
    """The smallest weight-only form that holds on the planning split, else the one that loses least."""
    forms = _weight_forms(session, builder, baseline, splits)
    tried: list[Contender] = []
    for item in forms:
        tried.append(item)
        if (item.loss or 0.0) <= session.options.max_drop:
            break
        item.place = f"not chosen: it loses {item.loss or 0.0:.2%} on the planning split"
    best = min(tried, key=lambda item: item.loss or 0.0)
    best.place = ""
    return Choice([best], tried, safer=(Safer(item) for item in forms))


def _weight_forms(
    session: Session, builder: FormBuilder, baseline: Engine, splits: Splits
) -> Iterator[Contender]:
    wanted = session.options.precision
    for number, form in enumerate(builder.weights(wanted)):
        item = contender(session, _required(form, wanted.value, supported=True), baseline, splits)
        item.reason = ("as asked", "convolutions in 8 bits", "all in 8 bits")[number]
        yield item


def _required(form: Form, what: str, supported: bool) -> Form:
    """Refuse a form in which nothing was converted: the target's fault, or the model's where it is `supported`."""
    if not form.applied:
        reasons = [finding.message for record in form.records for finding in record.findings]
        detail = f": {reasons[-1]}" if reasons else ""
        message = f"no node of the model could be built in {what} for this target{detail}"
        raise InputError(message) if supported else UnavailableError(message)
    return form


@dataclass
class Forms:
    """Forms of the whole model, judged: the original first, then from safe to aggressive; `discarded` ones were not as
    good as one of these. `layers` is what was decided for each layer of the statically quantized one.
    """

    contenders: list[Contender]
    discarded: list[Contender] = field(default_factory=list)
    layers: tuple[LayerChoice, ...] = ()

    def left(self, ranked: Sequence[Contender]) -> list[Contender]:
        """All that are not among the ranked ones."""
        known = {id(item) for item in ranked}
        return [item for item in (*self.contenders, *self.discarded) if id(item) not in known]


def automatic_forms(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> Forms:
    """All forms of the whole model that the target has kernels and the data suffice for."""
    start = Contender(original, baseline)
    if session.estimator is not None:
        # The baseline ran elsewhere: what is built of the original has to be judged as any other form.
        start = contender(session, original, baseline, splits)
    start.reason = "the model as it came"
    found = Forms([start])
    cleaned = builder.cleaned()
    if cleaned.applied:
        found.contenders.append(contender(session, cleaned, baseline, splits))
    else:
        start.note("the clean-up found nothing to change")
    if session.target.capabilities().float16:
        found.contenders.append(contender(session, builder.half(Precision.FP16), baseline, splits))
    integers = session.target.capabilities().int8 is not None
    if integers and not splits.planning.synthetic and dynamic_may_pay(cleaned.model):
        found.contenders.append(_dynamic(session, builder, baseline, splits))
    if splits.calibration is None:
        session.warn("INT8 was not considered: it needs calibration data (--calibration)")
    elif splits.planning.synthetic:
        session.warn(
            "INT8 was not considered: nothing can be verified on synthetic data (ask with --precision int8)"
        )
    else:
        static = static_int8(session, builder, baseline, splits, feeds)
        found.contenders.append(static.best)
        found.discarded, found.layers = static.others, static.choices
    return found


def _automatic(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> Choice:
    """Whatever measured best within the limit; the safer form wins where the difference is within the noise."""
    found = automatic_forms(session, builder, baseline, original, splits, feeds)
    eligible = eligible_forms(session, found)
    estimator = session.estimator
    with session.phase("comparing forms"):
        if estimator is not None:
            sides = estimator.compare([item.form.qdq for item in eligible], feeds[0])
            milliseconds, ratios = [each.latency_ms.value for each in sides.each], sides.latency
        else:
            verdict = quick_compare(
                [item.timed for item in eligible], feeds, confidence=session.options.confidence
            )
            milliseconds, ratios = list(verdict.median_ms), verdict.ratios
    for item, spent in zip(eligible, milliseconds, strict=True):
        item.latency_ms = spent
    ranked = _ranked(eligible, ratios, estimated=estimator is not None)
    return Choice(ranked, [*found.contenders, *found.discarded], found.layers)


def eligible_forms(session: Session, forms: Forms) -> list[Contender]:
    """Those in which something was converted and that lose no more than allowed on the planning split.

    Raises:
        LimitError: The original as it was built for the target is not among them.
    """
    eligible = [item for item in forms.contenders if _eligible(item, session.options)]
    start = forms.contenders[0]
    if start not in eligible:
        raise LimitError(
            f"the original, built for {session.target.name}, {start.reason}",
            hint="this is an error of the target: please report it with the model",
        )
    return eligible


def _dynamic(session: Session, builder: FormBuilder, baseline: MemoEngine, splits: Splits) -> Contender:
    item = contender(session, builder.dynamic(), baseline, splits)
    item.reason = "activations are quantized at run time"
    return item


def dynamic_may_pay(model: ir.Model) -> bool:
    """Whether most weighted nodes are products or recurrent cells, which have dynamic integer kernels."""
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    products = sum(counts[op_type] for op_type in ("MatMul", "Gemm", "LSTM", "GRU"))
    return products > counts["Conv"] + counts["ConvTranspose"]


def _eligible(item: Contender, options: CompileOptions) -> bool:
    if not item.form.applied:
        item.reason = NOTHING_CONVERTED
        return False
    loss = item.loss
    if loss is not None and loss > options.max_drop:
        item.reason = f"loses {loss:.2%} on the planning split, more than the limit of {options.max_drop:.3g}"
        return False
    return True


def _ranked(
    eligible: Sequence[Contender], ratios: Sequence[Interval], *, estimated: bool = False
) -> list[Contender]:
    """The form to ship, then the safer ones to fall back to, each no slower than the ones after it.

    The cleaned-up model computes the same function as the original, so it only must not be slower. Every other form
    must be faster than the original with its whole interval, and faster than the safer forms by a margin.

    Args:
        eligible: The original first, then from safe to aggressive.
        ratios: Latency of the original divided by that of each of the others.
        estimated: The times are estimates, whose intervals are wide: then the central value decides, by a wider margin.
    """
    margin, by_estimate = (WORTH_ESTIMATED, f", {BY_ESTIMATE}") if estimated else (_WORTH, "")
    ladder = [eligible[0]]
    for item, ratio in zip(eligible[1:], ratios, strict=True):
        best = ladder[-1]
        assert item.latency_ms is not None
        assert best.latency_ms is not None
        if item.form.rank == CLEANED_RANK:
            better = ratio.high >= 1.0 and item.latency_ms <= best.latency_ms * (1.0 + _WORTH)
        else:
            surely = estimated or ratio.low > 1.0
            better = surely and item.latency_ms < best.latency_ms * (1.0 - margin)
        if better:
            ladder.append(item)
    best = ladder[-1]
    for item in eligible:
        if item is not best:
            item.place = f"not chosen: {item.latency_ms:.3g} ms against {best.latency_ms:.3g} ms{by_estimate}"
    best.place = f"the fastest form within the limit{by_estimate}"
    return ladder[::-1]


def refuse(
    accuracy: Accuracy, options: CompileOptions, form: Form | None = None, *, synthetic: bool = False
) -> LimitError | None:
    """The error for a form that certification data show to be outside the limit, or None.

    What synthetic data show says nothing about the task, so it never counts against a form. Of a `form` of passes that
    were asked for by name, the error says what each of them did.
    """
    loss = observed_loss(accuracy)
    if loss > options.max_drop and not synthetic:
        what = "accuracy drops by" if accuracy.drop is not None else "the decisions change on"
        message = (
            f"{what} {loss:.2%} of the {accuracy.n} certification samples, "
            f"more than the limit of {options.max_drop * 100:.3g}%"
        )
        if not options.by_name:
            hint = "raise --max-drop, give more calibration samples, or use --precision auto"
            return LimitError(message, hint=hint)
        passes, records = (form.passes, form.records) if form is not None else ((), [])
        errors = output_errors(passes, records)
        return LimitError(f"{message}; {errors}" if errors else message, hint=way_out(passes, records))
    if options.require_certified and not accuracy.certified:
        return LimitError(
            f"the accuracy could not be certified: {accuracy.reason}",
            hint="give more evaluation samples, raise --max-drop, or leave --require-certified out",
        )
    return None
