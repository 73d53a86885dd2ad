"""The main job: load, build forms, choose, certify, measure, write the bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from greencc import __version__
from greencc.bundle import Bundle, load, write_bundle
from greencc.bundle.manifest import FILE_NAME as MANIFEST
from greencc.bundle.manifest import Manifest
from greencc.compiler.certify import Held, certify
from greencc.compiler.contender import Contender, closed_on_error
from greencc.compiler.counts import model_counts, operation_counts
from greencc.compiler.data import FEEDS, Splits, open_splits, whole_batches
from greencc.compiler.fixing import fix_sizes
from greencc.compiler.forms import ORIGINAL_RANK, Form, FormBuilder
from greencc.compiler.layer_energy import layer_energies
from greencc.compiler.layers import layer_times, quantization_errors
from greencc.compiler.measurement import Measurement, measure_variants, unchanged
from greencc.compiler.memo import MemoEngine
from greencc.compiler.named import recipe_precision
from greencc.compiler.on_device import opened_target
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.placing import folder_size, model_size, place
from greencc.compiler.planning.choose import choose_plan
from greencc.compiler.planning.estimated import plan_by_estimate
from greencc.compiler.planning.modes import modes_of_profile
from greencc.compiler.planning.on_device import budget_mode, plan_on_device
from greencc.compiler.planning.plan import Plan
from greencc.compiler.run_times import Trial, rows, try_run_times
from greencc.compiler.select import Choice, choose
from greencc.compiler.session import Session
from greencc.compiler.shipping import ship
from greencc.compiler.spending import account
from greencc.compiler.tuning import check_tuning, kept_schedules, tune
from greencc.compiler.untimed import Estimator
from greencc.compiler.variant import Variant
from greencc.core.data import Feeds
from greencc.core.describe import describe, input_specs
from greencc.core.engine import Device, Target
from greencc.core.errors import GreenccError, InputError, LimitError, UsageError
from greencc.core.files import atomic_folder, sha256_file
from greencc.core.graph import ensure_names
from greencc.core.model import digest, load_model
from greencc.core.pass_list import parse_passes
from greencc.core.power_modes import OnDevice
from greencc.core.progress import Progress, silent
from greencc.core.recipe import dump_recipe
from greencc.core.report import (
    Accuracy,
    Budget,
    BuildInfo,
    CompileInfo,
    LayerEnergies,
    LayerError,
    LayerTime,
    ModelInfo,
    Report,
)
from greencc.devices.target import DeviceTarget
from greencc.execution import check_engine
from greencc.meters.window import Window
from greencc.passes import PASSES
from greencc.report import with_verdict
from greencc.report.figures import change_text
from greencc.targets import format_spec
from greencc.verify.metrics import parse_metric

PROFILE_RUNS = 20


def compile_model(
    model: Path,
    options: CompileOptions | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Compile `model` into a bundle and return it, loaded and verified.

    Args:
        model: An ONNX file; external data lies beside it.
        options: What to do; the defaults compile for the CPU without data.
        output: The bundle folder; default ``<model>.greencc`` in the current folder.
        force: Replace an existing bundle.
        progress: Shows how far long steps are.

    Raises:
        GreenccError: See `greencc.core.errors` for the kinds and their exit codes. Nothing is left half-written.
    """
    window = Window()
    options = options or CompileOptions()
    final = output or Path(f"{model.stem}.greencc")
    _check_output(final, force)
    # A mistyped metric, engine or pass should not be found out after minutes of building.
    parse_metric(options.metric)
    check_engine(options.engine, options.workers)
    _check_passes(options)
    with opened_target(
        options.target, options.device, power_mode=options.set_power_mode, progress=progress
    ) as target:
        check_tuning(options, target)
        _check_plan(options, target)
        manifest = _written(model, options, target, final, force, progress, window)
    # Code in it was made here, whether or not the user keeps a record of what is trusted.
    return load(final, trust=manifest.sha256)


