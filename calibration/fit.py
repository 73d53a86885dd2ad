"""How the arrays of a data file become the inputs of a model: shapes, element types, finite values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array, TensorSpec
from greencc.core.errors import InputError, did_you_mean

SAMPLE_LIMIT = 1 << 30
"""Most bytes one sample may take; more is a corrupt or hostile file."""

# NumPy's own do not know bfloat16, float8 and int4.
_finfo: Any = ml_dtypes.finfo
_iinfo: Any = ml_dtypes.iinfo

LABELS = "labels"
"""Name of the array that holds the labels, unless the model has an input of that name."""


def element_kind(dtype: np.dtype[Any]) -> str:
    """``f`` float, ``i`` signed, ``u`` unsigned, ``b`` bool, ``?`` anything else; knows the ml_dtypes."""
    if dtype.kind in "fiub":
        return dtype.kind
    for prefix, kind in (("bfloat", "f"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if dtype.kind == "V" and dtype.name.startswith(prefix):
            return kind
    return "?"


def check_inputs(inputs: Sequence[TensorSpec]) -> None:
    """Refuse models whose inputs cannot be fed from samples.

    Raises:
        InputError: An input is a scalar (it has no sample axis) or holds text.
    """
    for spec in inputs:
        if spec.shape == ():
            raise InputError(
                f"model input '{spec.name}' is a scalar: it has no sample axis",
                hint="make it a constant of the model",
            )
        if element_kind(spec.dtype) == "?":
            raise InputError(
                f"model input '{spec.name}' is {spec.dtype}: only numbers and booleans can be fed"
            )
    if not inputs:
        raise InputError("the model has no inputs")


def check_names(names: Sequence[str], inputs: Sequence[TensorSpec], where: str) -> None:
    """Compare the arrays a file holds (labels left out) with the model's inputs.

    Raises:
        InputError: An input is missing, or an array belongs to no input.
    """
    known = [spec.name for spec in inputs]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            if len(known) == 1 and len(names) == 1:
                hint = (
                    f"the model's input is '{known[0]}': save it as np.savez(path, **{{'{known[0]}': array}})"
                )
            raise InputError(f"{where}: array '{name}' is no input of the model", hint=hint)
    for name in known:
        if name not in names:
            raise InputError(
                f"{where}: there is no array for the model input '{name}'",
                hint=f"arrays here: {', '.join(names) or 'none'}",
            )


@dataclass(frozen=True)
class Fit:
    """Binds arrays from `where` to the model input `spec`.

    Conversions: between float types; from integers and booleans to floats and other integers, provided every
    value is representable exactly. Floats are never cut to integers, nor numbers to booleans.
    """

    spec: TensorSpec
    where: str

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Check the shape, sample axis first, and the element type.

        Raises:
            InputError: With the transpose or the missing axis in the hint, when that explains it.
        """
        self.check_dtype(dtype)
        want = self.spec.shape
        if want is not None and (len(shape) != len(want) or not _matches(shape[1:], want[1:])):
            raise InputError(
                f"{self.where}: '{self.spec.name}' has shape {_text(shape)}, the model takes {_text(want)}",
                hint=shape_hint(shape, want),
            )
        if not shape or 0 in shape[1:]:
            raise InputError(f"{self.where}: '{self.spec.name}' has shape {_text(shape)}: it holds no values")
        size = math.prod(shape[1:]) * dtype.itemsize
        if size > SAMPLE_LIMIT:
            raise InputError(
                f"{self.where}: one sample of '{self.spec.name}' takes {size / 2**30:.1f} GiB",
                hint="the first axis must be the samples",
            )

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise InputError when values of `dtype` never convert to the input's type."""
        have, want = element_kind(dtype), element_kind(self.spec.dtype)
        if (have in "fiub" and want == "f") or (have in "iub" and want in "iu") or have == want == "b":
            return
        hint = f"convert it: array.astype('{self.spec.dtype}')"
        if have == "f":
            hint += ", if these are whole numbers"
        raise InputError(
            f"{self.where}: '{self.spec.name}' is {dtype}, the model takes {self.spec.dtype}", hint=hint
        )

    def convert(self, array: Array, numbers: Sequence[int] | range | NDArray[np.int64]) -> Array:
        """Return the samples in the input's type; `numbers` are their indices, for messages.

        Raises:
            InputError: A value is NaN, infinite, or not representable; the sample is named.
        """
        dtype = self.spec.dtype
        kind, source = element_kind(dtype), element_kind(array.dtype)
        if array.dtype == dtype and array.dtype.isnative:
            converted = array
        else:
            if kind != "f" or source != "f":
                self._check_exact(array, numbers)
            with np.errstate(over="ignore", invalid="ignore"):
                converted = array.astype(dtype)
        if kind == "f" and source == "f":
            finite = np.isfinite(converted)
            if not finite.all():
                row = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
                value = array[row][~finite[row]].reshape(-1)[0]
                raise InputError(
                    f"{self.where}: '{self.spec.name}' holds {value} in sample {int(numbers[row])}",
                    hint=f"inputs must be finite {dtype} numbers",
                )
        return converted

    def _check_exact(self, array: Array, numbers: Sequence[int] | range | NDArray[np.int64]) -> None:
        if np.can_cast(array.dtype, self.spec.dtype, "safe") or array.size == 0:
            return
        low, high = _exact_range(self.spec.dtype)
        if int(array.min()) >= low and int(array.max()) <= high:
            return
        flat = array.reshape(len(array), -1)
        # Python integers: int64 and uint64 have no common type to compare in.
        row = next(i for i, r in enumerate(flat) if int(r.min()) < low or int(r.max()) > high)
        raise InputError(
            f"{self.where}: '{self.spec.name}' has values in {int(flat[row].min())}..{int(flat[row].max())} in "
            f"sample {int(numbers[row])}, which {self.spec.dtype} cannot represent"
        )


