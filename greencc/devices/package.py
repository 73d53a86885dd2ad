"""The agent as one file: what is copied to a device.

The zip holds `greencc.agent` alone, under an empty `greencc`, so that nothing else of greencc can be imported from it.
The same sources give the same bytes: stored without compression, whose result depends on the library's version.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_DATE = (1980, 1, 1, 0, 0, 0)
_READABLE = 0o100644 << 16
_MAIN = 'import runpy\n\nrunpy.run_module("greencc.agent", run_name="__main__", alter_sys=False)\n'


@dataclass(frozen=True)
class AgentPackage:
    """A zip file that ``python3 FILE serve`` runs."""

    content: bytes

    @property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def name(self) -> str:
        """Of the file on a device; another version has another."""
        return f"agent-{self.sha256[:12]}.pyz"


@cache
def agent_package() -> AgentPackage:
    """This version's agent."""
    files = {"__main__.py": _MAIN.encode(), "greencc/__init__.py": b""}
    for name, source in _sources(resources.files("greencc") / "agent", "greencc/agent"):
        files[name] = source
    return pack(files)


def pack(files: dict[str, bytes]) -> AgentPackage:
    """A zip of files by their names in it; ``__main__.py`` is what runs."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = 3, _READABLE
            archive.writestr(entry, files[name])
    return AgentPackage(stream.getvalue())


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{prefix}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, name)
        elif entry.name.endswith(".py"):
            yield name, entry.read_bytes()
