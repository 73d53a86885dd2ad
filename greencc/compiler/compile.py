"""The main job: load, build forms, choose, certify, measure, write the bundle."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from greencc import __version__
from greencc.bundle import Bundle, load, write_bundle
from greencc.bundle.manifest import FILE_NAME as MANIFEST
from greencc.compiler.data import Splits, open_splits
from greencc.compiler.forms import CLEANED_RANK, Form, FormBuilder
from greencc.compiler.layers import layer_times, quantization_errors
from greencc.compiler.measurement import Variant, measure_variants
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.select import Choice, Contender, choose, refuse
from greencc.compiler.session import Session, available_target
from greencc.core.data import Feeds
from greencc.core.describe import describe, input_specs
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError, InputError
from greencc.core.files import atomic_folder, sha256_file
from greencc.core.model import digest, infer_shapes, load_model
from greencc.core.progress import Progress, silent
from greencc.core.recipe import dump_recipe
from greencc.core.report import Accuracy, Budget, LayerError, LayerTime, ModelInfo, Report
from greencc.report import with_verdict
from greencc.targets import format_spec
from greencc.verify.certificate import samples_needed
from greencc.verify.compare import compare
from greencc.verify.metrics import parse_metric

FEEDS = 32
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
    options = options or CompileOptions()
    final = output or Path(f"{model.stem}.greencc")
    _check_output(final, force)
    # A mistyped metric should not be found out after minutes of building.
    parse_metric(options.metric)
    target = available_target(options.target)
    with atomic_folder(final, overwrite=force) as work:
        scratch = work / "scratch"
        scratch.mkdir()
        session = Session(options, target, scratch, progress)
        try:
            _compile(session, model, work)
        except GreenccError as error:
            # What was odd about the input may explain the error.
            for warning in session.warnings:
                error.add_note(f"Warning: {warning}")
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return load(final)


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


def _compile(session: Session, path: Path, work: Path) -> None:
    with session.phase("loading"):
        source = load_model(path)
        infer_shapes(source)
        inputs = input_specs(source)
        splits = open_splits(session, inputs)
    batch = inputs[0].batch if inputs else None
    samples = splits.samples(batch)
    if not samples:
        raise InputError(
            f"the model takes batches of {batch} samples, and there are fewer", hint="give more samples"
        )
    builder = FormBuilder(session, source, splits, samples)
    original = Form("original", Precision.FP32, 0, source, path)
    feeds = _feeds(splits, batch)
    baseline = MemoEngine(session.target.open(path))
    choice: Choice | None = None
    try:
        choice = choose(session, builder, baseline, original, splits, feeds)
        chosen, accuracy = _certify(session, choice, baseline, splits)
        artifact = chosen.form.artifact = _place(chosen.form, path, work / "artifact")
        device = session.target.device()
        with session.phase("measuring"):
            measured = measure_variants(
                session,
                device,
                Variant(path, baseline.engine, source, _size(path, source), accuracy.baseline),
                Variant(
                    artifact,
                    chosen.timed,
                    chosen.form.model,
                    _folder_size(artifact.parent),
                    accuracy.artifact,
                ),
                feeds,
            )
        times, errors = _layers(session, path, source, chosen.form, builder, splits, feeds[0])
        candidates = choice.candidates(chosen)
    finally:
        baseline.close()
        if choice is not None:
            choice.close()
    shutil.rmtree(session.scratch)
    met = None if splits.certification.synthetic else refuse(accuracy, session.options) is None
    report = with_verdict(
        Report(
            greencc=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verdict="",
            precision=_precision(chosen.form),
            model=_model_info(path, source),
            target=format_spec(session.target),
            device={"name": device.name, "fingerprint": device.fingerprint, **device.facts},
            conditions=measured.conditions,
            versions={"greencc": __version__, **session.target.versions()},
            baseline=measured.baseline,
            artifact=measured.artifact,
            ratio=measured.ratio,
            accuracy=accuracy,
            budget=Budget(asked=session.options.asked(), met=met),
            candidates=candidates,
            passes=tuple(chosen.form.records),
            calibration=splits.info if chosen.form.precision is Precision.INT8 else None,
            layers=times,
            layer_errors=errors,
            warnings=tuple(session.warnings),
            compile=session.compile_info(),
        )
    )
    write_bundle(
        work,
        report=report,
        recipe=dump_recipe(chosen.form.passes),
        artifact=artifact,
        target=session.target,
        model_digest=digest(source),
        evaluation_digest=None if splits.certification.synthetic else splits.certification.digest(),
    )


def _feeds(splits: Splits, batch: int | None) -> list[Feeds]:
    """Real inputs to measure with, one inference each."""
    size = batch or 1
    found: list[Feeds] = []
    for piece in splits.planning.batches(size):
        if piece.count == size:
            found.append(piece.feeds)
        if len(found) == FEEDS:
            break
    if not found:
        raise InputError(
            f"there is no whole batch of {size} samples to measure with", hint="give more samples"
        )
    return found


def _certify(
    session: Session, choice: Choice, baseline: Engine, splits: Splits
) -> tuple[Contender, Accuracy]:
    """Test the forms from safe to aggressive up to the preferred one; ship the last that holds.

    This is the fixed sequence of docs/adr/0005-certificate.md: where a safer form fails, a more aggressive one is not
    tested, and its certificate costs no correction for having had a choice.
    """
    last: tuple[Contender, Accuracy] | None = None
    problem: GreenccError | None = None
    for item in sorted(choice.ranked, key=lambda item: item.form.rank):
        with session.phase("certifying"):
            accuracy = compare(
                baseline,
                item.engine,
                splits.certification,
                metric=session.options.metric,
                epsilon=session.options.max_drop,
                confidence=session.options.confidence,
                progress=session.progress,
            )
        problem = refuse(accuracy, session.options, synthetic=splits.certification.synthetic)
        if problem is not None:
            item.place = f"refused on the certification split: {problem.message}"
            break
        last = (item, accuracy)
    if last is None:
        assert problem is not None
        raise problem
    if problem is not None:
        session.warn(f"{choice.ranked[0].form.name} was not kept: {problem.message}")
        last[0].place = "the fastest form that held on the certification split"
    chosen, accuracy = last
    if not accuracy.certified and accuracy.n_needed is None and not splits.certification.synthetic:
        needed = samples_needed(session.options.max_drop, 1.0 - session.options.confidence)
        if accuracy.n < needed:
            session.warn(
                f"certifying a drop of {session.options.max_drop:.3g} needs at least {needed} samples"
            )
    return chosen, accuracy


def _place(form: Form, source: Path, folder: Path) -> Path:
    """Move the chosen artifact into the bundle; the original model is copied with its data."""
    if form.rank >= CLEANED_RANK:
        form.artifact.parent.rename(folder)
        return folder / form.artifact.name
    folder.mkdir()
    target = folder / "model.onnx"
    shutil.copyfile(source, target)
    for name in sorted(_external_files(form.model)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, folder / name)
    return target


def _external_files(model: ir.Model) -> set[str]:
    return {
        str(value.const_value.location)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def _size(path: Path, model: ir.Model) -> int:
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in _external_files(model))


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _layers(
    session: Session,
    path: Path,
    source: ir.Model,
    form: Form,
    builder: FormBuilder,
    splits: Splits,
    feeds: Feeds,
) -> tuple[tuple[LayerTime, ...], tuple[LayerError, ...]]:
    """Times and errors by layer: worth having, not worth failing a compile for."""
    with session.phase("profiling"):
        try:
            before = session.target.profile(path, feeds, PROFILE_RUNS)
            after = session.target.profile(form.artifact, feeds, PROFILE_RUNS)
            times = layer_times(source, before, after)
        except GreenccError as error:
            session.warn(f"the layers were not profiled: {error.message}")
            times = ()
        errors: tuple[LayerError, ...] = ()
        if form.precision is Precision.INT8:
            try:
                errors = quantization_errors(
                    session.target, builder.cleaned().model, form.model, splits.planning
                )
            except GreenccError as error:
                session.warn(f"the error by layer was not computed: {error.message}")
    return times, errors


def _precision(form: Form) -> str:
    return form.name if form.rank == 0 else form.precision.value


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
