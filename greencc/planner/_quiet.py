"""Keeps what compiled code prints out of standard output.

HiGHS (as of 1.10) writes a line of debugging output past its own switch for messages. Standard output belongs to
whoever called: `greencc compile --json` promises nothing there but the report.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def without_output() -> Iterator[None]:
    """Send what the block's compiled code prints to nowhere; of the whole process, while it runs."""
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    # What C has buffered is written where it belongs before, and where it does not after the block.
    library.fflush(None)
    try:
        saved = os.dup(_STDOUT)
    except OSError:
        # There is no standard output to keep clean.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDOUT)
        yield
    finally:
        library.fflush(None)
        os.dup2(saved, _STDOUT)
        os.close(saved)
        os.close(nowhere)
