"""``module:function`` sources: samples from the user's own code."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from greencc.calibration.arrays import plain_labels
from greencc.calibration.fit import Fit, check_names, element_kind
from greencc.calibration.source import Batches, Indices, Source, pick, rebatch, select
from greencc.core.data import Array, Batch, TensorSpec
from greencc.core.errors import InputError
from greencc.core.user_code import load_function, user_code

_SPEC = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*")
_EXAMPLE = "yield a dict of arrays, an array (single-input models), or a pair (feeds, labels)"


def is_function_spec(spec: str) -> bool:
    """True for ``package.module:function`` and ``file.py:function``."""
    return _SPEC.fullmatch(spec) is not None


class FunctionSource(Source):
    """Samples a user's function yields.

    The function takes no arguments and returns an iterable of items; an item is a dict of arrays, one array, or
    a pair (feeds, labels), and is one sample or, with the sample axis in front, several. It is called again for
    each pass over the data and must give the same samples every time. Opening makes one pass, to count and
    check them.

    Args:
        spec: ``module:function``, for messages.
        function: The function.
        inputs: The model's inputs.
        limit: Use the first `limit` samples; the function may then be endless.

    Raises:
        InputError: The user's code failed (file and line are named), or its samples do not fit the model.
    """

    def __init__(
        self,
        spec: str,
        function: Callable[[], Iterable[Any]],
        inputs: Sequence[TensorSpec],
        limit: int | None = None,
    ) -> None:
        super().__init__(spec, 0)
        self._function = function
        self._inputs = tuple(inputs)
        self._limit = limit
        self._check: int | None = None
        checksum = 0
        with_labels = 0
        for item in self._items():
            self._count += item.count
            with_labels += item.count if item.labels is not None else 0
            checksum = _crc(checksum, item)
        if self._count == 0:
            raise InputError(f"{spec} gave 0 samples", hint=_EXAMPLE)
        if with_labels not in (0, self._count):
            raise InputError(f"{spec} gave labels for {with_labels} of {self._count} samples")
        self._has_labels = with_labels > 0
        self._check = checksum

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Call the function again and yield its samples."""
        items = self._verified()
        return rebatch(items if wanted is None else pick(items, wanted), size)

    def _verified(self) -> Batches:
        checksum = count = 0
        for item in self._items():
            checksum = _crc(checksum, item)
            count += item.count
            if count > self._count:
                break
            if count == self._count and checksum != self._check:
                break
            yield item
        if count != self._count or checksum != self._check:
            raise InputError(
                f"{self.name} gave other samples than the first time",
                hint="seed its random numbers inside the function, and return a new iterable from every call",
            )

    def _items(self) -> Batches:
        left = self._limit
        start = 0
        with user_code(self.name, "data"):
            result = self._function()
        if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
            raise InputError(f"{self.name} returned {type(result).__name__}, not an iterable", hint=_EXAMPLE)
        with user_code(self.name, "data"):
            iterator = iter(result)
        while left is None or left > 0:
            with user_code(self.name, "data"):
                items = list(islice(iterator, 1))
            if not items:
                return
            batch = self._batch(items[0], start)
            if left is not None and batch.count > left:
                batch = select(batch, np.arange(left))
            if left is not None:
                left -= batch.count
            start += batch.count
            yield batch

    def _batch(self, item: Any, start: int) -> Batch:
        feeds, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feeds, Mapping):
            if len(self._inputs) != 1:
                names = ", ".join(spec.name for spec in self._inputs)
                raise InputError(
                    f"{self.name} gave one array, the model has the inputs {names}", hint=_EXAMPLE
                )
            feeds = {self._inputs[0].name: feeds}
        where = f"{self.name}, item at sample {start}"
        feeds = {str(name): value for name, value in feeds.items()}
        check_names(list(feeds), self._inputs, where)
        arrays = {spec.name: _as_array(feeds[spec.name], spec.name, where) for spec in self._inputs}
        single = all(_is_single(arrays[spec.name], spec) for spec in self._inputs)
        converted: dict[str, Array] = {}
        for spec in self._inputs:
            array = arrays[spec.name][None] if single else arrays[spec.name]
            fit = Fit(spec, where)
            fit.check(array.shape, array.dtype)
            converted[spec.name] = fit.convert(array, range(start, start + len(array)))
        counts = {name: len(array) for name, array in converted.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"{where}: arrays of different lengths: {counts}")
        rows = None if labels is None else self._labels(labels, where, next(iter(counts.values())), single)
        return Batch(converted, rows)

    def _labels(self, labels: Any, where: str, count: int, single: bool) -> Array:
        array = _as_array(labels, "labels", where)
        if element_kind(array.dtype) not in "fiub":
            raise InputError(f"{where}: the labels are {array.dtype}, not numbers")
        if single:
            array = array[None]
        if array.ndim == 0 or len(array) != count:
            raise InputError(f"{where}: {count} samples, but labels of shape {array.shape}")
        return plain_labels(array, where)


def _as_array(value: Any, name: str, where: str) -> Array:
    try:
        # A copy: some generators fill the same buffer again and again.
        array = np.array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}: '{name}' is not an array: {error}") from error
    if element_kind(array.dtype) == "?":
        raise InputError(f"{where}: '{name}' is {array.dtype}, not an array of numbers", hint=_EXAMPLE)
    return array


def _is_single(array: Array, spec: TensorSpec) -> bool:
    return spec.shape is not None and array.ndim == len(spec.shape) - 1


def _crc(value: int, batch: Batch) -> int:
    # Row by row: the same samples in items of other sizes are the same samples.
    for row in range(batch.count):
        for array in batch.feeds.values():
            value = zlib.crc32(np.ascontiguousarray(array[row]).reshape(-1).view(np.uint8).data, value)
        if batch.labels is not None:
            value = zlib.crc32(np.ascontiguousarray(batch.labels[row]).reshape(-1).view(np.uint8).data, value)
    return value


def open_function(spec: str, inputs: Sequence[TensorSpec], limit: int | None = None) -> FunctionSource:
    """Import ``module:function`` or ``file.py:function`` (see `greencc.core.user_code`), and run it once.

    Raises:
        UsageError: There is no such module or function.
        InputError: As for `FunctionSource`.
    """
    return FunctionSource(spec, load_function(spec, "data"), inputs, limit)
