"""Which samples calibrate, which steer choices, and which certify: three disjoint splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from greencc.calibration import (
    Part,
    Source,
    Subset,
    open_data,
    overlap,
    sample_digests,
    split,
    synthetic,
    take,
)
from greencc.compiler.options import Precision
from greencc.compiler.session import Session
from greencc.core.data import DataSource, Feeds, TensorSpec
from greencc.core.engine import Engine
from greencc.core.errors import InputError, UsageError
from greencc.core.report import CalibrationInfo

PLANNING_SHARE = 0.25
MAX_PLANNING = 1_000
GATE_SAMPLES = 2
# Inputs that measurements cycle through.
FEEDS = 32
FEW_SAMPLES = 32
# Of the certification split: about a minute where 100 million multiply-accumulates are emulated a second.
_EMULATED_MACS = 6e9
_UNKNOWN_MACS = 10**9
_FEWEST_EMULATED, _MOST_EMULATED = 16, 512


@dataclass(frozen=True)
class Splits:
    """Disjoint data. `calibration` is None when there is none; `certification` may be synthetic.

    Attributes:
        calibration: Sets ranges.
        planning: Chooses among forms.
        certification: Certifies the chosen form; used once.
        info: Where the calibration data came from, for the report.
    """

    calibration: DataSource | None
    planning: DataSource
    certification: DataSource
    info: CalibrationInfo | None

    def samples(self, baseline: Engine, batch: int | None) -> list[Feeds]:
        """A few feeds for the equivalence gate: real ones where there are any.

        Where the batch is dynamic, one of them has two samples, so that a rewrite that bakes in a batch of one is
        found; exports whose batch is dynamic in name only are run one sample at a time.

        Args:
            baseline: The original model.
            batch: Its fixed batch, or None.

        Raises:
            InputError: There are fewer samples than a batch, or the model cannot be run.
        """
        source = take(self.calibration or self.planning, GATE_SAMPLES * (batch or 1))
        size = batch or 1
        singles = whole_batches(source, size, source.count)
        if not singles:
            raise InputError(
                f"the model takes batches of {size} samples, and there are fewer", hint="give more samples"
            )
        baseline.run(singles[0])
        if batch is not None:
            return singles
        pair = next(iter(source.batches(2)))
        try:
            baseline.run(pair.feeds)
        except InputError:
            return singles
        return [singles[0], pair.feeds]

    def seen(self) -> bytes:
        """Keys of all samples that certification must never use again, for `greencc verify`."""
        sources = [source for source in (self.calibration, self.planning) if source and not source.synthetic]
        return b"".join(key for source in sources for key in sample_digests(source))


def whole_batches(source: DataSource, size: int, most: int) -> list[Feeds]:
    """The first `most` batches of exactly `size` samples."""
    return [piece.feeds for piece in islice((p for p in source.batches(size) if p.count == size), most)]


def open_splits(session: Session, inputs: Sequence[TensorSpec], macs: int | None = None) -> Splits:
    """Open what the user gave and split it.

    Args:
        session: Its options say where the data are.
        inputs: Of the model.
        macs: Multiply-accumulates of one inference: where engines are emulated, how many samples they are run on
            depends on it.

    Raises:
        InputError: The data is missing, corrupt or does not fit the model.
        UsageError: Static INT8 was asked for and there is nothing to calibrate on.
    """
    options = session.options
    if options.preprocess is not None and not any(
        spec is not None and Path(str(spec)).is_dir() for spec in (options.calibration, options.evaluation)
    ):
        raise UsageError(
            f"--preprocess {options.preprocess} was given without a folder of images",
            hint="name a folder with --calibration or --eval, or leave --preprocess out",
        )
    calibration = opened(session, options.calibration, inputs, "calibration")
    evaluation = opened(session, options.evaluation, inputs, "evaluation")
    if options.precision.needs_calibration and calibration is None:
        raise UsageError(
            f"precision {options.precision.value} needs calibration data and none was given",
            hint="pass --calibration DATA (64 or more real inputs), apart from the evaluation data",
        )
    if calibration is not None and evaluation is None and not calibration.synthetic:
        held_out, calibration = _hold_out(session, calibration)
        evaluation = held_out
    elif calibration is not None and evaluation is not None:
        evaluation = _disjoint(session, calibration, evaluation)
    if evaluation is None:
        session.warn("no evaluation data was given: the accuracy is not certified")
        evaluation = synthetic(inputs, 64, seed=options.seed)
    evaluation = _distinct(session, evaluation)
    used = take(calibration, options.samples, seed=options.seed) if calibration is not None else None
    if (
        used is not None
        and used.count < FEW_SAMPLES
        and (options.precision is Precision.AUTO or options.precision.needs_calibration)
    ):
        session.warn(
            f"calibration rests on {used.count} sample{'s' * (used.count > 1)}: "
            f"{FEW_SAMPLES} or more give steadier INT8 ranges"
        )
    planning, certification = _plan_and_certify(evaluation, options.seed)
    if session.target.emulated():
        planning, certification = _for_emulation(session, planning, certification, macs)
    for source in (used, evaluation):
        for note in source.notes if isinstance(source, Source) else ():
            session.warn(note)
    info = (
        CalibrationInfo(source=used.name, digest=used.digest(), n=used.count, synthetic=used.synthetic)
        if used is not None
        else None
    )
    return Splits(used, planning, certification, info)


def opened(session: Session, spec: object, inputs: Sequence[TensorSpec], role: str) -> DataSource | None:
    """What the user gave as data of a role, opened once for all compiles that share it; None: nothing.

    Raises:
        InputError: It is missing, corrupt or does not fit the model.
    """
    if spec is None:
        return None
    options, known = session.options, session.shared.sources
    labelled = role == "evaluation" or options.evaluation is None
    # Arrays are preprocessed already; the spec is for whichever of the two sources is a folder of images.
    preprocess = options.preprocess if Path(str(spec)).is_dir() else None
    labels = options.labels if labelled else None
    key = (str(spec), role, str(labels), str(preprocess))
    if key not in known:
        known[key] = open_data(str(spec), inputs, labels=labels, preprocess=preprocess, role=role)
    return known[key]


def _hold_out(session: Session, source: DataSource) -> tuple[DataSource, DataSource]:
    """Keep half of the calibration data, or what calibration does not need, for evaluation."""
    if source.count < 2:
        raise InputError(
            f"{source.name} has one sample, which cannot both calibrate and verify",
            hint="give more samples, or others through --eval",
        )
    wanted = min(session.options.samples, source.count // 2)
    calibration, held_out = split(
        source,
        (Part("calibration", count=wanted), Part("evaluation", count=source.count - wanted)),
        seed=session.options.seed,
    )
    return held_out, calibration


def _disjoint(session: Session, calibration: DataSource, evaluation: DataSource) -> DataSource:
    """Drop evaluation samples that calibration has seen."""
    shared = overlap(calibration, evaluation)
    if not len(shared):
        return evaluation
    if len(shared) == evaluation.count:
        raise InputError(
            f"every evaluation sample of {evaluation.name} is also a calibration sample",
            hint="leave --eval out to let greencc hold some of the calibration data back",
        )
    session.warn(
        f"{len(shared)} evaluation samples also occur in the calibration data and were left out of the evaluation"
    )
    rest = np.setdiff1d(np.arange(evaluation.count, dtype=np.int64), shared)
    return Subset(f"{evaluation.name} ({len(rest)} of {evaluation.count})", evaluation, rest)


def _distinct(session: Session, evaluation: DataSource) -> DataSource:
    """Drop copies: a sample that occurs twice is one observation, not two."""
    if evaluation.synthetic:
        return evaluation
    first: dict[bytes, int] = {}
    for index, key in enumerate(sample_digests(evaluation)):
        first.setdefault(key, index)
    if len(first) == evaluation.count:
        return evaluation
    session.warn(f"{evaluation.count - len(first)} evaluation samples are copies of others and were left out")
    return Subset(evaluation.name, evaluation, np.array(sorted(first.values()), np.int64))


def _for_emulation(
    session: Session, planning: DataSource, certification: DataSource, macs: int | None
) -> tuple[DataSource, DataSource]:
    """As many samples as an emulator can be asked to run; the certificate is of those that were."""
    possible = round(_EMULATED_MACS / max(macs or _UNKNOWN_MACS, 1))
    certified = min(max(possible, _FEWEST_EMULATED), _MOST_EMULATED)
    steered = max(_FEWEST_EMULATED, round(certified * PLANNING_SHARE))
    kept = [
        source if source.count <= most else take(source, most, seed=session.options.seed)
        for source, most in ((planning, steered), (certification, certified))
    ]
    if kept[1].count < certification.count:
        session.warn(
            f"the artifact runs under emulation here, so its accuracy was checked on {kept[1].count} of "
            f"{certification.count} samples ('greencc verify' on the device checks as many as you give it)"
        )
    return kept[0], kept[1]


def _plan_and_certify(evaluation: DataSource, seed: int) -> tuple[DataSource, DataSource]:
    if evaluation.synthetic:
        return evaluation, evaluation
    if evaluation.count < 2:
        raise InputError(
            f"{evaluation.name} has one sample, which cannot both choose and certify",
            hint="give more samples",
        )
    count = min(MAX_PLANNING, max(1, round(evaluation.count * PLANNING_SHARE)))
    planning, certification = split(
        evaluation,
        (Part("planning", count=count), Part("certification", count=evaluation.count - count)),
        seed=seed,
    )
    return planning, certification
