"""How many threads NumPy and SciPy compute with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep linear algebra in the calling thread meanwhile.

    For many small matrices: waking a thread for each costs more than it saves, and where other processes share the
    machine, waiting for one that does not run takes several times as long as the work.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
