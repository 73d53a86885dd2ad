"""Memory of this process."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return memory that was freed to the system.

    glibc keeps what lies between blocks still in use, which after many matrices of some megabytes is hundreds of them,
    and takes new memory for larger ones all the same. Other C libraries return it by themselves or cannot be asked.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
