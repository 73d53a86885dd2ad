"""The same behaviour in this process, in local processes and on Ray; what is lost is only what was not finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greencc.core.cache import Cache
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.execution import Blob, Demand, Executor, Work, make_executor
from greencc.execution.executor import RETRIES
from greencc.execution.making import check_engine
from greencc.execution.transport import WorkerBugError

from .conftest import KINDS, gather, log_lines, squares
from .tasks import Broken, Environment, Occupies, Refuses, Square, Total

ROOT = Path(__file__).resolve().parents[2]
KILLABLE = KINDS[1:]
RAY = KINDS[2]


def results(executor: Executor, works: list[Work], cache: Cache) -> list[int]:
    found = gather(executor, works, cache)
    assert all(outcome.error is None for outcome in found.values())
    return [int(found[index].arrays["square"]) for index in range(len(works))]  # type: ignore[index]


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_results_are_the_same_everywhere_and_kept(executor: Executor, tmp_path: Path) -> None:
    cache, log = Cache(tmp_path / "cache"), tmp_path / "log"
    works = squares(6, log)
    assert results(executor, works, cache) == [number**2 for number in range(6)]
    assert log_lines(log) == list(range(6))
    assert results(executor, works, cache) == [number**2 for number in range(6)]
    assert log_lines(log) == list(range(6)), "what the cache had was run again"


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_a_result_is_in_the_cache_before_it_is_told(executor: Executor, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    works = squares(4, tmp_path / "log")
    for outcome in executor.run(works, cache):
        other = Cache(tmp_path / "cache").get("squares", works[outcome.index].key)
        assert other is not None
        assert int(other["square"]) == outcome.index**2


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_files_reach_the_workers(executor: Executor, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "data.npz", a=np.arange(10.0), b=np.ones(5))
    for shared in (False, True):
        blob = Blob.of(folder, shared=shared)
        works = [Work("totals", f"{shared}-{n}", "a total", lambda _, b=blob: Total(b)) for n in range(3)]  # type: ignore[misc]
        found = gather(executor, works, Cache())
        assert [float(found[index].arrays["total"]) for index in range(3)] == [50.0] * 3  # type: ignore[index]
    assert (folder / "data.npz").exists()


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_an_error_for_the_user_arrives_whole_and_the_others_go_on(executor: Executor, tmp_path: Path) -> None:
    works = [Work("refusals", "r", "what cannot be", lambda _: Refuses()), *squares(3, tmp_path / "log")]
    found = gather(executor, works, Cache())
    error = found[0].error
    assert type(error) is InputError
    assert (error.message, error.hint) == ("no such thing", "ask for another")
    assert [found[index].error for index in (1, 2, 3)] == [None] * 3


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_a_bug_is_raised_and_the_executor_stays_usable(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises((WorkerBugError, ZeroDivisionError), match="a bug"):
        gather(executor, [Work("bugs", "b", "a bug", lambda _: Broken())], Cache())
    assert results(executor, squares(3, tmp_path / "log"), Cache()) == [0, 1, 4]


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_the_same_key_runs_once(executor: Executor, tmp_path: Path) -> None:
    works = squares(2, tmp_path / "log")
    found = gather(executor, [*works, works[0]], Cache())
    assert sorted(found) == [0, 1]
    assert log_lines(tmp_path / "log") == [0, 1]


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_after_the_stop_nothing_starts_and_what_runs_is_kept(executor: Executor, tmp_path: Path) -> None:
    seen: list[int] = []
    cache = Cache()
    for outcome in executor.run(squares(40, tmp_path / "log"), cache, stop=lambda: bool(seen)):
        seen.append(outcome.index)
    assert 1 <= len(seen) <= executor.workers + 1
    assert log_lines(tmp_path / "log") == sorted(seen)
    assert gather(executor, squares(2, tmp_path / "log"), Cache()), "it works again afterwards"


@pytest.mark.parametrize("executor", KILLABLE, indirect=True)
def test_a_killed_worker_loses_only_its_task_which_is_tried_again(executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    works = squares(6, log, deaths={1: 1, 4: RETRIES})
    assert results(executor, works, Cache()) == [number**2 for number in range(6)]
    assert log_lines(log) == list(range(6)), "a finished task was run again"
    assert len(list(tmp_path.glob("died-*"))) == 1 + RETRIES


@pytest.mark.parametrize("executor", KILLABLE, indirect=True)
def test_a_task_that_kills_every_worker_is_one_clear_error(executor: Executor, tmp_path: Path) -> None:
    found = gather(executor, squares(4, tmp_path / "log", deaths={2: 99}), Cache())
    error = found[2].error
    assert isinstance(error, UnavailableError)
    assert error.message.startswith(f"the square of 2: given up, {RETRIES + 1} workers got lost")
    assert [found[index].error for index in (0, 1, 3)] == [None] * 3
    assert len(list(tmp_path.glob("died-2-*"))) == RETRIES + 1


def test_the_error_says_how_the_worker_ended(tmp_path: Path) -> None:
    executor = make_executor("local", 2)
    found = gather(executor, squares(1, tmp_path / "log", deaths={0: 99}), Cache())
    executor.close()
    assert "SIGKILL, as the system does when memory runs out" in str(found[0].error)


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_one_task_at_a_time_on_a_device_several_devices_at_once(executor: Executor, tmp_path: Path) -> None:
    works = [
        Work("uses", f"u{n}", "a measurement", lambda device: Occupies(str(device), tmp_path),
             Demand(devices=("jetson", "pi")))
        for n in range(8)
    ]  # fmt: skip
    found = gather(executor, works, Cache())
    assert len(found) == 8
    used = {str(outcome.arrays["device"]) for outcome in found.values() if outcome.arrays is not None}
    assert used == ({"jetson"} if executor.here else {"jetson", "pi"})


@pytest.mark.parametrize("executor", KILLABLE, indirect=True)
def test_an_executor_is_busy_while_it_runs(executor: Executor, tmp_path: Path) -> None:
    """What makes a task must not wait for the workers that are to run it."""
    busy: list[bool] = []
    works = [
        replace(work, make=lambda device, make=work.make: busy.append(executor.busy) or make(device))  # type: ignore[misc]
        for work in squares(3, tmp_path / "log")
    ]
    assert not executor.busy
    assert len(gather(executor, works, Cache())) == 3
    assert busy == [True] * 3
    assert not executor.busy
    stopped = executor.run(squares(3, tmp_path / "log"), Cache())
    next(stopped)
    assert executor.busy
    assert isinstance(stopped, Generator)
    stopped.close()
    assert not executor.busy


def test_workers_share_the_threads_of_the_machine() -> None:
    executor = make_executor("local", 2)
    found = gather(executor, [Work("facts", "f", "facts", lambda _: Environment())], Cache())
    executor.close()
    assert found[0].arrays is not None
    assert int(found[0].arrays["threads"]) == executor.threads


def test_closing_in_the_middle_ends_the_workers(tmp_path: Path) -> None:
    executor = make_executor("local", 2)
    outcomes = executor.run(squares(8, tmp_path / "log"), Cache())
    first = next(outcomes)
    assert first.arrays is not None
    outcomes.close()  # type: ignore[attr-defined]
    executor.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(first.arrays["pid"]), 0)


@pytest.mark.parametrize("engine", ["local", RAY])
def test_a_killed_driver_loses_no_finished_result(engine: str, tmp_path: Path) -> None:
    """The driver dies by SIGKILL after three of twenty results; the second run does the rest."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.execution.driver", engine, str(log), str(cache)],
        stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert driver.stdout is not None
    for _ in range(3):
        assert driver.stdout.readline().strip().isdigit()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    before = _settled(log)
    kept = {int(path.name.split("-")[1].split(".")[0]) for path in cache.glob("squares/square-*")}
    assert 3 <= len(kept) <= len(before) < 20
    executor = make_executor("local", 2)
    assert results(executor, squares(20, log), Cache(cache)) == [number**2 for number in range(20)]
    executor.close()
    again = log_lines(log)
    for number in range(20):
        assert again.count(number) == (1 if number in kept else 1 + before.count(number))


