"""Real kernels, tried in a real process; how long they take is not looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from greencc.core.progress import silent
from greencc.targets._tvm.database import Database
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.records import place_of
from greencc.targets._tvm.trials import OutError, TrialProcess
from greencc.targets._tvm.tuning import Tuner
from greencc.targets._tvm.workload import Dense, key_of

from . import trial_templates
from .trial_templates import CRASHES, REFUSED, STRAYS, WRONG, schedule
from .tuning_shared import nothing_to_warn_of

pytest.importorskip("tvm", reason="needs greencc[tvm]")

WORKLOAD = Dense((48, 32), rows=8)
MACHINE = Machine(f"{os.uname().machine}-linux-gnu", "generic", frozenset())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialProcess]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    process = TrialProcess(MACHINE, 1, "trial_templates:template_of")
    yield process
    process.close()


def test_a_small_workload_is_tuned_and_what_is_bad_is_out(bench, tmp_path):
    """One tuning with everything in it, because a process takes seconds to import TVM."""
    database = Database(tmp_path / "schedules", nothing_to_warn_of())
    tuner = Tuner(trial_templates.template_of, MACHINE, 1, database, bench)
    report = tuner.tune({WORKLOAD: 1}, 300.0, silent)
    again = Database(tmp_path / "schedules", nothing_to_warn_of())
    found = again.get(key_of(WORKLOAD), place_of(MACHINE, 1))
    assert found is not None
    assert found.complete
    assert found.best in {schedule(cost) for cost in (1, 2, 3, 4)}
    reasons = {each.vectors: why for each, why in found.out.items()}
    assert "computes something else" in reasons[WRONG]
    assert "the schedule does not fit" in reasons[REFUSED]
    assert "SIGSEGV" in reasons[CRASHES]
    assert "beyond its output" in reasons[STRAYS]
    assert len(report.failed) == 4
    assert report.trials == 10
    assert found.best_us.low > 0.0
    # The process is replaced when it is lost, with what it had.
    with pytest.raises(OutError, match="SIGSEGV"):
        bench.add(schedule(1, CRASHES))
    bench.open(WORKLOAD, schedule(4))
    bench.add(schedule(2))
    with pytest.raises(OutError, match="SIGSEGV"):
        bench.add(schedule(1, CRASHES))
    times = bench.time([schedule(4), schedule(2)], 3)
    assert [len(each) for each in times] == [3, 3]
    assert all(us > 0.0 for each in times for us in each)


def test_a_process_that_cannot_start_puts_the_default_out(monkeypatch):
    bench = TrialProcess(MACHINE, 1, "no_such_module:template_of")
    try:
        with pytest.raises(OutError, match="no_such_module"):
            bench.open(WORKLOAD, schedule(4))
    finally:
        bench.close()
