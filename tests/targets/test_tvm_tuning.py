"""Tuning of `tvm-cpu`: what is found is used by what is built afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.progress import silent
from greencc.core.report import Interval
from greencc.core.tuning import Tunable, tunable
from greencc.targets import make_target
from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.records import Record, place_of
from greencc.targets._tvm.workload import Workload, key_of

pytest.importorskip("tvm", reason="needs greencc[tvm]")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    path = default_path()
    assert path is not None
    return path


def _prefer_another_schedule(mlp: ir.Model, path: Path) -> Workload:
    """As if tuning had found that the last schedule of the first product's space is the best."""
    from greencc.targets._tvm.host import host_machine
    from greencc.targets._tvm.kernels.select import template_of
    from greencc.targets._tvm.lowering import lower_model
    from greencc.targets._tvm.schedules import DefaultSchedules

    host, asked = host_machine(1), DefaultSchedules()
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
    return workload


def test_what_was_tuned_is_built(mlp_ir, mlp_file, tmp_path, cache):
    target = make_target("tvm-cpu:threads=1")
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    outputs, codes = [], []
    for name in ("before", "after"):
        artifact = target.build(target.lower(mlp_ir), tmp_path / name)
        codes.append((artifact.parent / "model.so").read_bytes())
        for path in (artifact, mlp_file):
            engine = target.open(path)
            outputs.append(engine.run({"x": x})["y"])
            engine.close()
        if name == "before":
            _prefer_another_schedule(target.lower(mlp_ir), cache)
    assert codes[0] != codes[1]
    for found in outputs[1:]:
        np.testing.assert_allclose(found, outputs[0], rtol=1e-5, atol=1e-6)
    # Times hold for a number of threads.
    again = make_target("tvm-cpu:threads=2")
    code = again.build(again.lower(mlp_ir), tmp_path / "two").parent / "model.so"
    assert code.read_bytes() == codes[0]


def test_a_model_is_tuned_and_goes_on_the_next_time(mlp_ir, cache):
    target = tunable(make_target("tvm-cpu:threads=1"))
    first = target.tune(mlp_ir, 3.0, silent)
    assert first.kernels == 2
    assert first.trials >= 2
    assert first.failed == ()
    assert first.warnings == ()
    kept = Database(cache, pytest.fail).records()
    assert len(kept) == 2
    assert all(record.best_us.value > 0.0 for record in kept)
    # As if nothing were left to try.
    whole = [replace(record, space=record.trials, out=record.out) for record in kept]
    assert all(record.complete for record in whole)
    assert first.tuned_us == pytest.approx(sum(record.best_us.value for record in kept))


def test_a_damaged_database_is_told_of_once(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("noise", encoding="utf-8")
    target = make_target("tvm-cpu")
    assert isinstance(target, Tunable)
    (warning,) = target.check_schedules()
    assert str(cache) in warning
    assert target.check_schedules() == ()
