"""Linear algebra in one thread."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info

from greencc.core.blas import single_threaded


def threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_linear_algebra_stays_in_one_thread_meanwhile() -> None:
    # Loads NumPy's library.
    _ = np.eye(2) @ np.eye(2)
    before = threads()
    with single_threaded():
        assert threads() == {1}
    assert threads() == before
