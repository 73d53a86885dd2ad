"""Compare an artifact with its baseline on held-out data: one streaming pass, constant memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array, Batch, DataSource
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.progress import Progress, silent
from greencc.core.report import Accuracy
from greencc.verify.certificate import Certificate, check_limits
from greencc.verify.judges import Judge, Judgement, Paired, make_judge
from greencc.verify.metrics import DEFAULT_TOLERANCE, Close, Metric, parse_metric
from greencc.verify.outputs import OutputStats
from greencc.verify.streaming import SingleSamplesError, paired_batches


def compare(
    baseline: Engine,
    artifact: Engine,
    data: DataSource,
    *,
    metric: Metric | str | None = None,
    epsilon: float = 0.01,
    confidence: float = 0.95,
    batch: int = 32,
    progress: Progress = silent,
) -> Accuracy:
    """Run both engines on the same batches and judge the artifact.

    Args:
        data: The certification split, disjoint from what the artifact was tuned on.
        metric: A `Metric`, or how `parse_metric` reads one; None means `Auto`.
        epsilon: The largest drop that the certificate is about, as a fraction (0.01 is one point).
        confidence: Of the certificate (one-sided) and of the interval of the drop (two-sided).
        batch: Samples per run, for models that do not fix it. Models with outputs whose first axis is not the
            batch (detections, say) are run one sample at a time.

    Raises:
        UsageError: The metric does not fit the model, or a limit is out of range.
        InputError: No samples, labels that do not fit, or a metric of the user that fails.
    """
    check_limits(epsilon, confidence)
    if data.count == 0:
        raise InputError(f"{data.name} has no samples to verify on")
    chosen = metric if metric is not None and not isinstance(metric, str) else parse_metric(metric)
    whole: frozenset[str] = frozenset()
    while True:
        try:
            seen = _stream(baseline, artifact, data, chosen, batch, whole, progress)
        except SingleSamplesError as found:
            # Each round adds an output to `whole` or brings the batch down to 1, so this ends.
            batch, whole = 1, found.whole
        else:
            return seen.accuracy(data, epsilon, confidence)


class _Seen:
    """What one pass over the data accumulated."""

    def __init__(self, metric: Metric, outputs: dict[str, Array], has_labels: bool) -> None:
        tolerance = metric.tolerance if isinstance(metric, Close) else DEFAULT_TOLERANCE
        self.stats = {name: OutputStats(name, tolerance) for name in outputs}
        self.judge: Judge = make_judge(metric, outputs, has_labels)
        self.broken = 0
        self.total = 0
        self.blank = 0

    def add(self, batch: Batch, old: dict[str, Array], new: dict[str, Array]) -> None:
        verdicts = [stats.add(old[name], new[name]) for name, stats in self.stats.items()]
        broken = np.logical_or.reduce([verdict.broken for verdict in verdicts])
        close = np.logical_and.reduce([verdict.close for verdict in verdicts])
        # Where the baseline itself gives nothing, neither agreement nor a loss can be claimed. Whatever is broken is
        # a failure all the same, and with it all samples of outputs of another shape: the rest can be indexed.
        blank = np.logical_or.reduce([verdict.blank for verdict in verdicts]) & ~broken
        self.total += batch.count
        self.broken += int(broken.sum())
        self.blank += int(blank.sum())
        pair = Paired(old, new, batch, broken, close)
        if not blank.any():
            self.judge.add(pair)
        elif not blank.all():
            self.judge.add(_rows(pair, ~blank))

    def accuracy(self, data: DataSource, epsilon: float, confidence: float) -> Accuracy:
        if self.blank == self.total:
            return self._undecidable(epsilon, confidence)
        judged = self.judge.conclude(epsilon, confidence)
        # The samples that can be judged are not drawn like the data, so they prove nothing about them.
        proven = not data.synthetic and not self.blank
        proof = judged.certificate if proven else None
        return Accuracy(
            metric=judged.metric,
            baseline=judged.baseline,
            artifact=judged.artifact,
            drop=judged.drop,
            low=judged.low,
            high=judged.high,
            agreement=judged.agreement,
            n=judged.n,
            certified=proof is not None and proof.certified,
            epsilon=epsilon,
            confidence=confidence,
            failures=judged.failures,
            p_value=None if proof is None else proof.p_value,
            n_needed=None if proof is None else proof.n_needed,
            reason=_reason(judged, data.synthetic, self.broken, self._blank_reason() if self.blank else None),
            outputs=tuple(stats.result() for stats in self.stats.values()),
            improved=judged.improved,
            broken=self.broken,
        )

    def _blank_reason(self) -> str:
        return (
            f"not certified: the original's own outputs are not finite for {self.blank:,} of "
            f"{_samples(self.total)}"
        )

    def _undecidable(self, epsilon: float, confidence: float) -> Accuracy:
        """The baseline gave nothing finite for any sample."""
        return Accuracy(
            metric="none",
            baseline=None,
            artifact=None,
            drop=None,
            low=None,
            high=None,
            agreement=None,
            n=0,
            certified=False,
            epsilon=epsilon,
            confidence=confidence,
            failures=None,
            p_value=None,
            n_needed=None,
            reason=self._blank_reason(),
            outputs=tuple(stats.result() for stats in self.stats.values()),
        )


def _rows(pair: Paired, keep: NDArray[np.bool_]) -> Paired:
    """Some of the samples of a batch."""
    batch = pair.batch
    return Paired(
        {name: value[keep] for name, value in pair.baseline.items()},
        {name: value[keep] for name, value in pair.artifact.items()},
        Batch(
            {name: value[keep] for name, value in batch.feeds.items()},
            None if batch.labels is None else batch.labels[keep],
        ),
        pair.broken[keep],
        pair.close[keep],
    )


def _stream(
    baseline: Engine,
    artifact: Engine,
    data: DataSource,
    metric: Metric,
    size: int,
    whole: frozenset[str],
    progress: Progress,
) -> _Seen:
    seen: _Seen | None = None
    for batch, old, new in paired_batches(baseline, artifact, data, size, whole, progress):
        if seen is None:
            has_labels = data.has_labels and batch.labels is not None
            seen = _Seen(metric, old, has_labels)
        seen.add(batch, old, new)
    if seen is None:
        raise InputError(f"{data.name} yielded no samples to verify on")
    return seen


def _reason(judged: Judgement, synthetic: bool, broken: int, blank: str | None) -> str:
    """One sentence: what is certified, or why it is not and what would help."""
    if synthetic:
        text = "not certified: the data is synthetic and says nothing about real inputs"
    elif blank is not None:
        text = blank
    elif judged.certificate is None:
        text = (
            f"not certified: {judged.metric} scores all samples at once, and only per-sample scores can be "
            "certified; the interval of the drop is a bootstrap"
        )
    else:
        text = _proof(judged, judged.certificate)
    if broken:
        text += (
            f"; {_samples(broken)} of the artifact with non-finite values or another shape counted as failed"
        )
    return text


def _proof(judged: Judgement, proof: Certificate) -> str:
    limit = f"{proof.epsilon * 100:g} %"
    failed = f"{judged.failures:,} of {_samples(proof.n)} {judged.failed}"
    if proof.certified:
        bound = judged.bounded.format(limit=limit)
        return f"certified: with {proof.confidence * 100:g} % confidence {bound} ({failed})"
    if proof.n_needed is None:
        rate = proof.loss / proof.n
        return (
            f"not certified: {failed}, a loss of {rate * 100:.3g} %, which is not below the limit of {limit}"
        )
    if not judged.failures:
        return (
            f"not certifiable with n = {proof.n:,}: a limit of {limit} needs at least {proof.n_needed:,} "
            "samples, none failing"
        )
    return (
        f"not certified with n = {proof.n:,}: {failed}; at that rate a limit of {limit} needs about "
        f"{proof.n_needed:,} samples"
    )


def _samples(count: int) -> str:
    return f"{count:,} sample" if count == 1 else f"{count:,} samples"
