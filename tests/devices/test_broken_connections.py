"""Connections that break, agents that are killed and devices that are restarted, over a real SSH server."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from greencc.core.errors import ExitCode, InputError, UnavailableError
from greencc.devices.client import AgentClient, ClientOptions, DeviceLostError
from greencc.devices.engines import Port
from greencc.devices.local import LocalTransport
from greencc.devices.ssh import SshTransport
from greencc.devices.transport import ConnectionLostError

from .sshd import USER, Sshd
from .stub import asked, client_of, program

T = TypeVar("T")
_IDLE = {"kind": "idle", "seconds": 0.05, "processor": "cpu"}
_OPTIONS = ClientOptions(connect_seconds=20.0, patience_seconds=8.0, chunk_bytes=1 << 16)


def test_a_probe(client: AgentClient) -> None:
    facts = client.facts()
    assert facts.user == USER
    assert facts.boot_id == "first-boot"
    assert facts.memory_bytes == 8_000_000 << 10


@contextmanager
def busy(root: Path) -> Iterator[Callable[[], None]]:
    """The device is in use, so that jobs wait, until what this yields is called."""
    with (root / "run/lock/greencc-device.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def once(action: Callable[[], object]) -> Callable[[Mapping[str, Any]], None]:
    """An event handler that acts at the first event."""
    left = [action]
    return lambda event: left.pop()() if left else None  # type: ignore[func-returns-value]


def works(pid: int) -> bool:
    """Whether a process is there, other than dead and not yet collected."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _content(size: int) -> bytes:
    return np.random.default_rng(5).bytes(size)


def test_an_upload_goes_on_where_it_broke(
    sshd: Sshd, agent_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _content(10 * _OPTIONS.chunk_bytes + 7)
    offsets: list[int] = []
    ask = AgentClient.request

    def recorded(self: AgentClient, op: str, args: Any = None, payload: Any = b"", **more: Any) -> Any:
        if op == "put":
            offsets.append(args["offset"])
        return ask(self, op, args, payload, **more)

    def breaking(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        assert total == 11
        for number, item in enumerate(items):
            yield item
            if number == 4:
                assert sshd.kill_sessions() == 1

    monkeypatch.setattr(AgentClient, "request", recorded)
    with AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS, breaking) as client:
        digest = client.upload(content, "model")
    assert offsets == [number * _OPTIONS.chunk_bytes for number in range(11)]
    assert (agent_home / "store" / digest).read_bytes() == content


def test_an_upload_of_an_earlier_run_goes_on(sshd: Sshd, tmp_path: Path) -> None:
    content = _content(4 * _OPTIONS.chunk_bytes)
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    totals = []

    def failing(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        totals.append(total)
        for number, item in enumerate(items):
            yield item
            if len(totals) == 1 and number == 1:
                raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS, failing) as one,
    ):
        one.upload(file)
    with AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS, failing) as two:
        two.upload(file)
        two.upload(file)
    assert totals == [4, 2]


@pytest.mark.parametrize("how", ["network", "agent"])
def test_a_job_outlives_its_connection(sshd: Sshd, device_root: Path, how: str) -> None:
    with busy(device_root) as free, AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS) as client:
        first = client.hello().pid

        def break_it() -> None:
            if how == "network":
                sshd.kill_sessions()
            else:
                psutil.Process(first).kill()
            free()

        done = client.run_job(_IDLE, label="waiting", limit=60.0, on_event=once(break_it))
        assert client.hello().pid != first
    assert done.result["count"] == 0


def test_a_device_that_stays_away(sshd: Sshd, device_root: Path) -> None:
    waits: list[float] = []

    def go_away() -> None:
        sshd.stop()
        waits.clear()

    options = replace(_OPTIONS, patience_seconds=100.0, sleep=waits.append)
    with (
        busy(device_root),
        AgentClient(SshTransport(sshd.address, sshd.options), options) as client,
        pytest.raises(ConnectionLostError, match="Connection refused") as caught,
    ):
        client.run_job(_IDLE, label="waiting", limit=60.0, on_event=once(go_away))
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert 100.0 < sum(waits) < 120.0


