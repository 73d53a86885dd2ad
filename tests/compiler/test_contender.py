"""What is kept of a judgement, and for what it is found again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from greencc.compiler import contender as module
from greencc.compiler.contender import contender, judge
from greencc.core.cache import Cache
from greencc.core.engine import Engine
from greencc.core.report import Accuracy
from greencc.targets import CpuTarget

from .conftest import Bench

KIND = "accuracy"


@dataclass(frozen=True)
class Newer(CpuTarget):
    """The same run time in another version."""

    def versions(self) -> dict[str, str]:
        return super().versions() | {"onnxruntime": "99.0"}


@pytest.fixture
def cached(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    bench.session.cache = Cache(tmp_path / "cache")
    bench.session.source = "digest"
    yield bench
    bench.session.close()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines that were compared."""
    found: list[Engine] = []
    genuine = module.compare

    def compare(baseline: Engine, artifact: Engine, *arguments: object, **options: object) -> Accuracy:
        found.append(artifact)
        return genuine(baseline, artifact, *arguments, **options)

    monkeypatch.setattr(module, "compare", compare)
    return found


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"other": np.array("x")},
        {"accuracy": np.array("")},
        {"accuracy": np.array("[" * 100_000)},
        {"accuracy": np.array("[]")},
        {"accuracy": np.array("{}")},
        {"accuracy": np.zeros(3)},
        {"accuracy": np.array(json.dumps({"metric": "top-1", "baseline": "high"}))},
    ],
)
def test_a_judgement_that_cannot_be_read_is_made_again(
    cached: Bench, compared: list[Engine], entry: dict[str, np.ndarray]
) -> None:
    first = contender(cached.session, cached.builder.cleaned(), cached.baseline, cached.splits)
    (key,) = cached.session.cache.keys(KIND)
    cached.session.cache.put(KIND, key, entry)
    second = contender(cached.session, cached.builder.cleaned(), cached.baseline, cached.splits)
    assert second.planning == first.planning
    assert len(compared) == 2
    third = contender(cached.session, cached.builder.cleaned(), cached.baseline, cached.splits)
    assert third.planning is not None
    assert len(compared) == 2, "what was planted is replaced"


def test_what_another_version_of_a_run_time_computed_is_judged_anew(
    cached: Bench, compared: list[Engine]
) -> None:
    form = cached.builder.cleaned()
    session, data = cached.session, cached.splits.planning
    plain = contender(session, form, cached.baseline, cached.splits)
    newer = Newer(threads=1)
    for _ in range(2):
        elsewhere = contender(session, replace(form, target=newer), cached.baseline, cached.splits)
    judge(session, cached.baseline, elsewhere.engine, data, form.built, newer)
    judge(session, cached.baseline, plain.engine, data, form.built)
    assert len(compared) == 2
    assert len(session.cache.keys(KIND)) == 2


def test_a_form_for_another_run_time_is_opened_there(cached: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    genuine = CpuTarget.open
    monkeypatch.setattr(CpuTarget, "open", lambda self, path: (opened.append(self), genuine(self, path))[1])
    newer = Newer(threads=1)
    form = replace(cached.builder.cleaned(), target=newer)
    contender(cached.session, form, cached.baseline, cached.splits)
    assert opened == [newer]
