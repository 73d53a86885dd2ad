"""Choose which weights of a layer round up and which down, so that its *output* changes least.

A layer computes `x W^T + b` for rows x of inputs. Its quantized form sees the inputs `z` of the quantized model and
weights `s q` with whole q, each either the lower or the upper neighbour of W / s inside the range of the integers.
Wanted are the q with the least `E |f(y) - f(z (s q)^T + b)|^2`, f being the Relu or Clip that follows, and y either
`z W^T + b` or the float model's `x W^T + b` (asymmetric reconstruction: then what the layers before did wrong is
part of the problem).

With the error `D = s q - W` and the residual `R = y - (z W^T + b)` of the float weight, and without f:

    L(D) = E |R - z D^T|^2 = tr(D H D^T) - 2 tr(D C^T) + const,   H = E[z^T z],  C = E[R^T z]

so two small matrices say all about the rows, and an iteration costs the same for any number of them. Output
channels do not interact, hence every channel may be measured in its own steps: `u = D / s`, H over its mean diagonal.

*adaround* (Nagel et al. 2020, arXiv 2004.10568): q = floor(W / s) + h(V) with h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1),
trained by Adam on L + lambda sum(1 - |2 h - 1|^beta), beta annealed so that h may first move and then must choose.

    dL/dh = 2 (u H - C / s)                                with the matrices
    dL/dh = 2 / B sum_rows (f(y~) - f(y)) f'(y~) z / s     from a mini batch of B rows, y~ = z (W + D)^T + b
    d reg/dh = -2 lambda beta |2 h - 1|^(beta - 1) sign(2 h - 1)
    dh/dV = 1.2 sigmoid(V) (1 - sigmoid(V)) where 0 < h < 1, else 0

What the matrices allow is improved by *greedy* in the end.

*greedy*: coordinate descent on the same L from nearest rounding. Moving weight j by t steps changes L by
`2 t (u H - C / s)_j + t^2 H_jj`; it moves when that is negative, for all channels at once, column by column, until
nothing moves. As in GPTQ (Frantar et al. 2022, arXiv 2210.17323) the gradient of later columns is brought up to date
block by block, as one matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from greencc.core.errors import UsageError
from greencc.passes._rounding_layer import Float32, Layer, Rows, Statistics, counted, statistics

# The rectified sigmoid reaches 0 and 1 at finite V (Louizos et al. 2018): sigmoid * (ZETA - GAMMA) + GAMMA.
_ZETA, _GAMMA = 1.1, -0.1
_BETAS = 0.9, 0.999
_BLOCK = 32
# Sweeps end when fewer than this share of the weights move.
_SETTLED = 1e-3


class RoundingMethod(Enum):
    """How the rounding is searched."""

    ADAROUND = "adaround"
    GREEDY = "greedy"


class Reconstruction(Enum):
    """What the output of a rounded layer is compared with, its inputs being the quantized model's."""

    LOCAL = "local"
    """The layer with its float weight on the same inputs. Layers do not depend on each other and share runs."""
    SEQUENTIAL = "sequential"
    """The float model's output, so that a layer makes up for those before it: one run for each layer, in order."""


@dataclass(frozen=True)
class AdaRoundOptions:
    """Options of the search.

    Attributes:
        method: `greedy` descends coordinate by coordinate; `adaround` trains a relaxation, tens of times slower.
        reconstruction: `local` is enough for 8 bits; `sequential` is worth its runs below.
        rows: Rows of inputs looked at per layer, a fifth of them only to judge the result.
        iterations: Steps of `adaround`.
        learning_rate: Of Adam, in `adaround`.
        regularization: Weight of the term that drives `adaround` to whole decisions.
        beta_start: Exponent of that term at first: high lets the middle move freely.
        beta_end: And in the end.
        warm_up: Share of the iterations without it.
        gram_limit: Inputs of a layer up to which `adaround` works on H and C rather than on mini batches.
        batch_rows: Rows of a mini batch.
        damping: Share of H's mean diagonal added to it: doubt about what few rows say.
        sweeps: Most rounds of `greedy`.
        memory_mb: Rows held at once, in MiB: layers that fit together share a pass over the data.
        seed: Of the choice of rows and mini batches.
    """

    method: RoundingMethod = RoundingMethod.GREEDY
    reconstruction: Reconstruction = Reconstruction.LOCAL
    rows: int = 2048
    iterations: int = 1000
    learning_rate: float = 0.03
    regularization: float = 0.5
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_up: float = 0.2
    gram_limit: int = 600
    batch_rows: int = 128
    damping: float = 0.3
    sweeps: int = 4
    memory_mb: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "iterations", "batch_rows", "sweeps", "memory_mb"):
            if getattr(self, name) < 1:
                raise UsageError(f"rounding: {name} is {getattr(self, name)}", hint="give at least 1")
        for name in ("learning_rate", "beta_start", "beta_end"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"rounding: {name} is {getattr(self, name)}", hint="give a positive number")
        for name in ("regularization", "damping"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"rounding: {name} is {getattr(self, name)}", hint="give 0 or more")
        if not 0 <= self.warm_up < 1:
            raise UsageError(f"rounding: warm_up is {self.warm_up}", hint="give a share in [0, 1)")
        if self.gram_limit < 0:
            raise UsageError(f"rounding: gram_limit is {self.gram_limit}", hint="give 0 or more")