def _written(
    model: Path,
    options: CompileOptions,
    target: Target,
    final: Path,
    force: bool,
    progress: Progress,
    window: Window,
) -> Manifest:
    """Compile into the bundle's folder; nothing of it is left where that fails."""
    with atomic_folder(final, overwrite=force) as work:
        scratch = work / "scratch"
        scratch.mkdir()
        session = Session(
            options,
            target,
            scratch,
            progress,
            window=window,
            execution=options.engine,
            # On a device one engine runs at a time.
            workers=1 if isinstance(target, DeviceTarget) else options.workers,
        )
        for warning in kept_schedules(target):
            session.warn(warning)
        try:
            with budget_mode(session):
                return _compile(session, model, work)
        except GreenccError as error:
            # What was odd about the input may explain the error.
            for warning in session.warnings:
                error.add_note(f"Warning: {warning}")
            raise
        finally:
            session.close()
            shutil.rmtree(scratch, ignore_errors=True)


def _check_output(final: Path, force: bool) -> None:
    """Refuse to overwrite: without `force` anything, with it whatever is not a bundle."""
    if not final.exists():
        return
    if not force:
        raise InputError(f"{final} already exists", hint="choose another name or pass --force")
    if not (final / MANIFEST).is_file():
        raise InputError(
            f"{final} exists and is not a bundle, so --force does not replace it", hint="choose another name"
        )


def _check_passes(options: CompileOptions) -> None:
    """Refuse a list of passes that is wrong, or that needs data where there are none."""
    if options.passes is None:
        return
    precision = recipe_precision(parse_passes(options.passes, PASSES))
    if precision.needs_calibration and options.calibration is None:
        raise UsageError(
            f"precision {precision.value} needs calibration data and none was given",
            hint="pass --calibration DATA (64 or more real inputs); --calibration synthetic works "
            "without data, but the result cannot be certified",
        )


def _check_plan(options: CompileOptions, target: Target) -> None:
    """Refuse power modes of another device before anything is built."""
    if options.plans and (estimator := Estimator.of(target)) is not None:
        modes_of_profile(estimator.profile, options.limits)


def _plan(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: list[Feeds],
) -> Plan:
    """Layer by layer on measured times; forms of the whole model on a device elsewhere, measured or by estimate."""
    if isinstance(session.target, OnDevice):
        return plan_on_device(session, session.target, builder, baseline, original, splits, feeds)
    if (estimator := session.estimator) is None:
        return choose_plan(session, builder, baseline, original, splits, feeds)
    return plan_by_estimate(session, estimator, builder, baseline, original, splits, feeds)


def _baseline(session: Session, source: ir.Model, path: Path) -> tuple[Form, MemoEngine]:
    """The original as a form, and an engine that gives the outputs all others are compared with.

    Where a target's engines are emulated, the original is compared with as ONNX Runtime runs it on this machine, which
    is faster and owes nothing to what is to be verified; what is built of it is a form like any other.
    """
    target = session.target
    if target.estimated_on() is None:
        original = Form("original", Precision.FP32, ORIGINAL_RANK, source, path)
        # Before anything is built: the original is to be measured with kernels as good as the others'.
        tune(session, source, original.name)
        return original, MemoEngine(target.open(path))
    engine = MemoEngine(target.calibration_engine(source))
    with session.phase("building original"), closed_on_error(engine):
        folder = session.scratch / "original"
        folder.mkdir()
        artifact = target.build(target.lower(source), folder)
    return Form("original", Precision.FP32, ORIGINAL_RANK, source, artifact), engine


