"""Made-up inputs, for trying things out where there are no data. Nothing can be certified on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from greencc.calibration.fit import check_inputs, element_kind
from greencc.calibration.source import Batches, Indices, Source
from greencc.core.data import Array, Batch, TensorSpec
from greencc.core.errors import InputError, UsageError

DEFAULT_COUNT = 64
DEFAULT_DIM = 64


class SyntheticSource(Source):
    """Seeded samples; sample i does not depend on how many there are or on the batch size."""

    def __init__(
        self, name: str, specs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]], count: int, seed: int
    ) -> None:
        note = "the inputs are synthetic (seeded random numbers): nothing can be certified on them"
        super().__init__(name, count, synthetic=True, notes=(note,))
        self._inputs = list(zip(specs, shapes, strict=True))
        self._seed = seed

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Make up the wanted samples."""
        numbers = range(self.count) if wanted is None else wanted
        for start in range(0, len(numbers), size):
            rngs = [np.random.default_rng((self._seed, int(i))) for i in numbers[start : start + size]]
            yield Batch(
                {spec.name: np.stack([_draw(r, spec, shape) for r in rngs]) for spec, shape in self._inputs}
            )


def synthetic(
    inputs: Sequence[TensorSpec],
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
) -> Source:
    """Return `count` seeded random samples.

    Floats are standard normal, uint8 is uniform over 0..255 (pixels), other integers are 0 or 1 (valid as an
    index nearly everywhere), booleans are even odds, and inputs with "mask" in their name are ones.

    Args:
        inputs: The model's inputs.
        count: Number of samples.
        seed: Seed.
        dims: Sizes of dynamic axes by name; those not given are 64.

    Raises:
        UsageError: `count` or a size in `dims` is not positive.
        InputError: An input has unknown rank, is a scalar, or holds text.
    """
    sizes = dict(dims or {})
    if count < 1:
        raise UsageError(f"{count} synthetic samples are not positive")
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"dimension {name}={size} is not positive")
    check_inputs(inputs)
    shapes: list[tuple[int, ...]] = []
    for spec in inputs:
        if spec.shape is None:
            raise InputError(
                f"model input '{spec.name}' has unknown rank: no synthetic data for it",
                hint="give real samples",
            )
        axes = spec.shape[1:]
        shapes.append(tuple(d if isinstance(d, int) else sizes.get(d or "", DEFAULT_DIM) for d in axes))
    return SyntheticSource(f"synthetic:{count}", inputs, shapes, count, seed)


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    kind = element_kind(spec.dtype)
    if "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    if kind == "f":
        return rng.standard_normal(shape, np.float32).astype(spec.dtype)
    top = 256 if spec.dtype == np.uint8 else 2
    return rng.integers(0, top, shape).astype(spec.dtype)
