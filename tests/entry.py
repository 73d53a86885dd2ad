"""The command line's real entry point, in the tests' process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from greencc.cli.main import _run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@contextmanager
def entry_point(capsys: pytest.CaptureFixture[str], *before: str) -> Iterator[Callable[..., Outcome]]:
    """Runs ``greencc`` with what stands `before` and then the arguments; handlers of signals stay as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = _run([*before, *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
