"""Metrics of the benchmarks against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.metrics import auc, ctc_decode, ctc_line_accuracy, encode_lines
from greencc.verify.user import load_user_metric


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(samples):
    scores = np.array([[0.0, score] for score, _ in samples])
    labels = np.array([int(positive) for _, positive in samples])
    if len(set(labels.tolist())) < 2:
        return
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, positive in zip(scores[:, 1], labels, strict=True)
        if positive
        for low, other in zip(scores[:, 1], labels, strict=True)
        if not other
    ]
    assert auc({"logits": scores}, labels) == pytest.approx(np.mean(pairs))


def one_hot(steps, classes):
    return np.eye(classes, dtype=np.float32)[np.array(steps)]


def test_decoding_merges_repetitions_and_drops_blanks_and_spaces():
    # Classes: 0 blank, 1 to 3 characters, 4 the space.
    scores = one_hot([[1, 1, 0, 1, 2, 2, 4, 3], [0, 0, 0, 0, 0, 0, 0, 4]], 5)
    assert ctc_decode(scores) == [[1, 1, 2, 3], []]


def test_a_line_counts_when_every_character_but_the_spaces_is_right():
    truth = encode_lines(["a b", "ab", "az"], ["a", "b", "c"])
    scores = one_hot([[1, 0, 4, 2], [1, 0, 0, 3], [1, 0, 0, 2]], 5)
    assert ctc_line_accuracy({"out": scores}, truth, {}).tolist() == [1.0, 0.0, 0.0]


def test_a_character_that_is_listed_twice_gets_its_first_class():
    assert encode_lines(["ba"], ["a", "b", "a"]).tolist() == [[2, 1]]


def test_greencc_loads_them_as_user_metrics():
    assert load_user_metric("benchmarks.metrics:auc").aggregate
    assert not load_user_metric("benchmarks.metrics:ctc_line_accuracy").aggregate
