"""Files that are sent: in pieces, damaged, too large, and for a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from greencc.agent import store
from greencc.agent.places import Places
from greencc.agent.problem import Problem

from .agents import Agent, Refused
from .conftest import Connect

DATA = bytes(range(256)) * 400
DIGEST = hashlib.sha256(DATA).hexdigest()


def test_an_upload_goes_on_after_the_connection_broke(connect: Connect, jetpack) -> None:
    first = connect()
    assert first.ask("has", sha256=DIGEST) == {"size": 0, "complete": False}
    assert first.ask("put", DATA[:1000], sha256=DIGEST, total=len(DATA), offset=0)["size"] == 1000
    first.end()
    second = connect()
    assert second.ask("has", sha256=DIGEST) == {"size": 1000, "complete": False}
    # A piece that came already, but whose answer was lost, may come again.
    told = second.ask("put", DATA[500:], sha256=DIGEST, total=len(DATA), offset=500)
    assert told == {"size": len(DATA), "complete": True}
    assert (jetpack.home / "store" / DIGEST).read_bytes() == DATA
    assert list((jetpack.home / "partial").iterdir()) == []
    # And so may a file that is whole.
    assert second.ask("put", DATA[:10], sha256=DIGEST, total=len(DATA), offset=0)["complete"]


def test_a_piece_that_is_missing_is_told(agent: Agent) -> None:
    with pytest.raises(Refused, match=r"0 bytes of file .* the next piece begins at 4096") as caught:
        agent.ask("put", b"x", sha256=DIGEST, total=len(DATA), offset=4096)
    assert caught.value.kind == "input"
    with pytest.raises(Refused, match="beyond its end"):
        agent.ask("put", b"xyz", sha256=DIGEST, total=2, offset=0)


def test_a_damaged_file_never_counts_and_can_be_sent_again(agent: Agent) -> None:
    damaged = DATA[:-1] + b"?"
    with pytest.raises(Refused, match="damaged on the way"):
        agent.ask("put", damaged, sha256=DIGEST, total=len(DATA), offset=0)
    assert agent.ask("has", sha256=DIGEST) == {"size": 0, "complete": False}
    assert agent.put(DATA) == DIGEST


def test_two_connections_send_the_same_file(connect: Connect) -> None:
    one, two = connect(), connect()
    one.ask("put", DATA[:5000], sha256=DIGEST, total=len(DATA), offset=0)
    assert two.ask("put", DATA[5000:], sha256=DIGEST, total=len(DATA), offset=5000)["complete"]
    assert one.ask("put", DATA[5000:9000], sha256=DIGEST, total=len(DATA), offset=5000)["complete"]


def test_a_file_that_does_not_fit_is_refused_before_it_is_written(
    connect: Connect, jetpack, tmp_path: Path
) -> None:
    free = tmp_path / "free"
    free.write_text("300000000")
    agent = connect(FREE_FILE=free, KEEP_FREE=299_950_000)
    with pytest.raises(Refused, match=r"a file of 0\.1 MB does not fit: 286\.1 MB are free") as caught:
        agent.ask("put", DATA[:10], sha256=DIGEST, total=len(DATA), offset=0)
    assert caught.value.kind == "disk"
    assert "clean" in caught.value.hint
    assert not list((jetpack.home / "partial").iterdir())
    free.write_text("900000000")
    assert agent.put(DATA) == DIGEST


def test_the_agents_folder_has_a_quota(connect: Connect) -> None:
    agent = connect(QUOTA=150_000)
    agent.put(DATA)
    other = DATA + b"!"
    with pytest.raises(Refused, match=r"holds 0\.1 of at most 0\.1 MB"):
        agent.put(other)
    assert agent.ask("clean", all=True)["freed"] >= len(DATA)
    agent.put(other)


def test_stored_files_that_nobody_uses_make_room(connect: Connect, jetpack) -> None:
    agent = connect(QUOTA=150_000)
    agent.put(DATA)
    old = jetpack.home / "store" / DIGEST
    os.utime(old, (1e9, 1e9))
    agent.put(DATA + b"!")
    assert not old.exists()


def test_a_disk_that_becomes_full_in_between_leaves_what_can_go_on(tmp_path: Path, monkeypatch) -> None:
    places = Places.find({"GREENCC_AGENT_HOME": str(tmp_path)})
    store.put(places, DIGEST, len(DATA), 0, DATA[:1000])
    original = Path.open

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

        def seek(self, offset: int) -> None:
            self.file.seek(offset)

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def opener(path: Path, mode: str = "r", *args, **options):
        file = original(path, mode, *args, **options)
        return Full(file) if mode == "r+b" else file

    monkeypatch.setattr(Path, "open", opener)
    with pytest.raises(Problem, match="became full while file") as caught:
        store.put(places, DIGEST, len(DATA), 1000, DATA[1000:])
    assert caught.value.kind == "disk"
    monkeypatch.undo()
    assert store.has(places, DIGEST) == {"size": 1000, "complete": False}
    assert store.put(places, DIGEST, len(DATA), 1000, DATA[1000:])["complete"]
