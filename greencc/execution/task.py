"""What executors run: tasks, the files they read, and what becomes of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.data import Array
from greencc.core.errors import GreenccError
from greencc.core.files import sha256_file
from greencc.execution.schedule import Demand


@dataclass(frozen=True)
class Blob:
    """The files of one folder, known by their content: a model, or a slice of data.

    Workers on this machine read them where they are; workers elsewhere get the bytes and check them.

    Attributes:
        folder: Where they are on the machine of the driver.
        files: Name and SHA-256 of each.
        shared: Several tasks read them: workers elsewhere keep their copy.
    """

    folder: Path
    files: tuple[tuple[str, str], ...]
    shared: bool = False

    @classmethod
    def of(cls, folder: Path, *, shared: bool = False) -> Blob:
        """The blob of all files of a folder (which has no folders in it)."""
        names = sorted(path.name for path in folder.iterdir())
        return cls(folder, tuple((name, sha256_file(folder / name)) for name in names), shared)

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 over names and content."""
        return hashlib.sha256(repr(self.files).encode()).hexdigest()


Files = Callable[[Blob], Path]
"""Where a task finds the files of a blob."""


class Task(ABC):
    """Something to compute. Subclasses are frozen dataclasses of plain values: they travel to other processes.

    Both ends are greencc itself, started by the user: a task never comes out of a file or from a stranger.
    """

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The files it reads."""
        return ()

    @abstractmethod
    def run(self, files: Files) -> dict[str, Array]:
        """Compute it. The same task gives the same arrays in any process.

        Raises:
            GreenccError: It cannot be done; trying again would not help.
        """


@dataclass(frozen=True)
class Work:
    """A result that is wanted, and how to get it.

    Attributes:
        kind: Kind of the result in the cache (a plain word).
        key: Its key there: covers everything it depends on.
        label: How messages call it.
        make: Makes the task, in the driver, shortly before it runs; it gets the name of the device the task was given,
            or None. Files it writes are bounded by the number of workers.
        demand: Where it may run and how long it takes.
    """

    kind: str
    key: str
    label: str
    make: Callable[[str | None], Task]
    demand: Demand = field(default_factory=Demand)


@dataclass(frozen=True)
class Outcome:
    """What became of a `Work`: arrays, or the error.

    Attributes:
        index: Its position among the works.
        arrays: The result.
        error: Why there is none.
        task: What was run; None where the cache had the result.
    """

    index: int
    arrays: dict[str, Array] | None
    error: GreenccError | None = None
    task: Task | None = None