def test_an_interrupt_is_obeyed_while_the_device_is_away(sshd: Sshd, device_root: Path) -> None:
    def interrupt(seconds: float) -> None:
        if not sshd.running:
            raise KeyboardInterrupt

    options = replace(_OPTIONS, sleep=interrupt)
    with (
        busy(device_root),
        pytest.raises(KeyboardInterrupt) as caught,
        AgentClient(SshTransport(sshd.address, sshd.options), options) as client,
    ):
        client.run_job(_IDLE, label="waiting", limit=60.0, on_event=once(sshd.stop))
    assert "could not be cancelled" in caught.value.__notes__[0]


@contextmanager
def restartable(sshd: Sshd, root: Path, home: Path) -> Iterator[tuple[Callable[[], None], ClientOptions]]:
    """What restarts the device, and options of a client that waits until it is back."""

    def restart() -> None:
        sshd.stop()
        for state in (home / "jobs").glob("*/state.json"):
            pid = json.loads(state.read_text())["pid"]
            if works(pid):
                psutil.Process(pid).kill()
        (root / "proc/sys/kernel/random/boot_id").write_text("another-boot\n")

    def sleep(seconds: float) -> None:
        if not sshd.running:
            sshd.start()
        waiting.wait(seconds)

    waiting = threading.Event()
    yield restart, replace(_OPTIONS, sleep=sleep)


def test_what_is_timed_is_lost_in_a_reboot(sshd: Sshd, device_root: Path, agent_home: Path) -> None:
    with (
        busy(device_root),
        restartable(sshd, device_root, agent_home) as (restart, options),
        AgentClient(SshTransport(sshd.address, sshd.options), options) as client,
        pytest.raises(DeviceLostError, match="the device was started anew"),
    ):
        client.run_job(_IDLE, label="waiting", limit=60.0, on_event=once(restart))


