"""Files to and from a device, in pieces: what has arrived stays when a connection breaks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from greencc.core.errors import InputError
from greencc.core.files import sha256_file
from greencc.core.progress import Progress
from greencc.devices.protocol import ProtocolError, Reply

_MOST_STANDSTILLS = 3


class Ask(Protocol):
    """`AgentClient.request`."""

    def __call__(
        self,
        op: str,
        args: dict[str, object],
        payload: bytes | memoryview = b"",
        *,
        timeout: float | None = None,
        most: int = 0,
        patient: bool = True,
    ) -> Reply: ...


def upload(ask: Ask, content: bytes | Path, label: str, piece: int, progress: Progress, name: str) -> str:
    """Send what the device does not have yet; returns its SHA-256.

    Args:
        ask: The device.
        content: Of the file, or the file.
        label: For the progress bar.
        piece: Bytes of one request.
        progress: Shows pieces.
        name: Of the device.

    Raises:
        InputError: The file cannot be read, or changed while it was sent.
        GreenccError: As `AgentClient`.
    """
    if isinstance(content, bytes):
        digest, size = hashlib.sha256(content).hexdigest(), len(content)
        opened: Callable[[], BinaryIO] = lambda: io.BytesIO(content)  # noqa: E731
    else:
        path = content
        try:
            digest, size = sha256_file(path), path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        opened = lambda: path.open("rb")  # noqa: E731
    there = ask("has", {"sha256": digest})
    done, complete = _progress_of(there, size, name)
    if complete:
        return digest
    with opened() as stream:
        pieces = _pieces(ask, stream, digest, size, done, piece, name)
        # A full bar would begin in the middle: what arrived earlier is counted by the label alone.
        total = max(1, -(-(size - done) // piece))
        for _ in progress(pieces, label=f"{label}, {size / 1e6:.1f} MB" if label else "sending", total=total):
            pass
    return digest


def _pieces(
    ask: Ask, stream: BinaryIO, digest: str, size: int, done: int, piece: int, name: str
) -> Iterator[None]:
    standstills = 0
    while True:
        stream.seek(done)
        data = stream.read(min(piece, size - done))
        if len(data) < min(piece, size - done):
            raise InputError("a file became shorter while it was sent", hint="run again when it is finished")
        args: dict[str, object] = {"sha256": digest, "total": size, "offset": done}
        now, complete = _progress_of(ask("put", args, data), size, name)
        yield
        if complete:
            return
        standstills = standstills + 1 if now <= done else 0
        if standstills >= _MOST_STANDSTILLS:
            raise ProtocolError(f"{name} takes a file, and what it has of it does not grow")
        done = now


def _progress_of(reply: Reply, size: int, name: str) -> tuple[int, bool]:
    match reply.result:
        case {"size": int(done), "complete": bool(complete)} if 0 <= done <= size:
            if not complete or done == size:
                return done, complete
    raise ProtocolError(f"{name} told an impossible size of a file that is sent")


def download(ask: Ask, job: str, file: str, piece: int, most: int, name: str) -> bytes:
    """A file of a job.

    Args:
        ask: The device.
        job: Its ID.
        file: Its name in the job.
        piece: Bytes of one request.
        most: Bytes of the file that are taken.
        name: Of the device.

    Raises:
        InputError: There is no such file, or it is larger.
        GreenccError: As `AgentClient`.
    """
    content = bytearray()
    size: int | None = None
    while size is None or len(content) < size:
        args: dict[str, object] = {"job": job, "file": file, "offset": len(content), "most": piece}
        reply = ask("fetch", args, most=piece)
        told = reply.result.get("size")
        if not isinstance(told, int) or told < 0 or (size is not None and told != size):
            raise ProtocolError(f"{name}: the size of the file {file} is not told, or changes")
        if told > most:
            raise InputError(
                f"{name}: the file {file} has {told:,} bytes, more than the {most:,} that are taken"
            )
        size = told
        content += reply.payload
        if len(content) > size or (not reply.payload and len(content) < size):
            raise ProtocolError(f"{name}: the file {file} has another length than was told")
    return bytes(content)