def test_ctrl_c_ends_driver_and_workers_and_keeps_what_is_finished(tmp_path: Path) -> None:
    log, cache = tmp_path / "log", tmp_path / "cache"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.execution.driver", "local", str(log), str(cache)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout is not None
    told = {int(driver.stdout.readline()) for _ in range(3)}
    # As a terminal does: to every process of the group.
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert driver.returncode != 0
    assert _gone(driver.pid), "workers outlived their driver"
    kept = {int(path.name.split("-")[1].split(".")[0]) for path in cache.glob("squares/square-*")}
    assert told <= kept
    assert len(kept) < 20


def _gone(group: int) -> bool:
    """Whether a process group ends; the system may take a moment."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _settled(log: Path) -> list[int]:
    """What was computed, once the orphaned workers have ended, which they do after the task they are at."""
    last, still = log_lines(log), 0
    while still < 5:
        time.sleep(0.2)
        now = log_lines(log)
        last, still = now, still + 1 if now == last else 0
    return last


def test_one_local_worker_is_this_process(tmp_path: Path) -> None:
    executor = make_executor("local", 1)
    assert executor.here
    found = gather(executor, squares(1, tmp_path / "log"), Cache())
    assert found[0].arrays is not None
    assert int(found[0].arrays["pid"]) == os.getpid()
    assert isinstance(found[0].task, Square)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 2), (3, 3, 1), (16, 16, 1)])
def test_few_cores_need_no_processes(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greencc.execution.making.usable_threads", lambda: cores)
    executor = make_executor("local")
    assert (executor.workers, executor.threads, executor.here) == (workers, threads, workers == 1)
    executor.close()


@pytest.mark.parametrize(
    ("spec", "workers", "message"),
    [
        ("rya", 0, "did you mean 'ray'"),
        ("locl", 0, "did you mean 'local'"),
        ("", 0, "unknown engine ''"),
        ("ray://", 0, "no address of a Ray cluster"),
        ("ray://host", 0, "no address of a Ray cluster"),
        ("ray://host:0", 0, "no address of a Ray cluster"),
        ("ray://host:99999", 0, "no address of a Ray cluster"),
        ("http://host:80/x", 0, "no address of a Ray cluster"),
        ("local", -1, "-1 workers"),
        ("local", 5000, "5000 workers"),
    ],
)
def test_bad_engines_are_refused_in_one_line(spec: str, workers: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_engine(spec, workers)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        make_executor(spec, workers)
