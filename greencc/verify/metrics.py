"""What counts as the same, and as a right, answer.

* A *score* output is a float array of shape (n, c) or (n, c, 1, ...) with c >= 2; its decision is the arg max.
* A *label* output is an integer, boolean or string array of shape (n,) or (n, 1); its decision is its value.
* Anything else (boxes, masks, embeddings, sequences) has no decision: samples are compared by closeness, the
  relative L2 error of every float output of the sample, with equality for the other types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.kl import is_float, is_scores
from greencc.verify.user import UserMetric, load_user_metric

# 10 % relative L2 error of a sample is an SQNR of 20 dB.
DEFAULT_TOLERANCE = 0.1


@dataclass(frozen=True)
class Auto:
    """Top-1 where every output is a score or label output (or labels are given), closeness otherwise."""


@dataclass(frozen=True)
class TopOne:
    """Top-1 on one output; None chooses the only score output, else the first, else the first label output."""

    output: str | None = None


@dataclass(frozen=True)
class Close:
    """All outputs of a sample within a relative L2 error of `tolerance`."""

    tolerance: float = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise UsageError(
                f"the tolerance is {self.tolerance:g}", hint="give a share in (0, 1), such as 0.1"
            )


Metric = Auto | TopOne | Close | UserMetric


def parse_metric(text: str | None) -> Metric:
    """Parse ``auto``, ``top1``, ``top1:OUTPUT``, ``close``, ``close:0.05`` or ``module:function``.

    Raises:
        UsageError: It is none of these.
    """
    kind, _, detail = (text or "auto").partition(":")
    if kind == "auto" and not detail:
        return Auto()
    if kind == "top1":
        return TopOne(detail or None)
    if kind == "close":
        try:
            return Close(float(detail)) if detail else Close()
        except ValueError:
            raise UsageError(
                f"metric {text!r}: {detail!r} is not a tolerance", hint="write close:0.1"
            ) from None
    if not detail:
        raise UsageError(
            f"unknown metric {text!r}",
            hint=did_you_mean(kind, ("auto", "top1", "close")) + "; or module:function",
        )
    return load_user_metric(text or "")


def is_labels(array: Array) -> bool:
    """True for the shape and type of class labels."""
    return not is_float(array) and (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1))


def classifier_output(outputs: Mapping[str, Array], wanted: str | None) -> str:
    """Name of the output that decides.

    Raises:
        UsageError: `wanted` is no output, or no output has a decision.
    """
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(f"the model has no output {wanted!r}", hint=did_you_mean(wanted, outputs))
        if not (is_scores(outputs[wanted]) or is_labels(outputs[wanted])):
            raise UsageError(
                f"output {wanted!r} has shape {list(outputs[wanted].shape)} and no class to compare",
                hint="top-1 needs scores of shape (n, classes) or labels of shape (n,)",
            )
        return wanted
    for test in (is_scores, is_labels):
        for name, value in outputs.items():
            if test(value):
                return name
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    raise UsageError(
        f"no output is a classification ({shapes})",
        hint="score it with --metric module:function, or compare outputs with --metric close",
    )


def decisions(output: Array) -> NDArray[Any]:
    """Decision of each sample, shape (n,). A row of scores with a NaN decides nothing: -1."""
    if not is_scores(output):
        if output.size != len(output):
            raise InputError(
                f"an output changed to shape {list(output.shape)}, which has no class to compare",
                hint="compare outputs with --metric close",
            )
        return output.reshape(len(output))
    scores = output.reshape(output.shape[:2])
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float32)
    best = scores.argmax(axis=1)
    best[np.isnan(scores).any(axis=1)] = -1
    return np.asarray(best)


def check_labels(labels: Array, output: Array, name: str) -> None:
    """Raise `InputError` where labels cannot be classes of the output `name`."""
    if labels.ndim not in (1, 2):
        raise InputError(
            f"labels have shape {list(labels.shape)}", hint="top-1 needs (n,), or (n, k) padded with -1"
        )
    if not is_scores(output):
        return
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"labels have type {labels.dtype}, but output {name!r} has scores", hint="give class indices"
        )
    classes = output.shape[1]
    if labels.size and int(labels.max()) >= classes:
        raise InputError(
            f"label {int(labels.max())} is out of range: output {name!r} has {classes} classes, 0 to {classes - 1}",
            hint="labels count from 0",
        )
    if labels.size and int(labels.min()) < -1:
        raise InputError(
            f"label {int(labels.min())} is negative", hint="classes count from 0; -1 stands for no label"
        )


def correct(decided: NDArray[Any], labels: Array, *, indices: bool) -> NDArray[np.bool_]:
    """Which samples have an acceptable decision, shape (n,).

    `labels` is (n,), or (n, k) where any of the k is acceptable. With `indices` the labels are class indices
    and negative ones are padding.
    """
    columns = labels.reshape(len(labels), -1)
    hits = decided[:, None] == columns
    if indices or columns.shape[1] > 1:
        hits &= _is_label(columns)
    return np.asarray(hits.any(axis=1), dtype=np.bool_)


def labelled(labels: Array, *, indices: bool) -> NDArray[np.bool_]:
    """Which samples have a label at all, shape (n,)."""
    columns = labels.reshape(len(labels), -1)
    if indices or columns.shape[1] > 1:
        return np.asarray(_is_label(columns).any(axis=1), dtype=np.bool_)
    return np.ones(len(labels), dtype=np.bool_)


def _is_label(columns: Array) -> NDArray[np.bool_]:
    if columns.dtype.kind == "i":
        return np.asarray(columns >= 0, dtype=np.bool_)
    return np.ones(columns.shape, dtype=np.bool_)
