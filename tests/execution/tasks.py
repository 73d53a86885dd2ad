"""Tasks for tests, in a module that workers can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.execution import Blob, Files, Task


@dataclass(frozen=True)
class Square(Task):
    """Squares a number, leaving a line in a file; dies while `deaths` files can still be made."""

    number: int
    log: Path
    deaths: int = 0
    sleep: float = 0.0

    def run(self, files: Files) -> dict[str, Array]:
        for count in range(self.deaths):
            mark = self.log.with_name(f"died-{self.number}-{count}")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.sleep)
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(f"{self.number}\n")
        return {"square": np.array(self.number**2), "pid": np.array(os.getpid())}


@dataclass(frozen=True)
class Total(Task):
    """Adds up the arrays of a file."""

    blob: Blob

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.blob,)

    def run(self, files: Files) -> dict[str, Array]:
        with np.load(files(self.blob) / "data.npz", allow_pickle=False) as archive:
            return {"total": np.array(sum(float(archive[name].sum()) for name in archive.files))}


@dataclass(frozen=True)
class Refuses(Task):
    """Cannot be done."""

    def run(self, files: Files) -> dict[str, Array]:
        raise InputError("no such thing", hint="ask for another")


@dataclass(frozen=True)
class Broken(Task):
    """Has a bug."""

    def run(self, files: Files) -> dict[str, Array]:
        raise ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Environment(Task):
    """Tells what a worker may compute with."""

    def run(self, files: Files) -> dict[str, Array]:
        return {"threads": np.array(int(os.environ.get("OMP_NUM_THREADS", "0")))}


@dataclass(frozen=True)
class Occupies(Task):
    """Uses a device: fails when another task does at the same time."""

    device: str
    folder: Path

    def run(self, files: Files) -> dict[str, Array]:
        lock = self.folder / self.device
        with lock.open("x"):
            time.sleep(0.02)
        lock.unlink()
        return {"device": np.array(self.device)}
