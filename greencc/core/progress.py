"""Progress of long steps, without a dependency on how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and shows how far it is."""

    def __call__(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]: ...


def silent(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """A `Progress` that shows nothing."""
    del label, total
    yield from items
