"""Verify and measure what was compiled earlier: the Python side of `greencc verify` and `greencc measure`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from greencc.bundle import Bundle, load
from greencc.calibration import open_data, synthetic
from greencc.compiler.campaign import MeasurePlan
from greencc.compiler.data import FEEDS, whole_batches
from greencc.compiler.energies import other_meter
from greencc.compiler.measurement import Measurement, measure_variants
from greencc.compiler.on_device import opened_engine, opened_target
from greencc.compiler.options import CompileOptions, Effort
from greencc.compiler.placing import folder_size, model_size
from greencc.compiler.session import Session, available_target, require_timed
from greencc.compiler.sources import source_of, unseen
from greencc.compiler.variant import Variant
from greencc.core.data import DataSource
from greencc.core.engine import Engine, Target
from greencc.core.errors import InputError
from greencc.core.model import load_model
from greencc.core.progress import Progress, silent
from greencc.core.report import Accuracy
from greencc.measure.protocols import QUICK
from greencc.targets import format_spec
from greencc.verify.compare import compare


def verify_accuracy(
    bundle: Bundle,
    model: Path,
    evaluation: str | Path,
    *,
    labels: Path | None = None,
    preprocess: Path | None = None,
    metric: str | None = None,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    device: str = "",
    progress: Progress = silent,
) -> Accuracy:
    """Compare a bundle with the model it was compiled from on data of your choice.

    Samples that the compile was tuned or has chosen on are left out, and the result's `reason` says how many. With a
    `device` the artifact runs there, and the model on this computer.

    Raises:
        InputError: The model is not the one the bundle was compiled from, the data do not fit it, or the compile has
            used all of them.
        UnavailableError: The bundle's target does not run here.
    """
    source_of(bundle, model)
    with ExitStack() as opened:
        artifact = opened_engine(bundle, device, progress, opened)
        baseline = available_target(bundle.manifest.target).open(model)
        opened.callback(baseline.close)
        data = open_data(
            str(evaluation), baseline.inputs, labels=labels, preprocess=preprocess, role="evaluation"
        )
        fresh = unseen(data, bundle.seen)
        accuracy = compare(
            baseline,
            artifact,
            fresh,
            metric=metric,
            epsilon=max_drop,
            confidence=confidence,
            progress=progress,
        )
    if left_out := data.count - fresh.count:
        note = f"{left_out:,} of {data.count:,} samples were left out: the compile has used them"
        accuracy = replace(accuracy, reason=f"{accuracy.reason}; {note}")
    return accuracy


def measure(
    subject: Path,
    *,
    baseline: Path | None = None,
    data: str | Path | None = None,
    preprocess: Path | None = None,
    target: str = "",
    plan: MeasurePlan | None = None,
    confidence: float = 0.95,
    trust: bool | str = False,
    device: str = "",
    set_power_mode: str | None = None,
    progress: Progress = silent,
) -> tuple[Measurement, tuple[str, ...]]:
    """Measure a bundle or a model beside a baseline, in turns on the same inputs.

    Args:
        subject: A bundle folder or an ONNX file.
        baseline: Another bundle or model; default the subject itself, which shows the noise floor.
        data: Real inputs; default synthetic ones, with a warning.
        preprocess: TOML preprocessing spec for image folders.
        target: Where to run; a bundle brings its own. Empty: ``cpu``, or what fits the device.
        plan: Protocol, load and meter; default: the default protocol, flat out, the best meter.
        confidence: Of the intervals.
        trust: Whether compiled code in a bundle may run although the user has not said so (`greencc.bundle.load`).
        device: Where to measure: ``ssh://user@host`` or a name; empty: here. Its own meter is read.
        set_power_mode: The mode that the device is put into meanwhile; None: it stays in its own.
        progress: Shows how far it is.

    Returns:
        The measurement and the warnings that go with it.
    """
    plan = plan or MeasurePlan()
    if device and plan.meter is not None:
        raise other_meter(plan.meter.name, device)
    effort = Effort.QUICK if plan.protocol.name == QUICK.name else Effort.STANDARD
    options = CompileOptions(
        effort=effort, confidence=confidence, target=target, device=device, set_power_mode=set_power_mode
    )
    spec = options.target
    if device and subject.is_dir():
        with load(subject, trust=trust) as bundle:
            spec = bundle.manifest.target
    with (
        tempfile.TemporaryDirectory(prefix="greencc-measure-") as scratch,
        opened_target(spec, device, power_mode=set_power_mode, progress=progress) as runs_on,
    ):
        require_timed(runs_on)
        session = Session(options, runs_on, Path(scratch), progress)
        with ExitStack() as opened:
            candidate = _variant(session, subject, trust, opened)
            reference = _variant(session, baseline, trust, opened) if baseline is not None else candidate
            if baseline is None:
                session.warn(
                    "no baseline was given: the subject is compared with itself, which shows the noise floor"
                )
            _check_same_inputs(reference.engine, candidate.engine, subject)
            if data is None:
                session.warn("no inputs were given: synthetic ones may cost less energy than real ones")
                source: DataSource = synthetic(candidate.engine.inputs, FEEDS)
            else:
                source = open_data(str(data), candidate.engine.inputs, preprocess=preprocess, role="input")
            size = candidate.engine.inputs[0].batch or 1
            feeds = whole_batches(source, size, FEEDS)
            if not feeds:
                raise InputError(f"there is no whole batch of {size} samples to measure with")
            with session.phase("measuring"):
                found = measure_variants(session, session.target.device(), reference, candidate, feeds, plan)
    return found, tuple(session.warnings)


def _variant(session: Session, path: Path, trust: bool | str, opened: ExitStack) -> Variant:
    """What is at a path, open until the stack is closed."""
    if not path.is_dir():
        # Read first: no target gets a file to open that is no model, but code.
        model = load_model(path)
        engine = session.target.open(path)
        opened.callback(engine.close)
        return Variant(path, engine, model, model_size(path, model))
    bundle = opened.enter_context(load(path, trust=trust))
    engine, artifact = _opened(session, bundle, opened), bundle.runnable()
    if artifact.suffix != ".onnx":
        return Variant(artifact, engine, None, folder_size(artifact.parent), target=_runs_on(session, bundle))
    model = load_model(artifact)
    return Variant(artifact, engine, model, model_size(artifact, model), target=_runs_on(session, bundle))


def _runs_on(session: Session, bundle: Bundle) -> Target:
    """What runs a bundle: its own target, or the device that is one."""
    return session.target if session.on_device else bundle.target


def _opened(session: Session, bundle: Bundle, opened: ExitStack) -> Engine:
    """A bundle's engine where it is measured."""
    if not session.on_device:
        require_timed(bundle.target)
        return bundle.engine()
    if (made_for := bundle.manifest.target) != format_spec(session.target):
        raise InputError(
            f"{bundle.path} was compiled for {made_for}, and the device is used as {format_spec(session.target)}",
            hint="measure bundles of one target",
        )
    engine = session.target.open(bundle.runnable())
    opened.callback(engine.close)
    return engine


def _check_same_inputs(first: Engine, second: Engine, subject: Path) -> None:
    names = [{spec.name for spec in engine.inputs} for engine in (first, second)]
    if names[0] != names[1]:
        raise InputError(
            f"{subject} has the inputs {', '.join(sorted(names[1]))}, "
            f"the baseline has {', '.join(sorted(names[0]))}",
            hint="measure variants of one model",
        )
