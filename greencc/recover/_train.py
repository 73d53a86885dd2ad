"""The training loop: shuffled batches, the teacher beside the student, a cosine, a checkpoint after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from greencc.core.cache import Cache
from greencc.core.data import Array, DataSource
from greencc.core.errors import InputError
from greencc.core.progress import Progress, silent
from greencc.recover import _checkpoint
from greencc.recover._checkpoint import Checkpoint
from greencc.recover._lasso import GroupLasso
from greencc.recover._loss import distillation
from greencc.recover._samples import steps_per_epoch, training_batches
from greencc.recover._teacher import Teacher
from greencc.recover.options import Optimizer, RecoverOptions
from greencc.torch_graph.graph import TorchGraph
from greencc.torch_graph.node import Tensor

_WARM_UP = 0.05
_CLIP = 5.0
# Of the peak learning rate: a network that is being rounded has only to settle.
_ROUNDED_LR = 0.2
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Job:
    """One run of training.

    Attributes:
        data: What it is trained on.
        options: How.
        key: Of its checkpoints; covers everything training depends on.
        cache: Keeps them.
        progress: Shows how far it is.
        whole: Leave out what does not fill a batch.
        after_epoch: Called after each epoch, for what must be looked at from time to time.
    """

    data: DataSource
    options: RecoverOptions
    key: str
    cache: Cache = field(default_factory=Cache)
    progress: Progress = silent
    whole: bool = False
    after_epoch: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        loss: Mean loss of each epoch.
        samples: How many were trained on now, those of an earlier run that was interrupted aside.
        resumed: Epochs that an earlier run had done.
    """

    loss: tuple[float, ...]
    samples: int
    resumed: int


def train(
    student: TorchGraph,
    teacher: Teacher,
    job: Job,
    *,
    epochs: int,
    batch: int,
    rounding: bool = False,
    lasso: GroupLasso | None = None,
) -> Trained:
    """Train the student's parameters in place.

    Args:
        student: The compressed network.
        teacher: The one it was made from.
        job: Data and options.
        epochs: How many.
        batch: Samples per step.
        rounding: Train it as it is rounded, at a lower learning rate.
        lasso: Empties channels.

    Raises:
        InputError: The data do not fit, or the loss became NaN or infinite.
    """
    torch.manual_seed(job.options.seed)
    steps = steps_per_epoch(job.data, batch, job.whole)
    peak = job.options.lr * (_ROUNDED_LR if rounding else 1.0)
    optimizer = _optimizer(student.parameters, job.options, peak)
    found = _checkpoint.load(job.cache, job.key, {n: tuple(p.shape) for n, p in student.parameters.items()})
    first, losses, done = 0, [], 0
    if found is not None and found.epoch <= epochs:
        _restore(student, optimizer, found)
        first, losses, done = found.epoch, list(found.loss), found.steps
    samples = 0
    for epoch in range(first, epochs):
        total = 0.0
        batches = training_batches(job.data, batch, epoch, job.options, whole=job.whole)
        label = f"Epoch {epoch + 1} of {epochs}" + (" (rounded)" if rounding else "")
        for sample in job.progress(batches, label=label, total=steps):
            rate = peak * schedule(done, steps * epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            targets = teacher.targets(sample.feeds)
            outputs = student.run(sample.feeds, [*teacher.outputs, *teacher.features], rounding=rounding)
            loss = distillation(teacher, targets, outputs, sample, job.options)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"the loss became {value} in epoch {epoch + 1}", hint="lower --lr, and check the data"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(student.parameters.values()), _CLIP)
            optimizer.step()
            if lasso is not None:
                lasso.shrink(student.parameters, rate * job.options.group_sparsity)
            done += 1
            total += value
            samples += len(next(iter(sample.feeds.values())))
        losses.append(total / steps)
        _checkpoint.save(job.cache, job.key, _state(student, optimizer, epoch + 1, done, losses))
        job.after_epoch()
    return Trained(tuple(losses), samples, first)


def schedule(step: int, total: int) -> float:
    """Share of the peak learning rate at a step: a short linear rise, then half a cosine down to zero."""
    rise = max(1, round(_WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _optimizer(parameters: Mapping[str, Tensor], options: RecoverOptions, lr: float) -> Tensor:
    values = list(parameters.values())
    if options.optimizer is Optimizer.SGD:
        return torch.optim.SGD(values, lr=lr, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.Adam(values, lr=lr)


def _state(student: TorchGraph, optimizer: Tensor, epoch: int, steps: int, losses: list[float]) -> Checkpoint:
    first: dict[str, Array] = {}
    second: dict[str, Array] = {}
    for name, parameter in student.parameters.items():
        state = optimizer.state.get(parameter, {})
        zero = np.zeros(tuple(parameter.shape), np.float32)
        for into, key in ((first, "exp_avg"), (second, "exp_avg_sq"), (first, "momentum_buffer")):
            if key in state:
                value = state[key]
                into[name] = zero if value is None else value.detach().numpy().copy()
    # A parameter that has had no gradient yet has no moments.
    for moments in (first, second):
        for name, parameter in student.parameters.items():
            if moments and name not in moments:
                moments[name] = np.zeros(tuple(parameter.shape), np.float32)
    return Checkpoint(epoch, steps, student.arrays(), first, second, tuple(losses))


def _restore(student: TorchGraph, optimizer: Tensor, found: Checkpoint) -> None:
    student.load(found.weights)
    for name, parameter in student.parameters.items():
        if name in found.second:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(found.steps)),
                "exp_avg": torch.from_numpy(found.first[name].copy()),
                "exp_avg_sq": torch.from_numpy(found.second[name].copy()),
            }
        elif name in found.first:
            optimizer.state[parameter] = {"momentum_buffer": torch.from_numpy(found.first[name].copy())}