def _compile(session: Session, path: Path, work: Path) -> Manifest:
    with session.phase("loading"):
        source = load_model(path)
        ensure_names(source)
        session.source = digest(source)
        inputs = input_specs(source)
        splits = open_splits(session, inputs, model_counts(source)[1])
        source, path = fix_sizes(session, source, path, splits)
    batch = inputs[0].batch if inputs else None
    original, baseline = _baseline(session, source, path)
    choice: Choice | None = None
    plan: Plan | None = None
    tried: list[Trial] = []
    try:
        builder = FormBuilder(session, source, splits, splits.samples(baseline, batch))
        feeds = _feeds(splits, batch)
        if session.options.plans:
            plan = _plan(session, builder, baseline, original, splits, feeds)
            choice = Choice(list(plan.ranked), [*plan.ranked, *plan.left()])
        else:
            choice = choose(session, builder, baseline, original, splits, feeds)
            tried = try_run_times(session, builder, choice, baseline, splits, feeds)
        held = _certify(session, choice, plan, baseline, splits)
        if plan is not None:
            choice.all = [*plan.ranked, *plan.left()]
        final = _measure(session, path, source, baseline, held, feeds, plan)
        if plan is not None:
            choice.layers = plan.layers_of(final.contender)
        layers = _layers(session, path, source, final, splits, feeds[0])
    finally:
        baseline.close()
        if choice is not None:
            choice.close()
    if session.cache.problem is not None:
        session.warn(f"nothing was kept for the next compile: {session.cache.problem}")
    target = final.form.target or session.target
    artifact = place(target, final.form, path, work / "artifact")
    for finding in target.findings(artifact):
        session.warn(finding)
    build = ship(session, target, artifact, splits, path.stem, final.measured.conditions)
    for check in build.checks if build is not None and build.built else ():
        if not check.passed:
            session.warn(f"{check.name}: {check.note}")
    counts = [operation_counts(session, model, feeds[0]) for model in (source, final.form.model)]
    spent = account(session, final.device, final.measured, (counts[0], counts[1]))
    report = _report(session, path, source, splits, choice, plan, final, layers, spent, tried, build)
    shutil.rmtree(session.scratch)
    return write_bundle(
        work,
        report=report,
        recipe=dump_recipe(final.form.passes),
        artifact=artifact,
        target=target,
        model_digest=session.source,
        seen=splits.seen(),
        evaluation_digest=None if splits.certification.synthetic else splits.certification.digest(),
    )


def _certify(
    session: Session, choice: Choice, plan: Plan | None, baseline: MemoEngine, splits: Splits
) -> list[Held]:
    """What holds on the certification split.

    Raises:
        LimitError: Nothing; of a plan it has the nearest points.
    """
    if plan is None:
        return certify(session, choice, baseline, splits)
    try:
        return certify(session, choice, baseline, splits, plan.others)
    except LimitError as error:
        raise plan.out_of_reach(f"no plan that keeps the budget held: {error.message}") from error


@dataclass(frozen=True)
class _Final:
    """The form that is shipped, and everything that is known of it."""

    contender: Contender
    accuracy: Accuracy
    device: Device
    measured: Measurement

    @property
    def form(self) -> Form:
        return self.contender.form


def _measure(
    session: Session,
    path: Path,
    source: ir.Model,
    baseline: MemoEngine,
    held: list[Held],
    feeds: list[Feeds],
    plan: Plan | None,
) -> _Final:
    """Measure the preferred form beside the baseline; one that turns out slower gives way to the next safer one.

    Raises:
        LimitError: What was planned does not keep the budget in the end.
    """
    device = session.target.device()
    size = model_size(path, source)
    # The safest of what was worse than the original, but keeps what was asked for.
    kept: _Final | None = None
    while True:
        contender, accuracy = held[-1].contender, held[-1].accuracy
        form = contender.form
        with session.phase("measuring"):
            measured = measure_variants(
                session,
                device,
                Variant(path, baseline.engine, source, size, accuracy.baseline),
                Variant(
                    form.artifact,
                    contender.timed,
                    form.model,
                    size if form.artifact == path else folder_size(form.artifact.parent),
                    accuracy.artifact,
                    form.target,
                ),
                feeds,
                mode=None if plan is None else plan.mode_of(contender),
            )
        if form.artifact == path:
            measured = unchanged(measured)
        if session.options.by_name:
            _warn_without_gain(session, measured)
        if plan is not None:
            problem = plan.objection(measured)
        else:
            slower = measured.ratio.latency.high < 1.0
            problem = "it measured slower than the original in the end" if slower else None
        final = _Final(contender, accuracy, device, measured)
        if problem is None:
            return final
        if plan is None or plan.keeps(measured):
            kept = final
        held.pop()
        if not held:
            if kept is not None and (plan is None or plan.keeps(kept.measured)):
                return kept
            assert plan is not None
            raise plan.out_of_reach(f"{form.name}: {problem}")
        contender.place = f"not kept: {problem}"
        held[-1].contender.place = "the best form that was not worse in the end"
        session.warn(f"{form.name} was not kept: {problem}")


