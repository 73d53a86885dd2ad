"""What the agent's meters have in common. Their figures are of grade B, and none has a published uncertainty."""

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from greencc.agent.problem import Problem

_NUMBER = re.compile(r"-?\d{1,20}")


class Meter:
    """A sensor of power, or a counter of energy.

    Attributes:
        name: As greencc calls its own meter of this kind.
        counts: `read` gives joules since some moment, rather than watts.
        sees: Where the work must be done for it to be seen: ``cpu``, ``gpu``, or both.
    """

    name = ""
    counts = False
    sees: Tuple[str, ...] = ("cpu", "gpu")

    @property
    def boundary(self) -> str:
        """What its figures cover; known for good after the first reading."""
        raise NotImplementedError

    @property
    def period_s(self) -> float:
        """How often it updates."""
        raise NotImplementedError

    def read(self) -> Dict[str, float]:
        """Watts, or joules, of each of its domains.

        Raises:
            Problem: It is not there, or cannot be read.
        """
        raise NotImplementedError

    def check(self) -> Optional[str]:
        """Why there is no reading, or None: it was read just now."""
        try:
            self.read()
        except Problem as problem:
            return "%s%s" % (problem.message, " (%s)" % problem.hint if problem.hint else "")
        return None

    def as_json(self) -> Dict[str, Any]:
        """What it says of itself."""
        return {
            "name": self.name,
            "grade": "B",
            "boundary": self.boundary,
            "period_s": self.period_s,
            "uncertainty": None,
            "counts": self.counts,
            "sees": list(self.sees),
        }


def read_integer(path: Path, denied: str) -> int:
    """The whole number in an attribute; opened anew each time, for that is what makes the kernel measure.

    Args:
        path: The attribute.
        denied: What to do where it may not be read.

    Raises:
        Problem: It cannot be read, or holds no number.
    """
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(handle, 256).decode("ascii", "replace").strip()
        finally:
            os.close(handle)
    except PermissionError as error:
        raise Problem("permission", "no permission to read %s" % path, denied) from error
    except OSError as error:
        raise Problem("unavailable", "%s cannot be read: %s" % (path, error.strerror)) from error
    if not _NUMBER.fullmatch(text):
        raise Problem("unavailable", "%s reads %.60r, not a whole number" % (path, text))
    return int(text)


def numbered(folder: Path, pattern: str) -> List[int]:
    """Numbers N of the files in a folder that are called as a pattern has it, such as ``curr(\\d+)_input``."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    matches = (re.fullmatch(pattern, name) for name in names)
    return sorted(int(match.group(1)) for match in matches if match)
