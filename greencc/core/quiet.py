"""Libraries that write to standard output from C keep out of what a command prints there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 1 meanwhile to file descriptor 2.

    What Python itself has buffered is written out first, so that it goes where it was meant to. Not for code that runs
    beside others that print.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        # There is no standard output that could be spoilt.
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
