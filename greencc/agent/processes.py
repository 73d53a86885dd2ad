"""Processes: starting them so that they outlive the agent, ending them with all they started, and what they use."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

_PROC = Path("/proc")


def start_detached(command: Sequence[str], log: Path) -> None:
    """Start a command that forks by itself (see `detach`), and wait until it has.

    Args:
        log: Its output goes there, behind what is in the file.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, close_fds=True, cwd="/"
        )
        process.wait()


def detach(prepare: Callable[[], None]) -> bool:
    """Go on in a child of its own session, which no closed terminal or dropped connection ends.

    Args:
        prepare: What the child does before the parent goes on.

    Returns:
        True in the child. The parent gets False, and should end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    first = os.fork()
    if first:
        os.close(writer)
        os.waitpid(first, 0)
        # It ends when the child has closed its end, or has died.
        os.read(reader, 1)
        os.close(reader)
        return False
    os.close(reader)
    os.setsid()
    # A session's leader may get a terminal again; its child cannot, and is a child of init.
    if os.fork():
        os._exit(0)
    # A group of its own, so that it and all that it starts can be ended together.
    os.setpgid(0, 0)
    prepare()
    os.close(writer)
    return True


def started_at(pid: int) -> Optional[int]:
    """When a process began, in clock ticks since the boot; None where there is none, or only its remains.

    With the number it names a process for good: numbers are used again.
    """
    # By its first thread: QEMU makes up what a process reads of itself, one tick beside what others read of it.
    fields = _stat(pid, "task/%d/stat" % pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def family(pid: int) -> List[int]:
    """A process and all that descend from it."""
    children: Dict[int, List[int]] = {}
    for entry in _PROC.iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have used, with that of their children that ended."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / float(os.sysconf("SC_CLK_TCK"))


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that processes hold."""
    pages = 0
    for pid in pids:
        try:
            pages += int((_PROC / str(pid) / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def end_family(pid: int, wait_s: float = 5.0) -> None:
    """Kill a process and all that descend from it, whatever sessions they are in; it is over when this returns.

    Where that is this process itself, it does not return.
    """
    members = family(pid)
    # From the youngest on, and the first of them last: who waits for it knows then that all are gone.
    for each in members[:0:-1]:
        _kill(each)
    _kill(pid)
    deadline = time.monotonic() + wait_s
    while any(started_at(each) is not None for each in members) and time.monotonic() < deadline:
        time.sleep(0.01)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _stat(pid: int, file: str = "stat") -> Optional[Tuple[str, ...]]:
    """Fields of /proc/PID/stat behind the name: state, parent, group, ..."""
    try:
        text = (_PROC / str(pid) / file).read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    return tuple(text[text.rindex(")") + 2 :].split())