def _exact_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The largest range of integers of which every one is representable."""
    if element_kind(dtype) == "f":
        bound = 2 ** (int(_finfo(dtype).nmant) + 1)
        return -bound, bound
    if dtype.kind == "b":
        return 0, 1
    info = _iinfo(dtype)
    return int(info.min), int(info.max)


def _matches(shape: Sequence[int], want: Sequence[int | str | None]) -> bool:
    return len(shape) == len(want) and all(
        not isinstance(w, int) or d == w for d, w in zip(shape, want, strict=True)
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def shape_hint(shape: tuple[int, ...], want: tuple[int | str | None, ...]) -> str:
    """Say which transpose or missing axis would make `shape` (samples first) fit `want`."""
    if len(shape) + 1 == len(want):
        if _matches(shape, want[1:]):
            return "the first axis must be the samples: save array[None] when this is one sample"
        for axis in range(1, len(want)):
            if want[axis] == 1 and _matches(shape[1:], want[1:axis] + want[axis + 1 :]):
                return f"an axis of length 1 is missing: np.expand_dims(array, {axis}) fits"
    if len(shape) == len(want) + 1:
        for axis in range(1, len(shape)):
            if shape[axis] == 1 and _matches(shape[1:axis] + shape[axis + 1 :], want[1:]):
                return f"there is an axis of length 1 too many: array.squeeze({axis}) fits"
    if 3 <= len(shape) == len(want) <= 6:
        rest = range(1, len(shape))
        usual = [(*range(2, len(shape)), 1), (len(shape) - 1, *range(1, len(shape) - 1))]
        for order in (*usual, *itertools.permutations(rest)):
            if _matches([shape[a] for a in order], want[1:]):
                return f"the layout differs: array.transpose({', '.join(map(str, (0, *order)))}) fits"
    return "the first axis is the samples; the others are those of the model's input"
