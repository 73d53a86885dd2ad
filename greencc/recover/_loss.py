"""The loss of distillation.

For class scores, T^2 KL(teacher || student) at temperature T (Hinton et al., arXiv 1503.02531, section 2), plus the
relative squared error of the scores themselves, which alone distils as well (Kim et al., arXiv 2105.08919). For any
other output and for inner values, the squared error relative to the teacher's variance over the batch, so that
outputs of different size count alike. Outputs that are probabilities already are taken to their logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.kl import SUM_TOLERANCE, TINY, is_scores
from greencc.recover._samples import Sample
from greencc.recover._teacher import Teacher
from greencc.recover.options import RecoverOptions
from greencc.torch_graph.node import Tensor


def distillation(
    teacher: Teacher,
    targets: Mapping[str, Array],
    student: Mapping[str, Tensor],
    sample: Sample,
    options: RecoverOptions,
) -> Tensor:
    """The loss of one batch."""
    total = torch.zeros(())
    for name in teacher.outputs:
        total = total + _output_loss(targets[name], student[name], options.temperature)
    if teacher.features:
        each = [relative_error(torch.from_numpy(targets[name]), student[name]) for name in teacher.features]
        total = total + options.features * torch.stack(each).mean()
    if sample.labels is None:
        return total
    scores = next((name for name in teacher.outputs if is_scores(targets[name])), None)
    if scores is None:
        raise InputError(
            "no output of the model is class scores that labels could teach", hint="leave --labels out"
        )
    supervised = _cross_entropy(targets[scores], student[scores], sample)
    return options.alpha * total + (1.0 - options.alpha) * supervised


def relative_error(target: Tensor, found: Tensor) -> Tensor:
    """Mean squared error over the variance of the target; values that are not finite in the target do not count."""
    target = target.float()
    finite = torch.isfinite(target)
    if not bool(finite.all()):
        target, found = target[finite], found[finite]
    spread = (target - target.mean()).square().mean()
    return (found - target).square().mean() / (spread + TINY)


def _output_loss(target: Array, found: Tensor, temperature: float) -> Tensor:
    wanted = torch.from_numpy(np.asarray(target, np.float32))
    probable = is_probability(target)
    if not is_scores(target) and not probable:
        return relative_error(wanted, found)
    axis = 1 if is_scores(target) else -1
    old, new = _logits(wanted, probable), _logits(found, probable)
    log_p = torch.log_softmax(old / temperature, dim=axis)
    log_q = torch.log_softmax(new / temperature, dim=axis)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=axis).mean() * temperature**2
    return divergence if probable else divergence + relative_error(wanted, found)


def is_probability(array: Array) -> bool:
    """Whether the last axis (the class axis of scores) holds probabilities."""
    if array.ndim < 2 or array.shape[1 if is_scores(array) else -1] < 2 or (array < 0).any():
        return False
    sums = array.sum(axis=1 if is_scores(array) else -1)
    return bool((np.abs(sums - 1.0) < SUM_TOLERANCE).all())


def _logits(values: Tensor, probable: bool) -> Tensor:
    return torch.log(torch.clamp(values, min=1e-7)) if probable else values


def _cross_entropy(target: Array, found: Tensor, sample: Sample) -> Tensor:
    logits = _logits(found, is_probability(target)).flatten(1)
    assert sample.labels is not None
    result = sample.share * F.cross_entropy(logits, _classes(sample.labels, logits.shape[1]))
    if sample.others is None:
        return result
    return result + (1.0 - sample.share) * F.cross_entropy(logits, _classes(sample.others, logits.shape[1]))


def _classes(labels: Array, count: int) -> Tensor:
    flat = np.asarray(labels).reshape(len(labels), -1)
    if flat.shape[1] != 1 or flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= count:
        raise InputError(
            f"the labels of the training data are not one class of {count} per sample",
            hint="leave --labels out",
        )
    return torch.from_numpy(flat[:, 0].astype(np.int64))
