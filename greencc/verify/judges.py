"""Judges: accumulate one metric over a stream of paired batches and conclude with an interval and a certificate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array, Batch
from greencc.core.errors import InputError, UsageError
from greencc.core.kl import is_scores
from greencc.verify.certificate import Certificate, certify, certify_bounded
from greencc.verify.intervals import PoissonBootstrap, paired_drop, resamples
from greencc.verify.metrics import (
    Auto,
    Close,
    Metric,
    TopOne,
    check_labels,
    classifier_output,
    correct,
    decisions,
    is_labels,
    labelled,
)
from greencc.verify.user import UserMetric

Flags = NDArray[np.bool_]

# A bootstrap whose resamples are this often without a value (e.g. an AUC of one class) gives no interval.
_UNDEFINED_SHARE = 0.1


@dataclass(frozen=True)
class Paired:
    """One batch of both engines; `broken` and `close` are per sample, over all outputs (see `OutputStats`)."""

    baseline: Mapping[str, Array]
    artifact: Mapping[str, Array]
    batch: Batch
    broken: Flags
    close: Flags


@dataclass(frozen=True)
class Judgement:
    """What a judge concluded.

    Attributes:
        metric: The metric's name, for people.
        baseline: Its value; None where only agreement is known. `artifact`, `drop`, `low`, `high` likewise.
        certificate: None for metrics without a per-sample loss.
        failed: What a failure is, e.g. "got worse", for sentences.
        bounded: What the certificate bounds, e.g. "the drop in accuracy".
    """

    metric: str
    baseline: float | None
    artifact: float | None
    drop: float | None
    low: float | None
    high: float | None
    agreement: float | None
    n: int
    failures: int | None
    improved: int | None
    certificate: Certificate | None
    failed: str
    bounded: str


class Judge(Protocol):
    """Sees every batch once, then concludes."""

    def add(self, pair: Paired) -> None: ...

    def conclude(self, epsilon: float, confidence: float) -> Judgement: ...


def make_judge(metric: Metric, outputs: Mapping[str, Array], has_labels: bool) -> Judge:
    """The judge of a metric, given the baseline's outputs of the first batch.

    Raises:
        UsageError: The metric does not fit the outputs.
    """
    if isinstance(metric, UserMetric):
        return AggregateJudge(metric) if metric.aggregate else ScoreJudge(metric)
    if isinstance(metric, Close):
        return CloseJudge(metric.tolerance)
    if isinstance(metric, TopOne) or has_labels:
        wanted = metric.output if isinstance(metric, TopOne) else None
        name = classifier_output(outputs, wanted)
        return LabelJudge(name) if has_labels else DecisionJudge((name,))
    assert isinstance(metric, Auto)
    if outputs and all(is_scores(value) or is_labels(value) for value in outputs.values()):
        return DecisionJudge(tuple(outputs))
    return CloseJudge(Close().tolerance)


@dataclass
class LabelJudge:
    """Top-1 accuracy on one output. Loss: the baseline is right and the artifact is wrong."""

    output: str
    n: int = 0
    both: int = 0
    worse: int = 0
    better: int = 0
    total: int = 0
    agreeing: int = 0

    def add(self, pair: Paired) -> None:
        labels = pair.batch.labels
        if labels is None:
            raise InputError("a batch of the labelled data has no labels")
        reference = pair.baseline[self.output]
        check_labels(labels, reference, self.output)
        same, old, new = _decided(pair, self.output)
        indices = is_scores(reference)
        counted = labelled(labels, indices=indices)
        right_before = correct(old, labels, indices=indices) & counted
        right_after = correct(new, labels, indices=indices) & counted & ~pair.broken
        self.n += int(counted.sum())
        self.both += int((right_before & right_after).sum())
        self.worse += int((right_before & ~right_after).sum())
        self.better += int((~right_before & right_after).sum())
        self.total += len(same)
        self.agreeing += int(same.sum())

    def conclude(self, epsilon: float, confidence: float) -> Judgement:
        if self.n == 0:
            raise InputError("no sample of the evaluation data has a label", hint="-1 means: no label")
        low, high = paired_drop(self.worse, self.better, self.n, confidence)
        return Judgement(
            metric=f"top-1 accuracy ({self.output})",
            baseline=(self.both + self.worse) / self.n,
            artifact=(self.both + self.better) / self.n,
            drop=(self.worse - self.better) / self.n,
            low=low,
            high=high,
            agreement=self.agreeing / self.total,
            n=self.n,
            failures=self.worse,
            improved=self.better,
            certificate=certify(self.worse, self.n, epsilon, confidence),
            failed="got worse",
            bounded="the drop in accuracy is at most {limit}",
        )


@dataclass
class DecisionJudge:
    """Agreement of decisions without labels. Loss: any of the outputs decides differently.

    The drop in accuracy is at most the share of differing decisions, whatever the labels are.
    """

    outputs: tuple[str, ...]
    n: int = 0
    differing: int = 0

    def add(self, pair: Paired) -> None:
        same = ~pair.broken
        for name in self.outputs:
            same = same & _decided(pair, name)[0]
        self.n += len(same)
        self.differing += int((~same).sum())

    def conclude(self, epsilon: float, confidence: float) -> Judgement:
        return _agreement(
            metric=f"top-1 agreement ({', '.join(self.outputs)})",
            failures=self.differing,
            n=self.n,
            certificate=certify(self.differing, self.n, epsilon, confidence),
            failed="decided differently",
            bounded="at most {limit} of decisions differ, and so accuracy drops by at most {limit}",
        )


@dataclass
class CloseJudge:
    """Agreement of outputs that are no decisions. Loss: an output of the sample moved beyond the tolerance."""

    tolerance: float
    n: int = 0
    far: int = 0

    def add(self, pair: Paired) -> None:
        self.n += len(pair.close)
        self.far += int((~pair.close).sum())

    def conclude(self, epsilon: float, confidence: float) -> Judgement:
        share = f"{self.tolerance * 100:g} %"
        return _agreement(
            metric=f"outputs within {share}",
            failures=self.far,
            n=self.n,
            certificate=certify(self.far, self.n, epsilon, confidence),
            failed=f"moved by more than {share}",
            bounded=f"at most {{limit}} of samples have an output that moves by more than {share}",
        )


class ScoreJudge:
    """A per-sample metric of the user. Loss: how much the score fell, 0 where it rose."""

    def __init__(self, metric: UserMetric) -> None:
        self.metric = metric
        self.n = 0
        self.sums = [0.0, 0.0]
        self.loss = 0.0
        self.worse = 0
        self.better = 0
        self.same = 0
        self.binary = True
        self.bootstrap = PoissonBootstrap()

    def add(self, pair: Paired) -> None:
        batch = pair.batch
        before = self.metric.scores(pair.baseline, batch.labels, batch.feeds, batch.count)
        after = self.metric.scores(pair.artifact, batch.labels, batch.feeds, batch.count)
        after = np.where(pair.broken, 0.0, after)
        if np.isnan(before).any() or np.isnan(after).any():
            raise InputError(
                f"metric {self.metric.name} returned NaN", hint="give every sample a score in [0, 1]"
            )
        change = before - after
        self.n += batch.count
        self.sums[0] += float(before.sum())
        self.sums[1] += float(after.sum())
        self.loss += float(np.maximum(change, 0.0).sum())
        self.worse += int((change > 0).sum())
        self.better += int((change < 0).sum())
        self.same += int((change == 0).sum())
        self.binary &= bool(np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all())
        self.bootstrap.add(change)

    def conclude(self, epsilon: float, confidence: float) -> Judgement:
        # Without a single change a bootstrap would claim the interval [0, 0]; the score interval does not.
        if self.binary or self.same == self.n:
            low, high = paired_drop(self.worse, self.better, self.n, confidence)
        else:
            low, high = self.bootstrap.interval(confidence)
        certificate = (
            certify(self.worse, self.n, epsilon, confidence)
            if self.binary
            else certify_bounded(self.loss, self.n, epsilon, confidence)
        )
        before, after = self.sums[0] / self.n, self.sums[1] / self.n
        return Judgement(
            metric=self.metric.name,
            baseline=before,
            artifact=after,
            drop=before - after,
            low=low,
            high=high,
            agreement=self.same / self.n,
            n=self.n,
            failures=self.worse,
            improved=self.better,
            certificate=certificate,
            failed="got worse",
            bounded=f"the drop in {self.metric.name} is at most {{limit}}",
        )


class AggregateJudge:
    """A metric of the user over all samples at once. Keeps every output and label until the end."""

    def __init__(self, metric: UserMetric) -> None:
        self.metric = metric
        self.n = 0
        self.close = 0
        self.kept: tuple[list[Mapping[str, Array]], list[Mapping[str, Array]]] = ([], [])
        self.labels: list[Array] = []

    def add(self, pair: Paired) -> None:
        self.n += pair.batch.count
        self.close += int(pair.close.sum())
        self.kept[0].append(pair.baseline)
        self.kept[1].append(pair.artifact)
        if pair.batch.labels is not None:
            self.labels.append(pair.batch.labels)

    def conclude(self, epsilon: float, confidence: float) -> Judgement:
        del epsilon
        labels = np.concatenate(self.labels) if self.labels else None
        old, new = _stacked(self.kept[0]), _stacked(self.kept[1])
        before, after = self.metric.total(old, labels), self.metric.total(new, labels)
        if not (math.isfinite(before) and math.isfinite(after)):
            raise InputError(
                f"metric {self.metric.name} returned {before:g} and {after:g}, not finite numbers"
            )
        low, high = self._interval(old, new, labels, confidence)
        return Judgement(
            metric=self.metric.name,
            baseline=before,
            artifact=after,
            drop=before - after,
            low=low,
            high=high,
            agreement=self.close / self.n,
            n=self.n,
            failures=None,
            improved=None,
            certificate=None,
            failed="",
            bounded="",
        )

    def _interval(
        self, old: dict[str, Array], new: dict[str, Array], labels: Array | None, confidence: float
    ) -> tuple[float | None, float | None]:
        """Percentile bootstrap of the paired difference; (None, None) where the metric is often undefined."""
        drops: list[float] = []
        tried = 0
        for rows in resamples(self.n):
            tried += 1
            some = None if labels is None else labels[rows]
            pair = [{k: v[rows] for k, v in side.items()} for side in (old, new)]
            drop = self.metric.total(pair[0], some) - self.metric.total(pair[1], some)
            if math.isfinite(drop):
                drops.append(drop)
        if len(drops) < (1.0 - _UNDEFINED_SHARE) * tried:
            return None, None
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(drops, [tail, 1.0 - tail])
        return float(low), float(high)


def _agreement(
    metric: str, failures: int, n: int, certificate: Certificate, failed: str, bounded: str
) -> Judgement:
    return Judgement(
        metric=metric,
        baseline=None,
        artifact=None,
        drop=None,
        low=None,
        high=None,
        agreement=1.0 - failures / n,
        n=n,
        failures=failures,
        improved=None,
        certificate=certificate,
        failed=failed,
        bounded=bounded,
    )


def _decided(pair: Paired, name: str) -> tuple[Flags, Array, Array]:
    """(same and not broken, decisions of the baseline, decisions of the artifact)."""
    old = decisions(pair.baseline[name])
    if pair.artifact[name].shape != pair.baseline[name].shape:
        # Already counted as broken; any value will do.
        return np.zeros(len(old), np.bool_), old, old
    new = decisions(pair.artifact[name])
    return np.asarray((old == new) & ~pair.broken, dtype=np.bool_), old, new


def _stacked(batches: list[Mapping[str, Array]]) -> dict[str, Array]:
    stacked: dict[str, Array] = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if len({part.shape[1:] for part in parts}) > 1:
            raise UsageError(
                f"output {name!r} changes its shape from sample to sample",
                hint="an aggregate metric needs outputs of one shape; use a per-sample metric",
            )
        stacked[name] = np.concatenate(parts)
    return stacked
