"""What a device sends is not believed: each wrong reply is one clear error, and nothing is kept of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.core.errors import ExitCode, GreenccError
from greencc.devices.client import AgentClient, ClientOptions
from greencc.devices.protocol import ProtocolError
from greencc.devices.transport import ConnectionLostError

from .stub import client_of, program, replying


def _message(client: AgentClient, op: str = "probe", most: int = 0) -> str:
    with client, pytest.raises(ConnectionLostError) as caught:
        client.request(op, most=most)
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    return caught.value.message


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('b"no JSON\\n"', "no reply: b'no JSON'"),
        ('b"[1, 2]\\n"', "is no reply"),
        ('b"[" * 100000 + b"\\n"', "is no reply"),
        ("b'{\"id\": NaN}\\n'", "is no reply"),
        ('{"id": number + 1, "result": {}}', "another question"),
        ('{"result": {}}', "another question"),
        ('{"id": number}', "neither a result nor an error"),
        ('{"id": number, "result": [1]}', "neither a result nor an error"),
        ('{"id": number, "result": {}, "bytes": -1}', "no valid size"),
        ('{"id": number, "result": {}, "bytes": True}', "no valid size"),
        ('{"id": number, "result": {}, "bytes": "9"}', "no valid size"),
        ('{"id": number, "result": {}, "bytes": 1 << 60}', "where at most 100 can be right"),
        ('{"id": number, "error": "bad"}', "cannot be read"),
        ('{"id": number, "error": {"kind": "SystemExit", "message": "m"}}', "cannot be read"),
    ],
)
def test_wrong_replies(tmp_path: Path, reply: str, message: str) -> None:
    client = client_of(replying(reply), tmp_path)
    assert message in _message(client, most=100)


def test_a_header_without_end(tmp_path: Path) -> None:
    body = "hello()\nfor _ in requests():\n    while True:\n        OUT.write(b'x' * (1 << 20))\n"
    assert "a line of more than 33,554,432 bytes" in _message(client_of(program(body), tmp_path))


def test_a_payload_that_ends_early(tmp_path: Path) -> None:
    reply = "b'%s\\n' % json.dumps({'id': number, 'result': {}, 'bytes': 9}).encode() + b'123'); sys.exit("
    assert "the agent on this machine ended" in _message(client_of(replying(reply), tmp_path), most=100)


def test_control_characters_are_not_shown(tmp_path: Path) -> None:
    reply = "{'id': number, 'error': {'kind': 'input', 'message': 'a\\x1b[2Jb', 'hint': 'c\\x07d'}}"
    with client_of(replying(reply), tmp_path) as client, pytest.raises(GreenccError) as caught:
        client.request("probe")
    assert caught.value.message == "this machine: a?[2Jb"
    assert caught.value.hint == "c?d"


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (
            'say({"greencc-agent": 2, "python": "3", "pid": 1, "home": "/"})',
            "speaks version 2 of the protocol",
        ),
        ('say({"greencc-agent": 1, "python": 3, "pid": 1, "home": "/"})', "greeting lacks"),
        ('say(b"garbage\\n" * 2000); hello()', "more than 1,000 lines"),
        ('say(b"x" * (1 << 20))', "a line of more than 65,536 bytes"),
        ('say({"greencc-bootstrap": "run this"})', "unknown answer 'run this'"),
        ('say({"greencc-bootstrap": "send"}); say({"greencc-bootstrap": "send"})', "unknown answer 'send'"),
        ('say({"id": None, "error": {"kind": "disk", "message": "no room"}})', "no room"),
    ],
)
def test_wrong_greetings(tmp_path: Path, greeting: str, message: str) -> None:
    # It reads what is sent to it, as the bootstrap would.
    client = client_of(program(f"{greeting}\nsys.stdin.buffer.read()\n"), tmp_path)
    assert message in _message(client)


def test_banners_before_the_greeting_are_skipped(tmp_path: Path) -> None:
    body = (
        'say(b"Welcome\\n\\xff\\xfe\\n{\\"a\\": 1}\\n[]\\n{\\"broken\\n")\nhello()\n'
        'for number, *_ in requests():\n    say({"id": number, "result": {"fine": True}})\n'
    )
    with client_of(program(body), tmp_path) as client:
        assert client.request("probe").result == {"fine": True}


def test_an_agent_that_never_answers(tmp_path: Path) -> None:
    body = "hello()\nfor _ in requests():\n    pass\n"
    client = client_of(program(body), tmp_path)
    with client, pytest.raises(ConnectionLostError, match="did not answer in time"):
        client.request("probe", timeout=0.2)


def test_an_agent_that_never_greets(tmp_path: Path) -> None:
    client = client_of(program("sys.stdin.buffer.read()"), tmp_path, ClientOptions(connect_seconds=0.5))
    assert "did not answer in time" in _message(client)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ('{"size": 5, "complete": False}', "does not grow"),
        ('{"size": 1 << 40, "complete": False}', "impossible size"),
        ('{"size": 3, "complete": True}', "impossible size"),
        ('{"size": -1, "complete": False}', "impossible size"),
        ('{"complete": False}', "impossible size"),
    ],
)
def test_wrong_words_about_an_upload(tmp_path: Path, result: str, message: str) -> None:
    with (
        client_of(replying(f'{{"id": number, "result": {result}}}'), tmp_path) as client,
        pytest.raises(ProtocolError, match=message),
    ):
        client.upload(b"0123456789")


def _fetching(size: str, data: str) -> str:
    header = f"{{'id': number, 'result': {{'size': {size}}}, 'bytes': len({data})}}"
    return f"json.dumps({header}).encode() + b'\\n' + {data}"


@pytest.mark.parametrize(
    ("size", "data", "message"),
    [
        ("10", "b''", "another length"),
        ("10", "b'01234567890'", "another length"),
        ("20 - args['offset']", "b'0123456789'", "not told, or changes"),
        ("'ten'", "b'0123456789'", "not told, or changes"),
        ("2000", "b'0123456789'", "2,000 bytes, more than the 1,000"),
    ],
)
def test_wrong_files(tmp_path: Path, size: str, data: str, message: str) -> None:
    with (
        client_of(replying(_fetching(size, data)), tmp_path) as client,
        pytest.raises(GreenccError, match=message),
    ):
        client.fetch("job", "file", most=1000)


_ENGINE = '{"engine": "e", "inputs": [], "outputs": []}'


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ('{"inputs": [], "outputs": []}', "without a name"),
        ('{"engine": "e", "inputs": {}, "outputs": []}', "no list"),
        (
            '{"engine": "e", "inputs": [{"name": "x", "dtype": "object", "shape": []}], "outputs": []}',
            "no type",
        ),
        (
            '{"engine": "e", "inputs": [{"name": "x", "dtype": "int8", "shape": [-2]}], "outputs": []}',
            "shape",
        ),
        ('{"engine": "e", "inputs": [{"name": "x", "dtype": "int8", "shape": "1"}], "outputs": []}', "shape"),
    ],
)
def test_wrong_engines(tmp_path: Path, result: str, message: str) -> None:
    with (
        client_of(replying(f'{{"id": number, "result": {result}}}'), tmp_path) as client,
        pytest.raises(ProtocolError, match=message),
    ):
        client.open_engine("job")


@pytest.mark.parametrize(
    ("outputs", "data", "message"),
    [
        (
            '[{"name": "y", "dtype": "float32", "shape": [2]}]',
            "b'1234567'",
            "7 bytes came, and their shapes need 8",
        ),
        ('[{"name": "y", "dtype": "float32", "shape": [-1]}]', "b''", "shape"),
        ('[{"name": "y", "dtype": "float32", "shape": [1 << 50]}]', "b''", "shape"),
        ("[]", "b'1'", "1 bytes came"),
    ],
)
def test_wrong_outputs(tmp_path: Path, outputs: str, data: str, message: str) -> None:
    header = f'{{"id": number, "result": {_ENGINE}}}'
    run = f'{{"id": number, "result": {{"outputs": {outputs}, "ms": 1.0}}, "bytes": len({data})}}'
    reply = f"json.dumps({header} if op == 'open' else {run}).encode() + b'\\n' + (b'' if op == 'open' else {data})"
    with client_of(replying(reply), tmp_path) as client:
        engine = client.open_engine("job")
        with pytest.raises(ProtocolError, match=message):
            client.run_engine(engine, [])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('{"state": "finished"}', "no state"),
        ('{"state": "running", "events": "none"}', "no list"),
        ('{"state": "running", "events": [1], "next": 1}', "no list"),
        ('{"state": "running", "events": [{}, {}], "next": 7}', "counts the events"),
        ('{"state": "done", "events": [], "next": 0}', "no result"),
        ('{"state": "failed", "events": [], "next": 0}', "cannot be read"),
    ],
)
def test_wrong_words_about_a_job(tmp_path: Path, reply: str, message: str) -> None:
    package = replying(
        f'{{"id": number, "result": {reply} if op == "poll" else {{"state": "running"}}}}',
    )
    with client_of(package, tmp_path) as client, pytest.raises(ProtocolError, match=message):
        client.run_job({"kind": "idle", "seconds": 1}, label="waiting", limit=60.0)
