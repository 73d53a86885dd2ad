"""What verifies plans of the detector-like model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.compiler.planning import verifier as module
from greencc.compiler.planning.points import PointStore
from greencc.compiler.planning.verifier import Verifier
from greencc.compiler.slices import make_slice
from greencc.core.cache import Cache
from greencc.measure.profiles import QUICK
from tests.compiler.conftest import Bench

SHORT = replace(QUICK, seconds=0.02, rounds=4, min_rounds=4, min_runs=2, warm_up_seconds=0.01)


def made(bench: Bench, cache: Cache) -> Verifier:
    bench.session.cache = cache
    samples = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    store = PointStore(cache, "a" * 64)
    return Verifier(
        bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds, samples, store, bench.path
    )


@pytest.fixture
def verifier(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verifier]:
    monkeypatch.setattr(module, "QUICK", SHORT)
    yield made(bench, Cache(tmp_path / "cache"))
    bench.session.close()
