"""What is under way on devices, on this machine's disk: whoever comes after a killed run puts it in order.

Each run of greencc has a file of its own for each device, which it keeps locked for as long as it lives. A file that is
not locked is of a run that was killed: its measurements are cancelled and its power mode is put back by the next run
that meets the device. Its builds go on, and are found again by their IDs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from greencc.core.errors import InputError
from greencc.core.files import translated_os_errors
from greencc.core.ownership import make_private

_SUFFIX = ".jsonl"
_MOST_BYTES = 1 << 20
_MOST_JOB = 200
_MOST_OWNER = 100


def state_folder() -> Path:
    """``greencc/devices`` in the user's folder of states (``$XDG_STATE_HOME``, else ``~/.local/state``)."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "greencc" / "devices"


@dataclass(frozen=True)
class Leftovers:
    """What a killed run left on a device.

    Attributes:
        jobs: IDs that had not ended.
        power_mode: It had changed the power mode.
        owner: What it called itself then.
        file: Its journal.
    """

    jobs: tuple[str, ...]
    power_mode: bool
    owner: str
    file: Path


@dataclass
class Journal:
    """Of one device in this run.

    A folder that cannot be written costs the tidying after a kill, nothing else: `problem` then says why.

    Attributes:
        identity: The device's.
        folder: Where journals are; default `state_folder`.
        problem: Why nothing is written, or None.
        owner: What this run calls itself towards the device, so that its connections are known to be of one run.
    """

    identity: str
    folder: Path = field(default_factory=state_folder)
    problem: str | None = None
    owner: str = field(default_factory=lambda: secrets.token_hex(16))
    _file: IO[str] | None = field(default=None, repr=False)
    _path: Path | None = field(default=None, repr=False)

    @property
    def _place(self) -> Path:
        return self.folder / hashlib.sha256(self.identity.encode()).hexdigest()[:16]

    @contextmanager
    def running(self, job: str) -> Iterator[None]:
        """A job is not finished while the block runs."""
        self._write({"begin": job})
        yield
        self._write({"end": job})

    def power_mode(self, *, changed: bool) -> None:
        """Whether the power mode is another one than the device had."""
        self._write({"power_mode": changed, "owner": self.owner})

    def close(self, *, in_order: bool = True) -> None:
        """This run has ended.

        Args:
            in_order: Nothing is left to be done; otherwise the file stays for the next run.
        """
        if self._file is not None and self._path is not None:
            if in_order:
                self._path.unlink(missing_ok=True)
            self._file.close()
        self._file = self._path = None

    @contextmanager
    def leftovers(self) -> Iterator[list[Leftovers]]:
        """What killed runs left, and nobody else sees meanwhile.

        What is still in the list when the block ends well is forgotten; what was taken out is left for a later run.
        """
        held: list[tuple[IO[bytes], Leftovers]] = []
        try:
            for path in sorted(self._place.glob(f"*{_SUFFIX}")):
                if (stream := _taken(path)) is not None:
                    held.append((stream, _parse(stream.read(_MOST_BYTES), path)))
            found = [item for _, item in held]
            yield found
            for item in found:
                item.file.unlink(missing_ok=True)
        finally:
            for stream, _ in held:
                stream.close()

    def _write(self, words: dict[str, object]) -> None:
        if self.problem is not None:
            return
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.write(json.dumps(words) + "\n")
            self._file.flush()
        except OSError as error:
            self.problem = f"cannot write in {self._place}: {error.strerror}"
        except InputError as error:
            self.problem = error.message

    def _open(self) -> None:
        with translated_os_errors(self._place):
            make_private(self._place)
        path = self._place / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        work = path.with_suffix(".new")
        # Locked before it has the name by which others find it.
        self._file = work.open("x", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        work.rename(path)
        self._path = path


def _taken(path: Path) -> IO[bytes] | None:
    """The file, locked; None where its run lives, or another one is at it."""
    try:
        stream = path.open("rb")
    except OSError:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        return None
    return stream


def _parse(content: bytes, path: Path) -> Leftovers:
    """What a journal says; lines that a kill cut short say nothing."""
    jobs: dict[str, None] = {}
    power_mode, owner = False, ""
    for line in content.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        match words:
            case {"begin": str(job)} if len(job) <= _MOST_JOB:
                jobs[job] = None
            case {"end": str(job)}:
                jobs.pop(job, None)
            case {"power_mode": bool(changed), "owner": str(name)} if len(name) <= _MOST_OWNER:
                power_mode, owner = changed, name
    return Leftovers(tuple(jobs), power_mode, owner, path)
