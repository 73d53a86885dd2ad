"""Jobs that outlive connections, reach their limits, are cancelled, and are lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from greencc.agent.device import who
from greencc.agent.places import Places

from .agents import Agent, Refused, until
from .conftest import Connect

LONG = {"kind": "idle", "seconds": 600}


def pid_of(jetpack, job: str) -> int:
    return int(json.loads((jetpack.home / "jobs" / job / "state.json").read_text())["pid"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_job_outlives_the_agent_and_is_found_again(connect: Connect, jetpack) -> None:
    first = connect()
    assert first.ask("start", job="long", spec=LONG) == {"state": "running"}
    first.end(signal.SIGKILL)
    second = connect()
    assert second.ask("poll", job="long")["state"] == "running"
    # To send a request again is no harm.
    assert second.ask("start", job="long", spec=LONG) == {"state": "running"}
    with pytest.raises(Refused, match="does something else"):
        second.ask("start", job="long", spec={"kind": "idle", "seconds": 1})
    second.ask("cancel", job="long")


def test_a_dropped_connection_leaves_no_remains(connect: Connect, jetpack) -> None:
    agent = connect()
    agent.result("short", {"kind": "idle", "seconds": 0})
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    assert children == []
    assert agent.close() == 0


def test_the_result_waits_for_whoever_comes_back(connect: Connect) -> None:
    first = connect()
    first.ask("start", job="short", spec={"kind": "idle", "seconds": 0.05})
    first.end(signal.SIGHUP)
    told = connect().wait("short")
    assert told["state"] == "done"
    assert told["result"]["count"] == 0
    assert told["result"]["seconds"] >= 0.05
    assert told["result"]["others"] == 0.0


def test_cancelling_ends_all_processes(agent: Agent, jetpack) -> None:
    agent.ask("start", job="long", spec=LONG)
    pid = pid_of(jetpack, "long")
    assert alive(pid)
    agent.ask("cancel", job="long")
    assert not alive(pid)
    assert agent.ask("poll", job="long")["state"] == "cancelled"
    agent.ask("cancel", job="long")
    assert agent.ask("start", job="long", spec=LONG) == {"state": "cancelled"}


def test_a_job_ends_at_its_time(agent: Agent, jetpack) -> None:
    with pytest.raises(Refused, match=r"longer than its 0\.3 s") as caught:
        agent.result("slow", LONG | {"limits": {"seconds": 0.3}})
    assert caught.value.kind == "timeout"
    until("the job's end", lambda: not alive(pid_of(jetpack, "slow")))


def test_a_job_ends_at_its_memory(agent: Agent) -> None:
    with pytest.raises(Refused, match=r"MB of memory; 1 MB are allowed") as caught:
        agent.result("large", LONG | {"limits": {"bytes": 1 << 20}})
    assert caught.value.kind == "memory"


def test_a_job_ends_before_the_machine_runs_out_of_memory(agent: Agent, jetpack) -> None:
    agent.ask("start", job="long", spec=LONG)
    jetpack.write({"meminfo": "MemTotal: 8000000 kB\nMemAvailable: 100000 kB"}, "proc")
    told = agent.wait("long")
    assert told["error"]["kind"] == "memory"
    assert "102 of 8192 MB" in told["error"]["message"]


def test_a_job_ends_when_the_disk_gets_full(connect: Connect, tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.write_text("900000000")
    agent = connect(FREE_FILE=free)
    agent.ask("start", job="long", spec=LONG)
    free.write_text("1000")
    told = agent.wait("long")
    assert told["error"]["kind"] == "disk"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (3, "a job's limits are 3"),
        ({"seconds": "1"}, "limits.seconds is '1'"),
        ({"bytes": 0.5}, "limits.bytes"),
    ],
)
def test_limits_that_are_none_are_refused(agent: Agent, limits: object, message: str) -> None:
    with pytest.raises(Refused, match=message):
        agent.result("odd", LONG | {"limits": limits})


def test_a_kind_that_is_not_known(agent: Agent) -> None:
    with pytest.raises(Refused, match="'mine' is no kind of job"):
        agent.result("odd", {"kind": "mine"})


def test_a_reboot_loses_what_ran_and_keeps_what_was_done(connect: Connect, jetpack) -> None:
    agent = connect()
    agent.result("short", {"kind": "idle", "seconds": 0})
    agent.ask("start", job="long", spec=LONG)
    jetpack.reboot()
    agent = connect()
    told = agent.ask("poll", job="long")
    assert told["state"] == "lost"
    assert told["error"]["kind"] == "lost"
    assert "started anew" in told["error"]["message"]
    assert agent.ask("poll", job="short")["state"] == "done"


def test_a_job_that_is_killed_is_lost(agent: Agent, jetpack) -> None:
    agent.ask("start", job="long", spec=LONG)
    os.kill(pid_of(jetpack, "long"), signal.SIGKILL)
    told = agent.wait("long")
    assert told["state"] == "lost"
    assert "gone without a result" in told["error"]["message"]


def test_a_job_whose_starter_died_at_once_is_started(connect: Connect, jetpack) -> None:
    agent = connect()
    folder = jetpack.home / "jobs/half"
    folder.mkdir()
    (folder / "spec.json").write_text('{"kind": "idle", "seconds": 0}')
    assert agent.result("half", {"kind": "idle", "seconds": 0})["count"] == 0


def test_one_job_times_and_another_waits(connect: Connect, jetpack) -> None:
    one, two = connect(), connect()
    one.ask("start", job="first", spec=LONG)
    places = Places(jetpack.home, jetpack.root)
    until("the first to have the device", lambda: who(places) is not None)
    assert str(who(places)).startswith("job first of ")
    with pytest.raises(Refused, match="the device is in use by job first of") as caught:
        two.result("second", {"kind": "idle", "seconds": 0, "wait": 0})
    assert caught.value.kind == "unavailable"
    # Time spent on waiting is not time spent on working.
    patient = {"kind": "idle", "seconds": 0, "limits": {"seconds": 0.5}}
    two.ask("start", job="third", spec=patient)
    until("a word about waiting", lambda: two.ask("poll", job="third")["events"])
    assert "waiting" in two.ask("poll", job="third")["events"][0]["text"]
    following = two.ask("poll", job="third")["next"]
    assert two.ask("poll", job="third", since=following)["events"] == []
    one.ask("cancel", job="first")
    assert two.wait("third")["state"] == "done"


def test_goodbye_leaves_the_files_alone(agent: Agent, jetpack) -> None:
    digest = agent.put(b"a model")
    agent.result("short", {"kind": "idle", "seconds": 0})
    agent.ask("bye")
    assert list((jetpack.home / "jobs").iterdir()) == []
    assert agent.ask("has", sha256=digest)["complete"]


def test_cleaning_removes_the_old_and_all(agent: Agent, jetpack) -> None:
    digest = agent.put(b"a model")
    agent.result("old", {"kind": "idle", "seconds": 0})
    agent.result("new", {"kind": "idle", "seconds": 0})
    agent.ask("start", job="running", spec=LONG)
    for path in [*(jetpack.home / "jobs/old").rglob("*"), jetpack.home / "jobs/old"]:
        os.utime(path, (1e9, 1e9))
    agent.ask("clean")
    assert sorted(path.name for path in (jetpack.home / "jobs").iterdir()) == ["new", "running"]
    assert agent.ask("has", sha256=digest)["complete"]
    assert agent.ask("clean", all=True)["freed"] > 0
    assert [path.name for path in (jetpack.home / "jobs").iterdir()] == ["running"]
    assert not agent.ask("has", sha256=digest)["complete"]
    agent.ask("cancel", job="running")


def test_goodbye_leaves_jobs_that_another_connection_uses(connect: Connect, jetpack) -> None:
    one, two = connect(), connect()
    spec = {"kind": "idle", "seconds": 0}
    one.result("shared", spec)
    assert two.ask("start", job="shared", spec=spec) == {"state": "done"}
    one.ask("bye")
    one.ask("clean", all=True)
    assert two.ask("poll", job="shared")["state"] == "done"
    two.ask("bye")
    assert list((jetpack.home / "jobs").iterdir()) == []


def test_connections_of_one_session_count_as_one(connect: Connect, jetpack) -> None:
    spec = {"kind": "idle", "seconds": 0}
    one, silent, last, other = connect(), connect(), connect(), connect()
    one.ask("start", job="first", spec=spec, session="run-1")
    one.end()
    silent.ask("start", job="second", spec=spec, session="run-1")
    for job in ("third", "shared"):
        last.ask("start", job=job, spec=spec, session="run-1")
    for job in ("shared", "theirs"):
        other.ask("start", job=job, spec=spec, session="run-2")
    for job in ("first", "second", "third", "shared", "theirs"):
        last_or_other = other if job == "theirs" else last
        assert last_or_other.wait(job)["state"] == "done"
    last.ask("bye", session="run-1")
    assert kept(jetpack) == ["shared", "theirs"]
    other.ask("bye", session="run-2")
    assert kept(jetpack) == []
    with pytest.raises(Refused, match="no name of a session"):
        other.ask("bye", session="../x")


def test_a_session_forgets_what_it_has_fetched(connect: Connect, jetpack) -> None:
    agent, other = connect(), connect()
    spec = {"kind": "idle", "seconds": 0}
    agent.result("first", spec)
    agent.result("shared", spec)
    other.ask("start", job="shared", spec=spec)
    finished_build(agent, jetpack, "build-1")
    agent.ask("start", job="next", spec=spec, forget=["first", "shared", "build-1", "unknown"])
    assert kept(jetpack) == ["build-1", "next", "shared"]
    for wrong in ("first", ["../first"], [7]):
        with pytest.raises(Refused, match=r"jobs to forget|no name of a job"):
            agent.ask("start", job="another", spec=spec, forget=wrong)


def kept(jetpack) -> list[str]:
    return sorted(path.name for path in (jetpack.home / "jobs").iterdir())


def aged(jetpack, job: str, days: float) -> None:
    """A job that was last used so long ago."""
    then = time.time() - days * 24 * 3600
    folder = jetpack.home / "jobs" / job
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def finished_build(agent: Agent, jetpack, name: str, size: int = 1000) -> dict[str, Any]:
    """A build that was done, as its process leaves it."""
    spec = {"kind": "build", "backend": "ort", "files": {}, "main": "m"}
    folder = jetpack.home / "jobs" / name
    (folder / "engine").mkdir(parents=True)
    (folder / "engine/engine.plan").write_bytes(b"x" * size)
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "result.json").write_text('{"state": "done", "result": {}}')
    assert agent.ask("start", job=name, spec=spec) == {"state": "done"}
    return spec


def test_what_one_host_built_is_there_for_another_that_comes_later(connect: Connect, jetpack) -> None:
    one = connect()
    spec = finished_build(one, jetpack, "build-1")
    one.result("drive-1", {"kind": "idle", "seconds": 0})
    with pytest.raises(Refused):
        one.result("build-2", {"kind": "build", "backend": "ort", "files": {}, "main": "m"})
    one.ask("bye")
    one.end()
    # Scratch and what failed are gone.
    assert kept(jetpack) == ["build-1"]
    assert connect().ask("start", job="build-1", spec=spec) == {"state": "done"}


def test_engines_go_by_age_and_quota(connect: Connect, jetpack) -> None:
    agent = connect(BUILDS=250_000)
    for name in ("build-1", "build-2", "build-3", "build-4", "build-5"):
        finished_build(agent, jetpack, name, 100_000)
    agent.end()
    for name, days in (("build-1", 8), ("build-2", 5), ("build-3", 3), ("build-4", 0.9)):
        aged(jetpack, name, days)
    later = connect(BUILDS=250_000)
    # The first goes by its age, the next two for the quota.
    later.ask("clean")
    assert kept(jetpack) == ["build-4", "build-5"]
    strict = connect(BUILDS=0)
    strict.ask("clean")
    assert kept(jetpack) == ["build-4", "build-5"]
    aged(jetpack, "build-4", 2)
    strict.ask("bye")
    assert kept(jetpack) == ["build-5"]


def test_engines_that_nobody_uses_make_room(connect: Connect, jetpack) -> None:
    agent = connect(QUOTA=400_000)
    for name in ("build-1", "build-2"):
        finished_build(agent, jetpack, name, 150_000)
    # Both are this connection's.
    with pytest.raises(Refused, match="does not fit"):
        agent.put(b"y" * 200_000)
    agent.ask("bye")
    aged(jetpack, "build-1", 0.1)
    agent.put(b"y" * 200_000)
    assert kept(jetpack) == ["build-2"]
