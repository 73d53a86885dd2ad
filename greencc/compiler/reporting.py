"""What a compile found out, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from greencc import __version__
from greencc.compiler.data import Splits
from greencc.compiler.final import Final
from greencc.compiler.forms import ORIGINAL_RANK, Form
from greencc.compiler.layer_energy import layer_energies
from greencc.compiler.layers import layer_times, quantization_errors
from greencc.compiler.planning.plan import Plan
from greencc.compiler.run_times import Trial, rows
from greencc.compiler.select import Choice
from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.describe import describe
from greencc.core.errors import GreenccError
from greencc.core.files import sha256_file
from greencc.core.report import (
    Budget,
    BuildInfo,
    CompileInfo,
    LayerEnergies,
    LayerError,
    LayerTime,
    ModelInfo,
    Report,
)
from greencc.report import with_verdict
from greencc.targets import format_spec

PROFILE_RUNS = 20


@dataclass(frozen=True)
class Layers:
    """What is known by layer; empty or None where it is not."""

    times: tuple[LayerTime, ...] = ()
    errors: tuple[LayerError, ...] = ()
    energy: LayerEnergies | None = None


def layers_of(
    session: Session, path: Path, source: ir.Model, final: Final, splits: Splits, feeds: Feeds
) -> Layers:
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
    return Layers(times, errors, energy)


def make_report(
    session: Session,
    path: Path,
    source: ir.Model,
    splits: Splits,
    choice: Choice,
    plan: Plan | None,
    final: Final,
    layers: Layers,
    spent: CompileInfo,
    tried: list[Trial],
    build: BuildInfo | None,
) -> Report:
    """Everything `report.json` holds, its verdict included."""
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
