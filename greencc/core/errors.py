"""Errors a user can act on, and the exit codes of the command line.

Every problem with an input, an option, a device or a limit is raised as a `GreenccError`: a message that says
what is wrong and where, a hint that says what to do, and an exit code. Anything else that escapes is a bug and
exits with `ExitCode.INTERNAL`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Process exit codes, documented in the README."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    LIMIT = 3
    BAD_INPUT = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130


class GreenccError(Exception):
    """A problem that the user can act on.

    Args:
        message: What is wrong and where, one sentence, no trailing newline.
        hint: What to do about it, when that is known.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(GreenccError):
    """Options that are unknown, malformed or contradict each other."""

    exit_code = ExitCode.USAGE


class LimitError(GreenccError):
    """A budget or an accuracy limit that no verified artifact reaches."""

    exit_code = ExitCode.LIMIT


class InputError(GreenccError):
    """A model, bundle or data file that is missing, corrupt, hostile or does not fit."""

    exit_code = ExitCode.BAD_INPUT


class UntrustedError(InputError):
    """A bundle with compiled code that the user has not said may run."""


class UnavailableError(GreenccError):
    """A target, device, meter or optional dependency that this machine does not have."""

    exit_code = ExitCode.UNAVAILABLE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'cpu'? known: cpu, tvm``."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}"
    return f"did you mean '{close[0]}'? {listing}" if close else listing
