"""Showing for whom a job waits: a device is used by one that takes times or watts at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any

from greencc.core.progress import Progress
from greencc.devices.process import printable

_WAITS = "in use by"


class WaitShown:
    """Takes the events of a job; while it waits for others, a line of progress says for whom.

    Args:
        progress: Shows it.
        name: Of the device.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._line: Iterator[None] | None = None

    def __enter__(self) -> WaitShown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """As `AgentClient.run_job` has it."""
        self._end()
        text = event.get("text")
        if isinstance(text, str) and _WAITS in text:
            # Brackets would be markup.
            shown = printable(f"{self._name}: {text}").replace("[", "(").replace("]", ")")
            self._line = self._progress(_for_ever(), label=shown)
            next(self._line)

    def _end(self) -> None:
        line, self._line = self._line, None
        # What shows progress takes its line away when the iteration ends.
        if isinstance(line, Generator):
            line.close()


def _for_ever() -> Iterator[None]:
    while True:
        yield
