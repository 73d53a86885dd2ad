"""Where human-readable output goes: results to standard output, progress to standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


def stdout() -> Console:
    """Results. Width follows the terminal; colour only where it is one."""
    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Progress and warnings, so that standard output stays machine-readable."""
    return Console(stderr=True, highlight=False)


class RichProgress:
    """A `greencc.core.progress.Progress` that draws one bar per running step, and removes it when done."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def __call__(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        task = self._bars.add_task(label, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)


@contextmanager
def progress_bars() -> Iterator[RichProgress]:
    """Show progress on standard error while the block runs; nothing is drawn where it is not a terminal."""
    console = stderr()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield RichProgress(bars)
