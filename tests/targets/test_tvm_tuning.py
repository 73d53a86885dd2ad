"""Tuning of `tvm-cpu`: what is found is used by what is built afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.progress import silent
from greencc.core.report import Interval
from greencc.core.tuning import Tunable, tunable
from greencc.targets import make_target
from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.records import Record, place_of
from greencc.targets._tvm.workload import key_of

pytest.importorskip("tvm", reason="needs greencc[tvm]")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    path = default_path()
    assert path is not None
    return path


def _host() -> Machine:
    from greencc.targets._tvm.host import host_machine

    return host_machine(1)


def _prefer_another_schedule(mlp: ir.Model, path: Path) -> None:
    """As if tuning had found that the last schedule of the first product's space is the best."""
    from greencc.targets._tvm.kernels.select import template_of
    from greencc.targets._tvm.lowering import lower_model
    from greencc.targets._tvm.schedules import DefaultSchedules

    host, asked = _host(), DefaultSchedules()
    lower_model(mlp, host, asked)
    workload = asked.asked[0]
    template = template_of(workload)
    default, best = template.default(workload, host), template.space(workload, host)[-1]
    assert best != default
    one = Interval(1.0, 1.0, 1.0)
    record = Record(
        key_of(workload), "first", place_of(host, 1), best, default, one, one, one, {default: "slower"}, 2
    )
    Database(path, pytest.fail).put([record])


def test_what_was_tuned_is_built(mlp_ir, mlp_file, tmp_path, cache):
    target = make_target("tvm-cpu:threads=1")
    lowered = target.lower(mlp_ir)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    before = target.build(lowered, tmp_path / "before")
    _prefer_another_schedule(lowered, cache)
    after = target.build(lowered, tmp_path / "after")
    assert (before.parent / "model.so").read_bytes() != (after.parent / "model.so").read_bytes()
    outputs = []
    for path in (before, after, mlp_file):
        engine = target.open(path)
        outputs.append(engine.run({"x": x})["y"])
        engine.close()
    for found in outputs[1:]:
        np.testing.assert_allclose(found, outputs[0], rtol=1e-5, atol=1e-6)


def test_a_model_is_tuned_and_what_is_found_stays(mlp_ir, cache):
    target = tunable(make_target("tvm-cpu:threads=1"))
    first = target.tune(mlp_ir, 2.0, silent)
    assert first.kernels == 2
    assert first.trials >= 1
    assert first.failed == ()
    assert first.warnings == ()
    kept = Database(cache, pytest.fail).records()
    assert first.tuned_us == pytest.approx(sum(record.best_us.value for record in kept))
    assert all(record.place == place_of(_host(), 1) for record in kept)
    # No time is left to try more: what is known is told.
    again = target.tune(mlp_ir, 1e-9, silent)
    assert (again.trials, again.tuned_us) == (0, first.tuned_us)


def test_a_damaged_database_is_told_of_once(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("noise", encoding="utf-8")
    target = make_target("tvm-cpu")
    assert isinstance(target, Tunable)
    (warning,) = target.check_schedules()
    assert str(cache) in warning
    assert target.check_schedules() == ()