def _warn_without_gain(session: Session, measured: Measurement) -> None:
    """What was asked for by name is kept for better or worse: say so where it does not pay."""
    ratio = measured.ratio.latency
    if measured.conditions.get("clean") is False or ratio.low > 1.0:
        return
    if session.estimator is not None and ratio.value > 1.0:
        return
    found = change_text(ratio, "faster", "slower", "no speed-up shown")
    session.warn(f"the passes that were asked for did not make the model faster here: {found}")


def _report(
    session: Session,
    path: Path,
    source: ir.Model,
    splits: Splits,
    choice: Choice,
    plan: Plan | None,
    final: _Final,
    layers: _Layers,
    spent: CompileInfo,
    tried: list[Trial],
    build: BuildInfo | None,
) -> Report:
    target = final.form.target or session.target
    device, measured, accuracy = final.device, final.measured, final.accuracy
    # The original meets any limit by definition; anything else must be shown to.
    met = True if accuracy.certified or final.form.artifact == path else None
    planned = None if plan is None else plan.info(final.contender, measured)
    if planned is not None and any(limit.estimated for limit in planned.limits):
        met = None
    return with_verdict(
        Report(
            greencc=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verdict="",
            precision=_precision(final.form),
            model=_model_info(path, source),
            target=format_spec(target),
            device={"name": device.name, "fingerprint": device.fingerprint, **device.facts},
            conditions=measured.conditions,
            versions={
                "greencc": __version__,
                **target.versions(),
                **target.requirements(final.form.artifact),
            },
            baseline=measured.baseline,
            artifact=measured.artifact,
            ratio=measured.ratio,
            accuracy=accuracy,
            budget=Budget(asked=session.options.asked(), met=met),
            candidates=choice.candidates(final.contender),
            passes=tuple(final.form.records),
            calibration=splits.info if final.form.fitted else None,
            layers=layers.times,
            layer_errors=layers.errors,
            layer_choices=choice.layers if final.form.float_model is not None else (),
            warnings=tuple(session.warnings),
            compile=spent,
            layer_energy=layers.energy,
            carbon=measured.carbon(session.options.carbon),
            plan=planned,
            backends=rows(tried, final.contender),
            build=build,
        )
    )


def _feeds(splits: Splits, batch: int | None) -> list[Feeds]:
    """Real inputs to measure with, one inference each."""
    size = batch or 1
    found = whole_batches(splits.planning, size, FEEDS)
    if not found:
        raise InputError(
            f"there is no whole batch of {size} samples to measure with", hint="give more samples"
        )
    return found


@dataclass(frozen=True)
class _Layers:
    """What is known by layer; empty or None where it is not."""

    times: tuple[LayerTime, ...] = ()
    errors: tuple[LayerError, ...] = ()
    energy: LayerEnergies | None = None


def _layers(
    session: Session, path: Path, source: ir.Model, final: _Final, splits: Splits, feeds: Feeds
) -> _Layers:
    """Times, energies and errors by layer: worth having, not worth failing a compile for."""
    form = final.form
    times: tuple[LayerTime, ...] = ()
    energy: LayerEnergies | None = None
    errors: tuple[LayerError, ...] = ()
    with session.phase("profiling"):
        try:
            if session.estimator is None:
                before = session.target.profile(path, feeds, PROFILE_RUNS)
                after = (form.target or session.target).profile(form.artifact, feeds, PROFILE_RUNS)
                times = layer_times(source, before, after)
                energy = layer_energies(
                    source, times, (source, form.model), final.measured, feeds, final.device
                )
        except GreenccError as error:
            session.warn(f"the layers were not profiled: {error.message}")
        if form.float_model is not None:
            try:
                errors = quantization_errors(session.target, form.float_model, form.qdq, splits.planning)
            except GreenccError as error:
                session.warn(f"the error by layer was not computed: {error.message}")
    return _Layers(times, errors, energy)


def _precision(form: Form) -> str:
    return form.name if form.rank == ORIGINAL_RANK else form.precision.value


def _model_info(path: Path, model: ir.Model) -> ModelInfo:
    facts = describe(model)
    return ModelInfo(
        name=path.name,
        sha256=sha256_file(path),
        params=facts.params,
        macs=facts.macs,
        opset=facts.opset,
        nodes=facts.nodes,
    )
