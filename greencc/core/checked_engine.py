"""What engines share: which feeds and outputs they accept, and how samples fit a fixed batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from greencc.core.batching import plan_chunks, run_chunks
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import InputError, did_you_mean


class CheckedEngine(ABC):
    """Half of a `greencc.core.engine.Engine`: a subclass runs the feeds that passed the checks.

    A model whose batch (first axis) is fixed runs with any number of samples: they are split, the last part is padded
    with its last sample, and the outputs are trimmed and joined. `run` refuses that for a model output that does not
    have the batch as its first axis.

    Args:
        name: How messages call the model.
        inputs: What it takes.
        outputs: What it gives.
        inner: Outputs that are inner values of the model, exempt from the check of the batch axis.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        inner: frozenset[str] = frozenset(),
    ) -> None:
        self._name = name
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._inner = inner

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; see `Engine.run`."""
        wanted = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        known = {spec.name for spec in self._outputs}
        for output in wanted:
            if output not in known:
                raise InputError(f"{self._name} has no output {output!r}", hint=did_you_mean(output, known))
        ready = self._checked(feeds)
        plan = plan_chunks(ready, self._inputs)
        if plan is None:
            return self._run(ready, wanted)
        batched = {output: output not in self._inner for output in wanted}
        return run_chunks(plan, ready, lambda chunk: self._run(chunk, wanted), batched)

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    @abstractmethod
    def _run(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        """Run checked feeds whose first axes fit the model."""

    def _checked(self, feeds: Feeds) -> dict[str, Array]:
        known = {spec.name for spec in self._inputs}
        for name in feeds:
            if name not in known:
                raise InputError(f"{self._name} has no input {name!r}", hint=did_you_mean(name, known))
        missing = [spec.name for spec in self._inputs if spec.name not in feeds]
        if missing:
            raise InputError(
                f"{self._name}: no values for input {', '.join(map(repr, missing))}",
                hint=f"it takes {', '.join(_describe(spec) for spec in self._inputs)}",
            )
        return {spec.name: self._check(spec, feeds[spec.name]) for spec in self._inputs}

    def _check(self, spec: TensorSpec, array: Array) -> Array:
        where = f"{self._name}: input {spec.name!r}"
        if not isinstance(array, np.ndarray):
            raise InputError(f"{where} is a {type(array).__name__}, not a NumPy array")
        if spec.dtype == object:
            if array.dtype.kind not in "OUS":
                raise InputError(f"{where} has dtype {array.dtype}, the model takes strings")
        elif array.dtype != spec.dtype:
            raise InputError(
                f"{where} has dtype {array.dtype}, the model takes {spec.dtype}",
                hint=f"convert it with .astype({str(spec.dtype)!r})",
            )
        if spec.shape is None:
            return array
        if array.ndim != len(spec.shape):
            raise InputError(f"{where} has shape {array.shape}, the model takes {_shape(spec)}")
        for axis, (got, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if axis > 0 and isinstance(expected, int) and got != expected:
                raise InputError(
                    f"{where} has shape {array.shape}, the model takes {_shape(spec)}",
                    hint=f"axis {axis} must be {expected}",
                )
        return array


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in spec.shape or ()) + "]"


def _describe(spec: TensorSpec) -> str:
    return f"{spec.name!r}: {spec.dtype} {_shape(spec)}"
