"""Jobs as the client sees them: progress, failures, builds that failed or were lost before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from greencc.core.errors import ExitCode, GreenccError, UnavailableError
from greencc.devices.client import AgentClient, ClientOptions, DeviceLostError
from greencc.devices.jobs import spec_digest
from greencc.devices.ssh import SshTransport

from .fake_jetpack import FakeJetPack
from .sshd import Sshd
from .stub import asked, client_of, program, replying

T = TypeVar("T")
_SPEC = {"kind": "build", "backend": "ort", "files": {}, "main": "m"}


def _job(polls: str, start: str = '"running"') -> str:
    """An agent whose answers to `poll` and `start` are expressions of the job's name and of how often it was asked."""
    return (
        "hello()\nfor number, op, args, payload in requests():\n    job = args.get('job')\n"
        f"    result = ({polls}) if op == 'poll' else {{'state': {start}}} if op == 'start' else {{}}\n"
        "    say({'id': number, 'result': result})\n"
    )


def test_progress_and_events(tmp_path: Path) -> None:
    polls = (
        "[{'state': 'running', 'events': [{'t': 0.1, 'text': 'begun'}, {'t': 0.2, 'done': 0.25}], 'next': 2},"
        " {'state': 'running', 'events': [{'t': 0.2, 'done': 0.2}, {'t': 0.3, 'done': 'most'}], 'next': 4},"
        " {'state': 'done', 'events': [{'t': 0.4, 'done': 7.0}], 'next': 5, 'result': {}},"
        " {'state': 'done', 'events': [], 'next': 5, 'result': {'answer': 42}}][count('polls')]"
    )
    seen: list[int] = []

    def progress(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        assert (label, total) == ("building", 100)
        for number, item in enumerate(items, 1):
            yield item
            seen[:] = [number]

    events: list[Mapping[str, Any]] = []
    client = client_of(program(_job(polls)), tmp_path)
    client._progress = progress
    with client:
        done = client.run_job(_SPEC, label="building", limit=60.0, on_event=events.append)
    assert done.result == {"answer": 42}
    assert seen == [100]
    assert [event["t"] for event in events] == [0.1, 0.2, 0.2, 0.3, 0.4]


def test_what_is_measured_is_left_alone(tmp_path: Path) -> None:
    slept: list[float] = []
    options = ClientOptions(connect_seconds=20.0, sleep=slept.append)
    package = program(_job("{'state': 'done', 'events': [], 'next': 0, 'result': {}}"))
    with client_of(package, tmp_path, options) as client:
        client.run_job({"kind": "drive", "seconds": 3}, label="measuring", limit=60.0, quiet=2.75)
    assert sum(slept) == 2.75
    assert asked(tmp_path) == ["start", "poll", "bye"]


@pytest.mark.parametrize(
    ("kind", "code", "hint"),
    [
        ("usage", ExitCode.USAGE, None),
        ("input", ExitCode.BAD_INPUT, None),
        ("unavailable", ExitCode.UNAVAILABLE, None),
        ("disk", ExitCode.UNAVAILABLE, "greencc devices clean"),
        ("memory", ExitCode.BAD_INPUT, "smaller model"),
        ("timeout", ExitCode.UNAVAILABLE, "more time"),
        ("crashed", ExitCode.UNAVAILABLE, "precision"),
        ("permission", ExitCode.UNAVAILABLE, "devices probe"),
        ("internal", ExitCode.INTERNAL, "bug"),
    ],
)
def test_failures(tmp_path: Path, kind: str, code: ExitCode, hint: str | None) -> None:
    error = f"{{'kind': '{kind}', 'message': 'line 1\\nline 2', 'hint': ''}}"
    polls = f"{{'state': 'failed', 'events': [], 'next': 0, 'error': {error}}}"
    with client_of(program(_job(polls)), tmp_path) as client, pytest.raises(GreenccError) as caught:
        client.run_job(_SPEC, label="building", limit=60.0)
    assert caught.value.exit_code == code
    assert caught.value.message == "this machine: line 1\nline 2"
    assert (hint or "None") in str(caught.value.hint)
    # It ended by itself: there is nothing to cancel.
    assert "cancel" not in asked(tmp_path)


def test_a_job_that_was_cancelled_over_there(tmp_path: Path) -> None:
    package = program(_job("{'state': 'cancelled', 'events': [], 'next': 0}"))
    with (
        client_of(package, tmp_path) as client,
        pytest.raises(UnavailableError, match="cancelled on the device"),
    ):
        client.run_job(_SPEC, label="building", limit=60.0)


def test_builds_that_failed_before_are_tried_again(tmp_path: Path) -> None:
    start = "'failed' if job.endswith('-0') else 'lost' if job.endswith('-1') else 'done'"
    package = program(_job("{'state': 'done', 'events': [], 'next': 0, 'result': {'job': job}}", start))
    with client_of(package, tmp_path) as client:
        done = client.run_job(_SPEC, label="building", limit=60.0)
    assert done.found
    assert done.job == done.result["job"] == f"build-{spec_digest(_SPEC)[:40]}-2"


def test_a_build_that_is_lost_again_and_again(tmp_path: Path) -> None:
    error = "{'kind': 'lost', 'message': 'started anew'}"
    package = program(_job(f"{{'state': 'lost', 'events': [], 'next': 0, 'error': {error}}}"))
    with client_of(package, tmp_path) as client, pytest.raises(DeviceLostError, match="started anew"):
        client.run_job(_SPEC, label="building", limit=60.0)
    assert asked(tmp_path).count("start") == 3


def test_ids_of_jobs(tmp_path: Path) -> None:
    assert spec_digest({"a": 1, "b": 2}) == spec_digest({"b": 2, "a": 1})
    assert spec_digest({"a": 1}) != spec_digest({"a": 2})
    assert spec_digest({"a": 1}, "nonce") != spec_digest({"a": 1})
    package = program(_job("{'state': 'done', 'events': [], 'next': 0, 'result': {}}"))
    with client_of(package, tmp_path) as client:
        jobs = {client.run_job({"kind": "idle"}, label="waiting", limit=9.0).job for _ in range(2)}
    assert len(jobs) == 2


def test_an_engine_that_was_lost_is_opened_again(tmp_path: Path) -> None:
    body = (
        "hello()\nfor number, op, args, payload in requests():\n"
        "    if op == 'open':\n"
        "        result = {'engine': 'e%d' % count('opened'), 'inputs': [], 'outputs': []}\n"
        "        say({'id': number, 'result': result})\n"
        "    elif args.get('engine') == 'e0':\n"
        "        say({'id': number, 'error': {'kind': 'lost', 'message': 'no engine e0'}})\n"
        "    else:\n"
        "        say({'id': number, 'result': {'outputs': [], 'ms': 1.5}})\n"
    )
    with client_of(program(body), tmp_path) as client:
        engine = client.open_engine("job")
        assert client.run_engine(engine, []) == ([], 1.5)
    assert asked(tmp_path) == ["open", "run", "open", "run", "bye"]


def test_the_power_mode_of_a_jetson(jetson: FakeJetPack, jetson_sshd: Sshd) -> None:
    with AgentClient(SshTransport(jetson_sshd.address, jetson_sshd.options)) as client:
        assert client.set_power_mode("7W") == "25W"
        assert jetson.mode == "7W"
        with pytest.raises(GreenccError, match="no power mode of the device"):
            client.set_power_mode("9W")
        # The new agent, after the connection broke, takes over what the old one had changed.
        assert jetson_sshd.kill_sessions() == 1
        client.request("has", {"sha256": "0" * 64})
        assert jetson.mode == "7W"
    assert jetson.mode == "25W"
    assert client.farewell is None


def test_a_reply_without_a_mode(tmp_path: Path) -> None:
    with client_of(replying("{'id': number, 'result': {}}"), tmp_path) as client:
        assert client.set_power_mode("7W") == ""


def test_a_client_that_was_closed(tmp_path: Path) -> None:
    client = client_of(replying("{'id': number, 'result': {}}"), tmp_path)
    client.close()
    client.close()
    with pytest.raises(UnavailableError, match="was closed"):
        client.request("probe")
    assert asked(tmp_path) == []
