"""`greencc recover`: a bundle and training data in, a bundle with a recovered network out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc import __version__
from greencc.bundle import Bundle, load, write_bundle
from greencc.bundle.manifest import FILE_NAME as MANIFEST
from greencc.calibration import take
from greencc.compiler.contender import judge
from greencc.compiler.counts import operation_counts
from greencc.compiler.data import FEEDS, Splits, open_splits, whole_batches
from greencc.compiler.measurement import measure_variants
from greencc.compiler.options import CompileOptions, Effort, Precision
from greencc.compiler.placing import folder_size, model_size
from greencc.compiler.session import Session, available_target
from greencc.compiler.sources import source_of, unseen
from greencc.compiler.variant import Variant
from greencc.core.cache import cache_key
from greencc.core.describe import input_specs
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.files import atomic_folder
from greencc.core.model import digest
from greencc.core.passes import Context, Finding, Pass
from greencc.core.progress import Progress, silent
from greencc.core.report import Budget, Candidate, PassRecord, Report
from greencc.meters.model import device_power, load_of
from greencc.meters.window import Spent, Window
from greencc.recover._inputs import compressed_graph, recipe_text
from greencc.recover._judged import compare, refuse_result
from greencc.recover._work import training_work
from greencc.recover.evaluator import Evaluator
from greencc.recover.options import RecoverOptions
from greencc.report import with_verdict
from greencc.targets import format_spec
from greencc.torch_graph import require_torch, torch_threads
from greencc.verify.metrics import parse_metric

_CALIBRATION = 256


@dataclass(frozen=True)
class RecoverJob:
    """What goes in and what is asked of the result.

    Attributes:
        bundle: The bundle to recover.
        model: The model it was compiled from, which teaches.
        data: Training data, with or without labels.
        evaluation: Held-out data; default half of `data`, which is then not trained on.
        evaluator: ``module:function``, see `greencc.recover.evaluator`.
        metric: As in `CompileOptions`.
        max_drop: As in `CompileOptions`; with an evaluator, of its score, relative to the original model's.
        confidence: As in `CompileOptions`.
        require_certified: As in `CompileOptions`.
        effort: How long to measure.
        cache: Keep checkpoints between runs.
        options: Of the training.
    """

    bundle: Path
    model: Path
    data: str | Path
    evaluation: str | Path | None = None
    evaluator: str | None = None
    metric: str | None = None
    max_drop: float = 0.01
    confidence: float = 0.95
    require_certified: bool = False
    effort: Effort = Effort.STANDARD
    cache: bool = True
    options: RecoverOptions = field(default_factory=RecoverOptions)

    def compile_options(self, target: str) -> CompileOptions:
        """The same wishes, as a compile has them."""
        return CompileOptions(
            target=target,
            calibration=self.data,
            evaluation=self.evaluation,
            metric=self.metric,
            precision=Precision.AUTO,
            max_drop=self.max_drop,
            confidence=self.confidence,
            require_certified=self.require_certified,
            samples=np.iinfo(np.int32).max,
            effort=self.effort,
            seed=self.options.seed,
            cache=self.cache,
        )


def recover_bundle(
    job: RecoverJob, *, output: Path | None = None, force: bool = False, progress: Progress = silent
) -> Bundle:
    """Fine-tune the network of a bundle, certify and measure it, and write a new bundle.

    Args:
        job: What to do.
        output: The new bundle's folder; default ``<name>-recovered.greencc`` in the current folder.
        force: Replace an existing bundle.
        progress: Shows how far long steps are.

    Raises:
        UnavailableError: PyTorch is not installed, or the bundle's target does not run here.
        InputError: The bundle, the model or the data do not fit, or the graph cannot be trained.
        LimitError: The result is no better than the bundle, or outside the limit. Nothing is written.
    """
    require_torch("fine-tuning")
    parse_metric(job.metric)
    evaluator = None if job.evaluator is None else Evaluator.load(job.evaluator)
    with load(job.bundle) as bundle:
        final = output or Path(f"{bundle.name}-recovered.greencc")
        _check_output(final, job.bundle, force)
        target = available_target(bundle.manifest.target)
        with atomic_folder(final, overwrite=force) as work:
            scratch = work / "scratch"
            scratch.mkdir()
            session = Session(job.compile_options(bundle.manifest.target), target, scratch, progress)
            try:
                _Recovery(job, bundle, session, evaluator).run(work)
            finally:
                session.close()
                shutil.rmtree(scratch, ignore_errors=True)
    return load(final)


def _check_output(final: Path, source: Path, force: bool) -> None:
    if final.resolve() == source.resolve():
        raise InputError(f"{final} is the bundle itself", hint="name another folder with -o")
    if final.exists() and force and not (final / MANIFEST).is_file():
        raise InputError(f"{final} exists and is not a bundle, so --force does not replace it")


class _Recovery:
    """One run of `recover_bundle`."""

    def __init__(
        self, job: RecoverJob, bundle: Bundle, session: Session, evaluator: Evaluator | None
    ) -> None:
        self.job, self.bundle, self.session, self.evaluator = job, bundle, session, evaluator

    def run(self, work: Path) -> None:
        session, target = self.session, self.session.target
        with session.phase("loading"):
            teacher = source_of(self.bundle, self.job.model)
            student, requantize = compressed_graph(self.bundle)
            splits = self._splits(teacher)
        baseline = target.open(self.job.model)
        session.engines.append(baseline)
        taught_record, model, spent = self._teach(teacher, student, requantize, splits, baseline)
        with session.phase("building"):
            artifact = target.build(target.lower(model), work / "artifact")
        after = target.open(artifact)
        session.engines.append(after)
        with session.phase("planning"):
            judged = compare(
                session, (baseline, self.bundle.engine(), after), splits.planning, self.evaluator
            )
        with session.phase("certifying"):
            accuracy = judge(session, baseline, after, splits.certification)
        refuse_result(accuracy, judged, session.options)
        batch = input_specs(teacher)[0].batch
        feeds = whole_batches(splits.planning, batch or 1, FEEDS)
        if not feeds:
            raise InputError(
                "there is no whole batch of held-out samples to measure with", hint="give more samples"
            )
        device = target.device()
        with session.phase("measuring"):
            measured = measure_variants(
                session,
                device,
                Variant(
                    self.job.model, baseline, teacher, model_size(self.job.model, teacher), accuracy.baseline
                ),
                Variant(artifact, after, model, folder_size(artifact.parent), accuracy.artifact),
                feeds,
            )
        old = self.bundle.report
        report = with_verdict(
            Report(
                greencc=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                verdict="",
                precision=old.precision,
                model=old.model,
                target=format_spec(target),
                device={"name": device.name, "fingerprint": device.fingerprint, **device.facts},
                conditions=measured.conditions,
                versions={"greencc": __version__, **target.versions(), "torch": _torch_version()},
                baseline=measured.baseline,
                artifact=measured.artifact,
                ratio=measured.ratio,
                accuracy=accuracy,
                budget=Budget(asked=self._asked(), met=True if accuracy.certified else None),
                candidates=(
                    Candidate(
                        "the bundle as it came",
                        None,
                        judged.losses[0],
                        False,
                        "not chosen: before fine-tuning",
                    ),
                    Candidate("recovered", None, judged.losses[1], True, f"fine-tuned with {spent.text()}"),
                ),
                passes=(
                    *old.passes,
                    replace(taught_record, findings=(*taught_record.findings, _note(judged.text()))),
                ),
                calibration=splits.info,
                layers=(),
                layer_errors=(),
                warnings=tuple(session.warnings),
                compile=session.compile_info(),
            )
        )
        shutil.rmtree(session.scratch)
        write_bundle(
            work,
            report=report,
            recipe=recipe_text(self.bundle, taught_record),
            artifact=artifact,
            target=target,
            model_digest=self.bundle.manifest.model_digest,
            seen=splits.seen() + b"".join(sorted(self.bundle.seen)),
            evaluation_digest=splits.certification.digest(),
        )

    def _asked(self) -> dict[str, Any]:
        """What was asked of the bundle, and now."""
        old = self.bundle.report.budget.asked
        asked = {
            **old,
            **self.session.options.asked(),
            "precision": old.get("precision"),
            "format": old.get("format"),
        }
        passes, recipe = old.get("passes"), old.get("recipe")
        if isinstance(recipe, str):
            return asked | {"recipe": f"{recipe}, then recover"}
        return asked | {"passes": f"{passes},recover" if isinstance(passes, str) else "recover"}

    def _splits(self, teacher: ir.Model) -> Splits:
        """Training, planning and certification data; nothing that the bundle was tuned on certifies."""
        splits = open_splits(self.session, input_specs(teacher))
        if splits.calibration is None or splits.calibration.synthetic:
            raise InputError("made-up data teach nothing", hint="give real samples with --data")
        return replace(splits, certification=unseen(splits.certification, self.bundle.seen))

    def _teach(
        self,
        teacher: ir.Model,
        student: ir.Model,
        requantize: Sequence[Pass],
        splits: Splits,
        baseline: Engine,
    ) -> tuple[PassRecord, ir.Model, Spent]:
        from greencc.recover._student import teach
        from greencc.recover._train import Job

        session, target, options = self.session, self.session.target, self.job.options
        data = splits.calibration
        assert data is not None
        if options.labels and not data.has_labels:
            raise InputError(
                f"{data.name} has no labels", hint="leave --labels out to learn from the teacher alone"
            )
        fixed = input_specs(teacher)[0].batch
        samples = splits.samples(baseline, fixed)
        ctx = Context(
            capabilities=target.capabilities(),
            build=target.reference,
            samples=samples,
            calibration=take(data, _CALIBRATION, seed=options.seed),
            progress=session.progress,
            observe=target.calibration_engine,
            cache=session.cache,
        )
        window = Window()
        key = cache_key(digest(teacher), data.digest(), options.facts())
        facts = target.device().facts
        with session.phase("fine-tuning"), torch_threads(int(facts.get("threads", "1"))):
            taught = teach(
                teacher,
                student,
                requantize,
                Job(
                    data,
                    options,
                    key,
                    session.cache,
                    session.progress,
                    whole=fixed is not None,
                    after_epoch=window.tick,
                ),
                ctx,
                fixed or options.batch,
            )
        one = samples[0]
        rows = fixed or len(next(iter(one.values())))
        work = training_work(
            operation_counts(session, taught.model, one),
            operation_counts(session, teacher, one),
            taught.samples // rows,
        )
        spent = window.close(work, device_power(facts), load_of(facts))
        findings = [
            _note(f"fine-tuning took {spent.text()}"),
            _note(f"{taught.parameters:,} weights were trained; loss by epoch {_losses(taught.runs)}"),
            _note(
                f"inner values that were matched: {', '.join(taught.features) or 'none have the same shape'}"
            ),
        ]
        if taught.cut:
            findings.append(_note(f"{taught.cut} channels that the group lasso emptied were cut"))
        resumed = sum(run.resumed for run in taught.runs)
        if resumed:
            findings.append(_note(f"{resumed} epochs come from an earlier run: its energy is not counted"))
        record = PassRecord(
            "recover", options.facts(), taught.parameters, None, False, tuple(findings), spent.seconds
        )
        return record, taught.model, spent


def _losses(runs: Sequence[object]) -> str:
    values = [f"{loss:.3g}" for run in runs for loss in getattr(run, "loss", ())]
    return ", ".join(values if len(values) <= 12 else [*values[:4], "...", *values[-4:]])


def _note(text: str) -> Finding:
    return Finding("note", text)


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
