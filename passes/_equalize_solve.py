"""Scales for equalization groups: by ranges (closed form) or by the predicted quantization noise.

**Ranges.** Nagel et al. 2019 (arXiv 1906.04721, eq. 11): a channel's range in the weights before it and after it
become equal, s = sqrt(r_after / r_before). With activation ranges in the place of the weights before it is the rule
of SmoothQuant (Xiao et al., arXiv 2211.10438) with alpha = 1/2. Ranges are relative to those of their tensor, so that
the layers which meet in a residual join count alike.

**Noise.** Rounding with step d adds noise of variance d^2 / 12. Scaling channel i by s_i, the noise relative to the
signal at the output of a layer W is the sum of

* activations: step (max_j s_j high_j + max_j s_j low_j) / 255, passed on with gain |W[:, i]|^2 / s_i^2;
* weights: step max_i |W[o, i]| / s_i / 127 per output channel o (or the maximum over all o, with s_o, where a tensor
  has one scale), times the signal sum_i s_i^2 E[x_i^2], passed on with the gain of the layers behind.

With the maxima as p-norms this is a generalized posynomial in s, so its logarithm is convex in log s (Boyd et al.
2007, "A tutorial on geometric programming", section 5) and L-BFGS finds the best scales of the whole model at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greencc.passes._equalize_graph import FIXED
from greencc.passes._equalize_problem import Float, Index, LayerRanges, Problem

# max <= p-norm <= n^(1/p) max.
_POWER = 16
# No weight that much smaller than the largest becomes the largest within the limits of the scales.
_NEGLIGIBLE = 1e-8
_SWEEPS = 100
# Of the Jacobi sweeps over chains: convergent below 1/2 (the system is a discrete Laplacian).
_DAMPING = 1.0 / 3.0
# Keeps channels without influence where they are.
_PULL = 1e-3


def by_ranges(problem: Problem, activations: bool) -> Float:
    """Logarithms of the scales that balance weight ranges, or activation ranges against those of the next weights."""
    logs = np.zeros(problem.size)
    bound = np.log(problem.limit)
    for _ in range(_SWEEPS):
        front, back = _Mean(problem.size), _Mean(problem.size)
        for layer in problem.layers:
            scaled: NDArray[np.floating] = layer.tops * np.exp(
                logs[layer.after][:, :, np.newaxis] - logs[layer.before][:, np.newaxis, :]
            )
            rows = scaled.max(axis=2)
            if problem.per_channel and activations:
                scaled = scaled / np.where(rows > 0, rows, 1.0)[:, :, np.newaxis]
            back.add(layer.before, scaled.max(axis=1))
            if not activations:
                front.add(layer.after, rows)
        if activations:
            for value in problem.values:
                front.add(value.roots, value.peak * np.exp(logs[value.roots]))
        known = (front.count > 0) & (back.count > 0)
        known[FIXED] = False
        step = np.where(known, _DAMPING * (back.mean - front.mean), 0.0)
        moved = np.clip(logs + step, -bound, bound)
        change = float(np.max(np.abs(moved - logs), initial=0.0))
        logs = moved
        if change < 1e-3:
            break
    return logs


class _Mean:
    """Per root, the mean over tensors of the logarithm of its range relative to that tensor's."""

    def __init__(self, size: int) -> None:
        self.total, self.count = np.zeros(size), np.zeros(size)

    def add(self, roots: Index, ranges: NDArray[np.floating]) -> None:
        top = np.zeros(len(self.total))
        np.maximum.at(top, roots.ravel(), ranges.ravel())
        peak = top.max()
        here = top > 0
        # A channel of zeros says nothing about its scale.
        self.total[here] += np.log(top[here] / peak)
        self.count[here] += 1

    @property
    def mean(self) -> Float:
        return self.total / np.maximum(self.count, 1)


def by_noise(problem: Problem) -> Float:
    """Logarithms of the scales with the least predicted noise."""
    model = NoiseModel(problem)
    bound = np.log(problem.limit)
    bounds = np.full((problem.size, 2), (-bound, bound))
    bounds[FIXED] = 0.0
    # Importing it takes a third of a second.
    from scipy.optimize import minimize

    found = minimize(
        model.value_and_gradient,
        np.zeros(problem.size),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 100, "maxcor": 20, "ftol": 1e-5},
    )
    logs: Float = found.x
    return logs


