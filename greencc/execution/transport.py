"""What a worker and its driver say to each other, whatever carries it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Protocol

from greencc.core.data import Array
from greencc.core.errors import GreenccError, InputError, LimitError, UnavailableError, UsageError
from greencc.execution.task import Files, Task

_ERRORS: dict[str, type[GreenccError]] = {
    kind.__name__: kind for kind in (GreenccError, InputError, LimitError, UnavailableError, UsageError)
}


@dataclass(frozen=True)
class Reply:
    """What came of a task: arrays, an error for the user, the traceback of a bug, or no memory for it.

    Attributes:
        arrays: The result.
        error: Class, message and hint of a `GreenccError`.
        bug: The traceback of any other exception.
        exhausted: The worker ran out of memory, and survived.
    """

    arrays: dict[str, Array] | None = None
    error: tuple[str, str, str | None] | None = None
    bug: str | None = None
    exhausted: bool = False

    def result(self) -> dict[str, Array]:
        """The arrays.

        Raises:
            GreenccError: What the task raised.
            WorkerLostError: There was too little memory.
            WorkerBugError: The task failed in a way it should not.
        """
        if self.exhausted:
            raise WorkerLostError("ran out of memory")
        if self.error is not None:
            kind, message, hint = self.error
            raise _ERRORS.get(kind, GreenccError)(message, hint=hint)
        if self.bug is not None:
            raise WorkerBugError(self.bug)
        return self.arrays or {}


class WorkerLostError(Exception):
    """A worker ended, or was cut off, with a task: another may do better. The text says how, after its name."""


class WorkerBugError(RuntimeError):
    """A task raised something that is no `GreenccError`; the text is its traceback."""


class Worker(Protocol):
    """Runs one task at a time. Calls come from one thread, but for `close`."""

    def run(self, task: Task) -> dict[str, Array]:
        """Run a task.

        Raises:
            WorkerLostError: The worker is gone; this one is not used again.
            GreenccError: The task's own error.
            WorkerBugError: See `Reply.result`.
        """

    def close(self) -> None:
        """End the worker, whatever it does."""


def answer(task: Task, files: Files) -> Reply:
    """Run a task, in the worker."""
    try:
        return Reply(arrays=task.run(files))
    except GreenccError as error:
        return Reply(error=(type(error).__name__, error.message, error.hint))
    except MemoryError:
        return Reply(exhausted=True)
    except Exception:  # noqa: BLE001 - it is told to the driver, which raises it
        return Reply(bug=traceback.format_exc())
