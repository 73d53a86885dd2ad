"""Who has set the machine's power mode, told to all users: the mode is the machine's, and each has an agent of its own.

A note beside the device's lock, which is locked itself while it is read or written. It says which agent has set which
mode and has not put it back. It counts for as long as that agent lives, or the mode is in force: then somebody is still
to put another one back. Anybody may write it, so nothing is done by what it says but to leave the mode alone.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from typing import Any, Dict, Iterator, Optional

from greencc.agent.device import InUse, meeting_folder, open_common, taken
from greencc.agent.machine import user
from greencc.agent.places import Places
from greencc.agent.problem import Problem
from greencc.agent.processes import started_at

_NAME = "greencc-power.lock"
_MOST_BYTES = 1000
_WAIT_S = 20.0
_LOOK_S = 0.02
_ODD = re.compile(r"[^A-Za-z0-9._@-]")
_LONGEST_NAME = 40


class Note:
    """The note, while nobody else reads or writes it (see `agreed`).

    Args:
        places: The agent's folders.
        handle: Of its file.
    """

    def __init__(self, places: Places, handle: int) -> None:
        self._places, self._handle = places, handle
        # Two agents of one user can have two folders.
        self._home = hashlib.sha256(("%d %s" % (os.getuid(), places.home)).encode("utf-8")).hexdigest()[:16]

    def of_others(self, now: Optional[str]) -> Optional[str]:
        """Who else has set the mode and has not put it back, in words; None: nobody.

        Args:
            now: The mode in force.
        """
        told = self._read()
        if not told or told.get("home") == self._home or told.get("boot") != self._places.boot_id:
            return None
        pid, mode, name = told.get("pid"), told.get("mode"), told.get("user")
        if not isinstance(pid, int) or not 0 < pid < 1 << 31 or not isinstance(name, str):
            return None
        lives = started_at(pid) == told.get("started") is not None
        if not lives and (now is None or mode != now):
            return None
        shown = _ODD.sub("?", name[:_LONGEST_NAME])
        return "%s (process %d%s)" % (shown, pid, "" if lives else ", which has ended")

    def write(self, mode: str) -> None:
        """This agent has set a mode.

        Raises:
            Problem: That cannot be told.
        """
        facts = {
            "home": self._home,
            "user": user(),
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "boot": self._places.boot_id,
            "mode": mode,
        }
        self._put(json.dumps(facts).encode("utf-8"))

    def clear(self) -> None:
        """This agent, or one of the same folder, has put back what it had set."""
        if self._read().get("home") == self._home:
            self._put(b"")

    def _read(self) -> Dict[str, Any]:
        try:
            told = json.loads(os.pread(self._handle, _MOST_BYTES, 0).decode("utf-8"))
        except (ValueError, RecursionError):
            # Empty, or not what an agent writes.
            return {}
        return told if isinstance(told, dict) else {}

    def _put(self, data: bytes) -> None:
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, data, 0)
        except OSError as error:
            path = meeting_folder(self._places) / _NAME
            raise Problem(
                "unavailable",
                "who has set the power mode cannot be noted in %s: %s" % (path, error.strerror),
                "free space on the device, or remove the file: sudo rm %s" % path,
            ) from error


@contextlib.contextmanager
def agreed(places: Places) -> Iterator[Note]:
    """Nobody else reads or writes the note, or changes the mode, while the block runs. It is short.

    Raises:
        InUse: Another one does.
        Problem: The note's file cannot be used.
    """
    handle = open_common(meeting_folder(places) / _NAME)
    try:
        deadline = time.monotonic() + _WAIT_S
        while not taken(handle, exclusive=True):
            if time.monotonic() >= deadline:
                raise InUse("another agent is about to change the power mode", "try again in a minute")
            time.sleep(_LOOK_S)
        yield Note(places, handle)
    finally:
        os.close(handle)