def solve(layer: Layer, rows: Rows, start: Float32, options: AdaRoundOptions) -> Float32:
    """The integers found, each a neighbour of its weight, from the nearest ones in `start`."""
    size = layer.weight.shape[-1]
    if options.method is RoundingMethod.GREEDY:
        return greedy(layer, statistics(layer, rows, options.damping), start, options.sweeps)
    gram = statistics(layer, rows, options.damping) if size <= options.gram_limit else None
    found = adaround(layer, rows, gram, options)
    # Decisions near the middle are left to chance by the relaxation.
    return found if gram is None else greedy(layer, gram, found, options.sweeps)


def greedy(layer: Layer, facts: Statistics, start: Float32, sweeps: int) -> Float32:
    """Coordinate descent; the error of the rows (and of the damping) never rises."""
    # One column of the weights at a time: the columns are the rows here.
    lower, free = _turned(layer.floor()), _turned(layer.step())
    both = 2 * lower + free
    current = np.clip(_turned(start), lower, lower + free)
    gram, diagonal = facts.gram, np.diagonal(facts.gram, axis1=1, axis2=2)
    gradient = np.matmul(gram, current - _turned(layer.weight / layer.scales)) - _turned(facts.cross)
    size = layer.weight.shape[-1]
    for _ in range(sweeps):
        moved = 0
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            # Inside a block only the columns still to come are kept up to date.
            here = gradient[:, begin:end].copy()
            moves = np.zeros_like(here)
            for column in range(begin, end):
                # The only other choice: up from the lower neighbour, down from the upper one.
                change = both[:, column] - 2 * current[:, column]
                gain = 2 * here[:, column - begin]
                gain += change * diagonal[:, column, np.newaxis]
                gain *= change
                change *= gain < 0
                count = int(np.count_nonzero(change))
                if count:
                    moved += count
                    moves[:, column - begin] = change
                    current[:, column] += change
                    later = gram[:, column, column + 1 : end, np.newaxis] * change[:, np.newaxis]
                    here[:, column + 1 - begin :] += later
            if moves.any():
                gradient += np.matmul(gram[:, :, begin:end], moves)
        if moved <= _SETTLED * current.size:
            break
    return _turned(current)


def _turned(matrix: Float32) -> Float32:
    return np.ascontiguousarray(matrix.swapaxes(1, 2))


def adaround(layer: Layer, rows: Rows, facts: Statistics | None, options: AdaRoundOptions) -> Float32:
    """Train the relaxation, on the matrices or, when `facts` is None, on mini batches; then decide."""
    relaxed = Relaxation(layer)
    rng = np.random.default_rng(options.seed)
    batches = None if facts is not None else _MiniBatches(layer, rows, options.batch_rows, rng)
    first, second = np.zeros_like(relaxed.variable), np.zeros_like(relaxed.variable)
    warm = round(options.warm_up * options.iterations)
    for step in range(options.iterations):
        sigmoid, gate = relaxed.forward()
        distance = relaxed.distance(gate)
        if facts is not None:
            gradient = gram_gradient(facts, distance)
        else:
            assert batches is not None
            gradient = batches.gradient(distance)
        if step >= warm:
            done = (step - warm) / max(options.iterations - warm, 1)
            # Cosine annealing: most of the time is spent near the end value.
            share = 0.5 * (1 + math.cos(math.pi * done))
            beta = options.beta_end + (options.beta_start - options.beta_end) * share
            gradient += penalty_gradient(gate, beta, options.regularization)
        gradient = relaxed.backward(gradient, sigmoid, gate)
        _adam(relaxed.variable, gradient, first, second, step + 1, options.learning_rate)
    return relaxed.decide()


