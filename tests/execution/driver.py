"""A driver for a test to kill: prints a line for each result."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from greencc.core.cache import Cache
from greencc.execution import make_executor
from tests.execution.conftest import squares


def main(engine: str, log: str, cache: str) -> None:
    """Square twenty numbers, slowly."""
    # A shell that starts tests in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    executor = make_executor(engine, 2)
    try:
        for outcome in executor.run(squares(20, Path(log), sleep=0.1), Cache(Path(cache))):
            sys.stdout.write(f"{outcome.index}\n")
            sys.stdout.flush()
    finally:
        executor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