class NoiseModel:
    """The predicted noise-to-signal ratio, summed over layers, as a function of the scales' logarithms."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._weights = [
            _WeightNoise(problem, layer)
            for layer in problem.layers
            if layer.energy is not None and layer.tops.any()
        ]
        self._values = problem.values

    def noise(self, logs: Float) -> float:
        """With true maxima."""
        total = sum(term.exact(logs) for term in self._weights)
        for value in self._values:
            s = np.exp(logs[value.roots])
            step = (value.high * s).max() + (value.low * s).max()
            total += self._step_noise * step**2 * float((value.gain / s**2).sum())
        return float(total)

    @property
    def _step_noise(self) -> float:
        return 1.0 / (12.0 * self._problem.activation_steps**2)

    def value_and_gradient(self, logs: Float) -> tuple[float, Float]:
        """The logarithm of the noise, with p-norms, and its gradient."""
        gradient = np.zeros_like(logs)
        total = 0.0
        for term in self._weights:
            total += term.add(logs, gradient)
        for value in self._values:
            x = logs[value.roots]
            high, to_high = _norm(value.high, x)
            low, to_low = _norm(value.low, x)
            step = high + low
            passed = value.gain * np.exp(-2.0 * x)
            whole = float(passed.sum())
            total += self._step_noise * step**2 * whole
            part = 2.0 * step * whole * (high * to_high + low * to_low) - 2.0 * step**2 * passed
            np.add.at(gradient, value.roots, self._step_noise * part)
        gradient[FIXED] = 0.0
        if total <= 0.0:
            return 0.0, gradient
        pull = _PULL / len(logs)
        return float(np.log(total) + pull * (logs**2).sum()), gradient / total + 2.0 * pull * logs


def _norm(ranges: Float, x: Float) -> tuple[float, Float]:
    """p-norm of ranges * exp(x), and each element's share of its p-th power."""
    scaled = ranges * np.exp(x)
    top = float(scaled.max(initial=0.0))
    if top <= 0.0:
        return 0.0, np.zeros_like(ranges)
    powers = (scaled / top) ** _POWER
    total = float(powers.sum())
    return top * total ** (1.0 / _POWER), powers / total


class _WeightNoise:
    """Noise that rounding the weights of one layer adds."""

    def __init__(self, problem: Problem, layer: LayerRanges) -> None:
        assert layer.energy is not None
        self._layer, self._per_channel = layer, problem.per_channel
        self._energy = layer.energy * layer.taps
        self._step_noise = 1.0 / (12.0 * problem.weight_steps**2)
        rows = layer.tops.max(axis=2).astype(np.float64)
        self._peak: Float = rows if problem.per_channel else np.full_like(rows, rows.max())
        # float64: powers of small weights would be denormal in float32, which is ten times as slow.
        relative = layer.tops / np.where(self._peak > 0, self._peak, 1.0)[:, :, np.newaxis]
        self._powers = np.where(relative > _NEGLIGIBLE, relative, 0.0) ** _POWER

    def exact(self, logs: Float) -> float:
        """With true maxima."""
        layer = self._layer
        s, out = np.exp(logs[layer.before]), np.exp(logs[layer.after])
        signal = (self._energy * s**2).sum(axis=1, keepdims=True)
        tops: Float = (layer.tops / s[:, np.newaxis, :]).max(axis=2)
        if not self._per_channel:
            tops = (tops * out).max() / out
        return float(self._step_noise * (layer.gain * tops**2 * signal).sum())

    def add(self, logs: Float, gradient: Float) -> float:
        """Return the noise and add its gradient."""
        layer = self._layer
        x, y = logs[layer.before], logs[layer.after]
        inward = np.exp(-_POWER * x)
        # (groups, outputs): sum over inputs of the powers.
        sums = np.matmul(self._powers, inward[:, :, np.newaxis])[..., 0]
        loud = self._energy * np.exp(2.0 * x)
        heard = layer.gain * loud.sum(axis=1, keepdims=True)
        if self._per_channel:
            squares = self._peak**2 * sums ** (2.0 / _POWER)
            terms = squares * heard
            noise = float(terms.sum())
            share = np.divide(terms, sums, out=np.zeros_like(sums), where=sums > 0)
        else:
            outward = np.exp(_POWER * y)
            total = float((sums * outward).sum())
            squares = float(self._peak.max()) ** 2 * total ** (2.0 / _POWER) * np.exp(-2.0 * y)
            terms = squares * heard
            noise = float(terms.sum())
            share = noise * outward / total
            np.add.at(
                gradient, layer.after, self._step_noise * 2.0 * (noise * sums * outward / total - terms)
            )
        passed = (layer.gain * squares).sum(axis=1, keepdims=True)
        back = np.matmul(share[:, np.newaxis, :], self._powers)[:, 0, :] * inward
        inner = 2.0 * passed * loud - 2.0 * back
        np.add.at(gradient, layer.before, self._step_noise * inner)
        return self._step_noise * noise