class Relaxation:
    """The variable V behind the rounding, and the rectified sigmoid."""

    def __init__(self, layer: Layer) -> None:
        self.lower, self.free = layer.floor(), layer.step()
        self.weight = layer.weight / layer.scales
        # h starts at the fraction, so that the soft weight is the float one.
        fraction = np.clip(self.weight - self.lower, 1e-4, 1 - 1e-4)
        inner = (fraction - np.float32(_GAMMA)) / np.float32(_ZETA - _GAMMA)
        self.variable: Float32 = np.log(inner / (1 - inner)).astype(np.float32)

    def forward(self) -> tuple[Float32, Float32]:
        """(sigmoid(V), h(V))."""
        sigmoid = np.negative(self.variable)
        np.exp(sigmoid, out=sigmoid)
        sigmoid += 1
        np.reciprocal(sigmoid, out=sigmoid)
        gate = sigmoid * np.float32(_ZETA - _GAMMA)
        gate += np.float32(_GAMMA)
        return sigmoid, np.clip(gate, 0, 1, out=gate)

    def distance(self, gate: Float32) -> Float32:
        """Soft error in steps: floor + h - W / s."""
        found = gate * self.free
        found += self.lower
        found -= self.weight
        return found

    def backward(self, gradient: Float32, sigmoid: Float32, gate: Float32) -> Float32:
        """dL/dV from dL/dh."""
        slope = 1 - sigmoid
        slope *= sigmoid
        slope *= np.float32(_ZETA - _GAMMA)
        slope *= self.free
        slope *= (gate > 0) & (gate < 1)
        slope *= gradient
        return slope

    def decide(self) -> Float32:
        _, gate = self.forward()
        return self.lower + self.free * (gate >= 0.5)


def gram_gradient(facts: Statistics, distance: Float32) -> Float32:
    """dL/dh of tr(u H u^T) - 2 tr(u C^T / s)."""
    gradient: Float32 = np.matmul(distance, facts.gram)
    gradient -= facts.cross
    gradient *= 2
    return gradient


def penalty_gradient(gate: Float32, beta: float, weight: float) -> Float32:
    """d/dh of weight * sum(1 - |2h - 1|^beta)."""
    centred = 2 * gate - 1
    found: Float32 = np.power(np.abs(centred), np.float32(beta - 1))
    found *= np.sign(centred)
    found *= np.float32(-2 * weight * beta)
    return found


class _MiniBatches:
    """dL/dh from random rows, with f, in the units of `Statistics`."""

    def __init__(self, layer: Layer, rows: Rows, size: int, rng: np.random.Generator) -> None:
        self.layer, self.rows, self.rng = layer, rows, rng
        self.size = min(size, rows.count)
        self.goal = layer.clipped(rows.targets)
        power = np.mean(np.square(rows.inputs), axis=(1, 2)).reshape(-1, 1, 1)
        # dL/dh = dL/d(s q) s, over s^2 times the mean of H: see `Statistics`.
        self.factor = np.float32(2 / self.size) / (np.where(power > 0, power, np.float32(1)) * layer.scales)

    def gradient(self, distance: Float32) -> Float32:
        pick = self.rng.integers(0, self.rows.count, self.size)
        inputs = self.rows.inputs[:, pick]
        weight = self.layer.weight + distance * self.layer.scales
        found = np.matmul(inputs, weight.swapaxes(1, 2)) + self.layer.bias
        wrong = self.layer.clipped(found) - self.goal[:, pick]
        wrong *= counted(self.layer, found)
        gradient: Float32 = np.matmul(wrong.swapaxes(1, 2), inputs)
        gradient *= self.factor
        return gradient


def _adam(
    variable: Float32, gradient: Float32, first: Float32, second: Float32, step: int, rate: float
) -> None:
    """One step of Adam (Kingma and Ba 2015), in place."""
    first *= np.float32(_BETAS[0])
    first += gradient * np.float32(1 - _BETAS[0])
    second *= np.float32(_BETAS[1])
    np.square(gradient, out=gradient)
    gradient *= np.float32(1 - _BETAS[1])
    second += gradient
    root = np.sqrt(second)
    root *= np.float32(1 / math.sqrt(1 - _BETAS[1] ** step))
    root += np.float32(1e-8)
    np.divide(first, root, out=root)
    root *= np.float32(rate / (1 - _BETAS[0] ** step))
    variable -= root
