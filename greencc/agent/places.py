"""Where the agent keeps its files, the root it reads facts of the machine from, and small files.

Environment: ``GREENCC_AGENT_HOME`` (default ``~/.cache/greencc-agent``) and ``GREENCC_AGENT_ROOT`` (default ``/``),
below which /proc, /sys, /etc and vendors' programs are looked for: recorded machines can be replayed. What the agent
asks about its own processes it always asks of the real /proc.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from greencc.agent.problem import Problem
from greencc.agent.unpacking import unpacked

_UNKNOWN = "unknown"
_STEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEEPEST = 8


class Places:
    """The agent's folders.

    Args:
        home: Where everything is kept.
        root: Of the file system that tells about the machine.
    """

    def __init__(self, home: Path, root: Path) -> None:
        self.home, self.root = home, root
        self.store = home / "store"
        self.partial = home / "partial"
        self.jobs = home / "jobs"
        self.cache = home / "cache"
        self.power = home / "power"

    @classmethod
    def find(cls, environment: Optional[Mapping[str, str]] = None) -> "Places":
        """By the environment.

        Raises:
            Problem: The home folder cannot be made.
        """
        told = os.environ if environment is None else environment
        home = Path(told.get("GREENCC_AGENT_HOME") or "~/.cache/greencc-agent").expanduser()
        root = Path(told.get("GREENCC_AGENT_ROOT") or "/")
        places = cls(home.resolve(), root.resolve())
        try:
            for folder in (places.store, places.partial, places.jobs, places.cache, places.power):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(
                "disk" if error.errno == 28 else "permission",
                "the agent's folder %s cannot be made: %s" % (home, error.strerror),
                "set GREENCC_AGENT_HOME on the device to a folder that can be written",
            ) from error
        return places

    @property
    def boot_id(self) -> str:
        """Another one after each start of the machine."""
        return read_text(self.root / "proc/sys/kernel/random/boot_id") or _UNKNOWN

    def program(self, name: str, *folders: str) -> Optional[str]:
        """Where a program is: below the root in `folders` and the usual ones, else None."""
        for folder in (*folders, "usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"):
            path = self.root / folder / name
            if os.access(str(path), os.X_OK) and path.is_file():
                return str(path)
        return None


_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from greencc.agent.main import main; sys.exit(main(sys.argv[1:]))"
)


def again(*arguments: str) -> List[str]:
    """The command that runs this very agent with other arguments, be it in a zip file or in a folder."""
    return [sys.executable, "-c", _START, str(unpacked(own_file())), *arguments]


def own_file() -> Path:
    """The zip file or folder that this agent is in."""
    # .../agent.pyz/greencc/agent/places.py
    return Path(os.path.abspath(__file__)).parents[2]  # noqa: PTH100 - the inside of a zip file cannot be resolved


def read_text(path: Path) -> Optional[str]:
    """A small text file, stripped, without the zero bytes of device trees; None where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return None


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """An object of JSON in a file; None where there is none, or it is damaged."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_bytes(path: Path, data: bytes, lasting: bool = False) -> None:
    """Write a file as a whole or not at all.

    Args:
        lasting: It must be there after a loss of power as well.

    Raises:
        OSError: The disk is full, or the folder is gone.
    """
    temporary = path.with_name(".%s.%d" % (path.name, os.getpid()))
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: Path, value: Dict[str, Any], lasting: bool = False) -> None:
    """`write_bytes` of an object."""
    write_bytes(path, json.dumps(value, separators=(",", ":")).encode("utf-8") + b"\n", lasting)


def remove(path: Path) -> None:
    """Remove a file; it may be gone already."""
    try:
        path.unlink()
    except FileNotFoundError:
        return


def check_name(value: Any, what: str) -> str:
    """A name of one step, such as a job's.

    Raises:
        Problem: It is none.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Problem("usage", "%.120r is no name of %s" % (value, what), "letters, digits, '_', '.' and '-'")
    return value


def check_path(value: Any, what: str) -> str:
    """A relative path that stays below its folder, such as ``samples/0.bin``.

    Raises:
        Problem: It is none.
    """
    steps = value.split("/") if isinstance(value, str) else []
    if not 0 < len(steps) <= _DEEPEST or not all(_STEP.fullmatch(step) for step in steps):
        raise Problem("usage", "%.120r is no name of %s" % (value, what), "a relative path of plain names")
    return str(value)


def check_sha256(value: Any) -> str:
    """64 digits.

    Raises:
        Problem: They are not.
    """
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise Problem("usage", "%.80r is no SHA-256 digest" % (value,), "64 lower-case hexadecimal digits")
    return value


def check_number(value: Any, what: str, least: float, most: float) -> float:
    """A number within limits.

    Raises:
        Problem: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Problem("usage", "%s is %.60r" % (what, value), "a number from %g to %g" % (least, most))
    return value


def check_count(value: Any, what: str, least: int, most: int) -> int:
    """A whole number within limits.

    Raises:
        Problem: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Problem("usage", "%s is %.60r" % (what, value), "a whole number from %d to %d" % (least, most))
    return value