@pytest.fixture(scope="module")
def model() -> bytes:
    """y = 2 x + 1."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    constants = [
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("one", 1, [1], [1.0]),
    ]
    nodes = [helper.make_node("Mul", ["x", "two"], ["m"]), helper.make_node("Add", ["m", "one"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _build(client: AgentClient, model: bytes) -> dict[str, Any]:
    digest = client.upload(model)
    return {
        "kind": "build",
        "backend": "ort",
        "files": {"model.onnx": digest},
        "main": "model.onnx",
        "options": {},
    }


def test_a_build_is_run_over_there(client: AgentClient, model: bytes) -> None:
    assert onnx.load_from_string(model).graph.name == "g"
    built = client.run_job(_build(client, model), label="building", limit=60.0)
    engine = client.open_engine(built.job)
    assert [port.name for port in engine.inputs] == ["x"]
    data = np.array([[1, 2, 3, 4]], dtype="<f4")
    outputs, milliseconds = client.run_engine(engine, [(Port("x", "float32", (1, 4)), data.tobytes())])
    assert [port for port, _ in outputs] == [Port("y", "float32", (1, 4))]
    np.testing.assert_array_equal(np.frombuffer(outputs[0][1], "<f4"), [3, 5, 7, 9])
    assert milliseconds >= 0
    again = client.run_job(_build(client, model), label="building", limit=60.0)
    assert (again.job, again.found, built.found) == (built.job, True, False)
    client.close_engine(engine)


def test_a_build_is_started_again_after_a_reboot(
    sshd: Sshd, device_root: Path, agent_home: Path, model: bytes
) -> None:
    with (
        busy(device_root) as free,
        restartable(sshd, device_root, agent_home) as (restart, options),
        AgentClient(SshTransport(sshd.address, sshd.options), options) as client,
    ):

        def fail() -> None:
            restart()
            free()

        built = client.run_job(_build(client, model), label="building", limit=60.0, on_event=once(fail))
        jobs = sorted(path.name for path in (agent_home / "jobs").iterdir())
    assert built.job.endswith("-1")
    assert [job.rpartition("-")[2] for job in jobs] == ["0", "1"]


def test_an_interrupt_cancels_the_job(sshd: Sshd, device_root: Path, agent_home: Path) -> None:
    pids: list[int] = []

    def interrupt() -> None:
        (folder,) = (agent_home / "jobs").iterdir()
        pids.append(json.loads((folder / "state.json").read_text())["pid"])
        raise KeyboardInterrupt

    with (
        busy(device_root),
        pytest.raises(KeyboardInterrupt) as caught,
        AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS) as client,
    ):
        client.run_job(_IDLE, label="waiting", limit=60.0, on_event=once(interrupt))
    (pid,) = pids
    assert not works(pid)
    assert not getattr(caught.value, "__notes__", [])
    # And nothing of it is left.
    assert not list((agent_home / "jobs").iterdir())


def test_nothing_is_left_of_what_was_measured(device_root: Path, agent_home: Path) -> None:
    """Over connections that died, or died in silence, or that an interrupt took."""
    names = {"GREENCC_AGENT_HOME": str(agent_home), "GREENCC_AGENT_ROOT": str(device_root)}
    transport = LocalTransport({**os.environ, **names})
    jobs = agent_home / "jobs"

    def measure(client: AgentClient) -> str:
        return client.run_job(_IDLE, label="measuring", limit=60.0).job

    with AgentClient(transport, _OPTIONS) as other, AgentClient(transport, _OPTIONS) as client:
        theirs = measure(other)
        first = measure(client)
        psutil.Process(client.hello().pid).kill()
        second = measure(client)
        # The next one tells that what was wanted of the one before was fetched.
        assert {path.name for path in jobs.iterdir()} == {theirs, second} != {theirs, first}
        silent, client._channel = client._channel, None
        last = measure(client)
        assert {path.name for path in jobs.iterdir()} == {theirs, last}
        client._drop()
        client.close()
        assert [path.name for path in jobs.iterdir()] == [theirs]
    assert silent is not None
    silent.close()
    assert not list(jobs.iterdir())


def test_a_job_beyond_its_limit_is_cancelled(sshd: Sshd, device_root: Path, agent_home: Path) -> None:
    with busy(device_root), AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS) as client:
        with pytest.raises(UnavailableError, match="waiting did not end within 0 s"):
            client.run_job(_IDLE, label="waiting", limit=0.0)
        (folder,) = (agent_home / "jobs").iterdir()
        assert json.loads((folder / "result.json").read_text())["state"] == "cancelled"


def test_a_full_disk_is_told_before_anything_is_written(sshd: Sshd, tmp_path: Path, agent_home: Path) -> None:
    told = tmp_path / "free"
    told.write_text(str(300 << 20))
    sshd.login(before=f"export GREENCC_AGENT_FREE_FILE={told}")
    with AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS) as client:
        told.write_text(str(257 << 20))
        with pytest.raises(UnavailableError, match="does not fit") as caught:
            client.upload(_content(2 << 20))
        assert "greencc devices clean" in str(caught.value.hint)
        assert not list((agent_home / "store").iterdir())
        # The same connection goes on.
        assert client.upload(b"small")


def test_a_slow_device(sshd: Sshd, tmp_path: Path) -> None:
    proxy = tmp_path / "slow.py"
    proxy.write_text(_SLOW)
    command = f"{psutil.Process().exe()} {proxy} 127.0.0.1 {sshd.port}"
    sshd.client_config.write_text(sshd.client_config.read_text() + f"  ProxyCommand {command}\n")
    with AgentClient(SshTransport(sshd.address, sshd.options), _OPTIONS) as client:
        content = _content(3 * _OPTIONS.chunk_bytes)
        digest = client.upload(content)
        assert client.request("has", {"sha256": digest}).result["complete"] is True


_SLOW = """
import os, selectors, socket, sys, time

link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
selector = selectors.DefaultSelector()
selector.register(0, selectors.EVENT_READ)
selector.register(link, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        time.sleep(0.005)
        data = link.recv(16384) if key.fileobj is link else os.read(0, 16384)
        if not data:
            sys.exit()
        link.sendall(data) if key.fileobj == 0 else os.write(1, data)
"""


def test_a_request_that_kills_the_agent_is_not_asked_for_ever(tmp_path: Path) -> None:
    package = program("hello()\nfor number, op, args, payload in requests():\n    os._exit(1)\n")
    with (
        client_of(package, tmp_path) as client,
        pytest.raises(ConnectionLostError, match="ended: exit status 1"),
    ):
        client.request("probe")
    assert asked(tmp_path) == ["probe"] * 3


def test_what_the_device_refuses_is_told(client: AgentClient) -> None:
    spec = {"kind": "build", "backend": "ort", "files": {"m.onnx": "0" * 64}, "main": "m.onnx"}
    with pytest.raises(InputError, match="is not on the device"):
        client.run_job(spec, label="building", limit=60.0)
