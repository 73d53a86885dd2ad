"""Metrics that greencc does not bring along, as `--metric benchmarks/metrics.py:NAME` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLANK = 0
PADDING = -1


def auc(outputs: Mapping[str, Array], labels: Array | None) -> float:
    """Area under the ROC curve of a two-class model: the Mann-Whitney statistic, ties counted half.

    Args:
        outputs: The first output has scores (n, 2); their difference ranks the samples.
        labels: 0 or 1, shape (n,).
    """
    if labels is None:
        raise ValueError("the area under the curve needs labels")
    scores = next(iter(outputs.values())).astype(np.float64)
    rank = scores[:, 1] - scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 2 else scores.reshape(-1)
    positive = np.asarray(labels).reshape(-1) == 1
    _, where, counts = np.unique(rank, return_inverse=True, return_counts=True)
    # Tied samples share the mean of their ranks.
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    wins = mean_rank[where][positive].sum() - positive.sum() * (positive.sum() + 1) / 2.0
    return float(wins / (positive.sum() * (~positive).sum()))


auc.aggregate = True  # type: ignore[attr-defined]


def ctc_line_accuracy(
    outputs: Mapping[str, Array], labels: Array | None, feeds: Mapping[str, Array]
) -> Array:
    """1 for each line read without a mistake (spaces aside), else 0, shape (n,).

    Args:
        outputs: The first output has probabilities (n, steps, classes); class 0 is blank, the last the space.
        labels: Class ids of the true text without its spaces, (n, longest), padded with -1.
        feeds: Unused.
    """
    del feeds
    if labels is None:
        raise ValueError("reading accuracy needs labels")
    lines = ctc_decode(next(iter(outputs.values())))
    truth = [row[row != PADDING].tolist() for row in np.asarray(labels).reshape(len(labels), -1)]
    return np.array([line == wanted for line, wanted in zip(lines, truth, strict=True)], dtype=np.float64)


def ctc_decode(scores: Array) -> list[list[int]]:
    """Best path: arg max of each step, repetitions merged, blanks and spaces (the last class) dropped."""
    space = scores.shape[-1] - 1
    lines = []
    for best in scores.argmax(axis=-1):
        kept = best[np.concatenate([[True], best[1:] != best[:-1]])]
        lines.append([int(c) for c in kept if c not in (BLANK, space)])
    return lines


def encode_lines(texts: Sequence[str], characters: Sequence[str]) -> Array:
    """Truth as `ctc_line_accuracy` wants it; `characters` are the classes 1, 2, ... of the recognizer.

    A character that the recognizer does not know becomes an id that it never gives, so its line counts as wrong.
    """
    ids = {character: number for number, character in reversed(list(enumerate(characters, start=1)))}
    unknown = len(characters) + 2
    rows = [[ids.get(c, unknown) for c in text if not c.isspace()] for text in texts]
    encoded = np.full((len(rows), max(map(len, rows))), PADDING, np.int64)
    for number, row in enumerate(rows):
        encoded[number, : len(row)] = row
    return encoded
