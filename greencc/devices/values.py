"""Values out of untrusted JSON: of the right type and of a bearable size, or an error that names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from greencc.devices.process import printable
from greencc.devices.protocol import ProtocolError

_MOST_TEXT = 500
_MOST_ITEMS = 2000
_MOST_INTEGER = 1 << 62


class Told:
    """An object of JSON, and whose; what is missing or null is None, what has another type is an error.

    Args:
        data: Untrusted.
        where: For messages: the device and what it tells.

    Raises:
        ProtocolError: It is no object.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ProtocolError(f"{where} is no object")
        self._data, self._where = data, where

    def text(self, key: str) -> str | None:
        """A text on one line, cut where it is too long."""
        value = self._data.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return printable(value, _MOST_TEXT)

    def count(self, key: str) -> int | None:
        """A whole number from 0 on."""
        value = self._data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_INTEGER:
            raise self._wrong(key, "whole number")
        return value

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self._data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "number")
        return float(value)

    def flag(self, key: str) -> bool | None:
        """Yes or no."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "yes or no")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "list of texts")
        return tuple(printable(item, _MOST_TEXT) for item in items)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        items = self._list(key)
        if not all(isinstance(item, int | float) and math.isfinite(item) for item in items):
            raise self._wrong(key, "list of numbers")
        return tuple(float(item) for item in items)

    def mapping(self, key: str) -> dict[str, str]:
        """An object whose values are texts or numbers, as texts."""
        inner = self.inner(key)
        return {} if inner is None else inner.texts_by_name()

    def texts_by_name(self) -> dict[str, str]:
        """This object, whose values are texts or numbers, as texts."""
        for name in self._names():
            if not isinstance(self._data[name], str | int | float):
                raise self._wrong(name, "text")
        return {
            printable(name, _MOST_TEXT): printable(str(self._data[name]), _MOST_TEXT)
            for name in self._names()
        }

    def figures(self, key: str) -> dict[str, float]:
        """An object whose values are finite numbers."""
        inner = self.inner(key)
        if inner is None:
            return {}
        figures = {printable(name, _MOST_TEXT): inner.number(name) for name in inner._names()}
        return {name: value for name, value in figures.items() if value is not None}

    def named(self, key: str) -> dict[str, Told]:
        """An object of objects."""
        inner = self.inner(key)
        found = {} if inner is None else {name: inner.inner(name) for name in inner._names()}
        return {printable(name, _MOST_TEXT): told for name, told in found.items() if told is not None}

    def inner(self, key: str) -> Told | None:
        """An object within."""
        value = self._data.get(key)
        return None if value is None else Told(value, f"{self._where}: {key}")

    def inners(self, key: str) -> list[Told]:
        """A list of objects."""
        return [Told(item, f"{self._where}: {key}[{index}]") for index, item in enumerate(self._list(key))]

    def _names(self) -> list[str]:
        if len(self._data) > _MOST_ITEMS:
            raise ProtocolError(f"{self._where} has more than {_MOST_ITEMS:,} values")
        return list(self._data)

    def _list(self, key: str) -> list[Any]:
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > _MOST_ITEMS:
            raise self._wrong(key, "list of bearable length")
        return value

    def _wrong(self, key: str, wanted: str) -> ProtocolError:
        return ProtocolError(f"{self._where}: {key} is no {wanted}")
