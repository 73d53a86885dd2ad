"""What an agent makes of messages that are none, and of names that lead elsewhere."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from greencc.agent import framing, wire
from greencc.agent.problem import Problem
from tests.devices.fake_jetpack import FakeJetPack, make_jetpack

from .agents import Agent, Refused

Served = tuple[Agent, FakeJetPack]


@pytest.fixture(scope="module")
def served(agent_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One agent that all of these requests go to: none of them must harm it."""
    jetpack = make_jetpack(tmp_path_factory.mktemp("served") / "jetson", trtexec=False)
    agent = Agent(agent_file, jetpack.environment)
    yield agent, jetpack
    agent.end()
    jetpack.kill()


def test_a_message_and_its_bytes_come_back() -> None:
    stream = io.BytesIO()
    wire.write(stream, {"id": 1, "op": "put", "args": {"text": "ä"}}, b"\0\n\xff")
    stream.seek(0)
    header, payload = framing.read(stream) or ({}, b"")
    assert (header["args"], header["bytes"], payload) == ({"text": "ä"}, 3, b"\0\n\xff")
    assert framing.read(stream) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1, 2]\n", "no object"),
        (b"{]\n", "not JSON"),
        (b'{"id": NaN}\n', "NaN is no number"),
        (b'{"id": "\xff"}\n', "not JSON"),
        (b"[" * 200_000 + b"\n", "not JSON"),
        (b'{"bytes": -1}\n', "0 to"),
        (b'{"bytes": true}\n', "0 to"),
        (b'{"bytes": 1e3}\n', "0 to"),
        (b'{"bytes": %d}\n' % (framing.MOST_PAYLOAD + 1), "0 to"),
        (b" " * (framing.MOST_HEADER + 1), "exceeds"),
    ],
)
def test_what_is_no_message_is_told(line: bytes, message: str) -> None:
    with pytest.raises(Problem, match=message) as caught:
        framing.read(io.BytesIO(line))
    assert caught.value.kind == "usage"


@pytest.mark.parametrize("text", [b"", b'{"id": 1', b'{"bytes": 4}\nabc'])
def test_a_stream_that_ends_within_a_message_has_ended(text: bytes) -> None:
    assert framing.read(io.BytesIO(text)) is None


def test_the_connection_ends_with_a_message_that_is_none(agent: Agent) -> None:
    agent.send(b"GET / HTTP/1.1\n")
    reply, _ = agent.receive()
    assert reply["id"] is None
    assert reply["error"]["kind"] == "usage"
    assert agent.close() == 2


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("format", {}, "no operation"),
        ("has", {}, "no SHA-256"),
        ("has", {"sha256": "../../etc/passwd"}, "no SHA-256"),
        ("put", {"sha256": "0" * 64, "total": "9"}, "total is '9'"),
        ("put", {"sha256": "0" * 64, "total": True}, "total is True"),
        ("start", {"job": "../evil", "spec": {}}, "no name of a job"),
        ("start", {"job": ".new", "spec": {}}, "no name of a job"),
        ("start", {"job": "a/b", "spec": {}}, "no name of a job"),
        ("start", {"job": "a\nb", "spec": {}}, "no name of a job"),
        ("start", {"job": "a" * 101, "spec": {}}, "no name of a job"),
        ("start", {"job": "a", "spec": []}, "a job's spec"),
        ("poll", {"job": "nobody"}, "there is no job"),
        ("poll", {"job": "nobody", "since": -1}, "since is -1"),
        ("cancel", {"job": "nobody"}, "there is no job"),
        ("open", {"job": "nobody"}, "there is no job"),
        ("run", {"engine": "nobody"}, "there is no job"),
        ("power-mode", {"set": "900W"}, "it has 15W|no power mode"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(
    agent: Agent, op: str, args: dict, message: str
) -> None:
    with pytest.raises(Refused, match=message) as caught:
        agent.ask(op, **args)
    assert caught.value.kind in ("usage", "lost")
    assert agent.ask("has", sha256="0" * 64)["size"] == 0


@pytest.mark.parametrize(
    "name", ["../state.json", "/etc/passwd", "a/../../spec.json", "", "a//b", "~", "-rf", "a\0b", "link"]
)
def test_files_outside_a_job_are_not_told(served: Served, name: str) -> None:
    agent, jetpack = served
    agent.result("quiet", {"kind": "idle", "seconds": 0})
    if name == "link":
        (jetpack.home / "jobs/quiet/link").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match=r"no name of a file|has no file"):
        agent.ask("fetch", job="quiet", file=name)
    assert json.loads(agent.both("fetch", job="quiet", file="spec.json")[1])["kind"] == "idle"


def test_a_build_with_hostile_names_writes_nothing_elsewhere(served: Served) -> None:
    agent, jetpack = served
    digest = agent.put(b"not a model")
    spec = {"kind": "build", "backend": "tvm", "files": {"../../../out": digest}, "main": "../../../out"}
    with pytest.raises(Refused, match="no name of the main file"):
        agent.result("evil", spec)
    with pytest.raises(Refused, match="no name of a file"):
        agent.result("evil2", spec | {"files": {"../x": digest, "m.onnx": digest}, "main": "m.onnx"})
    with pytest.raises(Refused, match="no backend 'rm -rf'"):
        agent.result("evil3", spec | {"backend": "rm -rf", "files": {"m": digest}, "main": "m"})
    assert not (jetpack.home / "out").exists()
    assert not (jetpack.home / "jobs/evil2/x").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_connection_that_drops_ends_the_agent_quietly(agent: Agent, number: int) -> None:
    assert agent.end(number) == 0
