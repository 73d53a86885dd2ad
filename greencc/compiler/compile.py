"""The main job: load, build forms, choose, certify, measure, write the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from greencc.bundle import Bundle, load, write_bundle
from greencc.bundle.manifest import Manifest
from greencc.compiler.certify import Held, certify
from greencc.compiler.checks import check_output, check_passes, check_plan
from greencc.compiler.contender import closed_on_error
from greencc.compiler.counts import model_counts, operation_counts
from greencc.compiler.data import FEEDS, Splits, open_splits, whole_batches
from greencc.compiler.final import measure_final
from greencc.compiler.fixing import fix_sizes
from greencc.compiler.forms import ORIGINAL_RANK, Form, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.on_device import opened_target
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.placing import place
from greencc.compiler.planning.choose import choose_plan
from greencc.compiler.planning.estimated import plan_by_estimate
from greencc.compiler.planning.on_device import budget_mode, plan_on_device
from greencc.compiler.planning.plan import Plan
from greencc.compiler.reporting import layers_of, make_report
from greencc.compiler.run_times import Trial, try_run_times
from greencc.compiler.select import Choice, choose
from greencc.compiler.session import Session, Shared
from greencc.compiler.shipping import ship
from greencc.compiler.spending import account
from greencc.compiler.tuning import check_tuning, kept_schedules, tune
from greencc.core.data import Feeds
from greencc.core.describe import input_specs
from greencc.core.engine import Target
from greencc.core.errors import GreenccError, InputError, LimitError
from greencc.core.files import atomic_folder
from greencc.core.graph import ensure_names
from greencc.core.model import digest, load_model
from greencc.core.power_modes import OnDevice
from greencc.core.progress import Progress, silent
from greencc.core.recipe import dump_recipe
from greencc.devices.target import DeviceTarget
from greencc.execution import check_engine
from greencc.meters.window import Window
from greencc.verify.metrics import parse_metric


def compile_model(
    model: Path,
    options: CompileOptions | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    shared: Shared | None = None,
) -> Bundle:
    """Compile `model` into a bundle and return it, loaded and verified.

    Args:
        model: An ONNX file; external data lies beside it.
        options: What to do; the defaults compile for the CPU without data.
        output: The bundle folder; default ``<model>.greencc`` in the current folder.
        force: Replace an existing bundle.
        progress: Shows how far long steps are.
        shared: What compiles of the same model for other targets have in common.

    Raises:
        GreenccError: See `greencc.core.errors` for the kinds and their exit codes. Nothing is left half-written.
    """
    window = Window()
    options = options or CompileOptions()
    final = output or Path(f"{model.stem}.greencc")
    check_output(final, force)
    # A mistyped metric, engine or pass should not be found out after minutes of building.
    parse_metric(options.metric)
    check_engine(options.engine, options.workers)
    check_passes(options)
    with opened_target(
        options.target, options.device, power_mode=options.set_power_mode, progress=progress
    ) as target:
        check_tuning(options, target)
        check_plan(options, target)
        manifest = _written(model, options, target, final, force, progress, window, shared or Shared())
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
    shared: Shared,
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
            shared=shared,
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
        source = _loaded(session, path)
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
        final = measure_final(session, path, source, baseline, splits, held, feeds, plan)
        if plan is not None:
            choice.layers = plan.layers_of(final.contender)
        layers = layers_of(session, path, source, final, splits, feeds[0])
    finally:
        baseline.close()
        if choice is not None:
            if plan is not None:
                # With those that were only tried where the preferred ones failed.
                choice.all = [*plan.ranked, *plan.left()]
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
    report = make_report(session, path, source, splits, choice, plan, final, layers, spent, tried, build)
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


def _loaded(session: Session, path: Path) -> ir.Model:
    """The model with a name for every node; it is never changed, so compiles for other targets start from it too."""
    known = session.shared.models
    if path not in known:
        model = load_model(path)
        ensure_names(model)
        known[path] = model
    return known[path]


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


def _feeds(splits: Splits, batch: int | None) -> list[Feeds]:
    """Real inputs to measure with, one inference each."""
    size = batch or 1
    found = whole_batches(splits.planning, size, FEEDS)
    if not found:
        raise InputError(
            f"there is no whole batch of {size} samples to measure with", hint="give more samples"
        )
    return found
