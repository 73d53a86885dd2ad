"""Runs on the device before the agent does: sees that the agent is there, whole, and becomes it.

Its source goes over as an argument of ``python3 -c``; it must parse on any Python 3, to say that one is too old. It is
never imported there, and imports the standard library alone. What it says are lines of JSON:

    {"greencc-bootstrap": "send"}       the agent is not there: its bytes are expected on standard input
    {"greencc-bootstrap": "old", "python": "3.5.2"}
    {"greencc-bootstrap": "unsafe", "path": ...}           others may write there
    {"greencc-bootstrap": "failed", "errno": ..., "path": ..., "reason": ...}
    {"greencc-bootstrap": "damaged"}    what came is not what was announced

or nothing: the next line is the agent's. Standard input is read without a buffer: what follows is for the agent.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import time

LONG = 30 * 24 * 3600.0


def say(kind: str, **facts: object) -> None:
    facts["greencc-bootstrap"] = kind
    # A line of its own, whatever a login script printed before without an end.
    os.write(1, ("\n" + json.dumps(facts, sort_keys=True) + "\n").encode("ascii"))


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def receive(size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            sys.exit(4)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def store(path: str, content: bytes) -> None:
    work = "%s.%d.part" % (path, os.getpid())
    try:
        with open(work, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(work, path)
    except OSError:
        if os.path.exists(work):
            os.unlink(work)
        raise


def forget_old(home: str) -> None:
    """Remove agents of other versions that have not run for long, and what they were unpacked to.

    Jobs of newer ones may still need theirs. Half-written files and folders are of processes that were killed.
    """
    for name in os.listdir(home):
        path = os.path.join(home, name)
        if not name.startswith(("agent-", ".agent-")):
            continue
        try:
            # A folder is as old as its agent, which is touched at each connection.
            used = path[:-2] if name.endswith(".pyz.d") and os.path.exists(path[:-2]) else path
            if time.time() - os.stat(used).st_mtime <= LONG:
                continue
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
                shutil.rmtree(path + ".d", ignore_errors=True)
        except FileNotFoundError:
            # Another connection did the same just now.
            continue


def safe(folder: str) -> bool:
    facts = os.stat(folder)
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def main(digest: str, size: int) -> int:
    if sys.version_info < (3, 6):
        say("old", python="%d.%d.%d" % sys.version_info[:3])
        return 3
    os.umask(0o077)
    home = os.environ.get("GREENCC_AGENT_HOME") or os.path.expanduser("~/.cache/greencc-agent")
    path = os.path.join(home, "agent-%s.pyz" % digest[:12])
    try:
        os.makedirs(home, 0o700, exist_ok=True)
        if not safe(home):
            say("unsafe", path=home)
            return 3
        if hashlib.sha256(read(path)).hexdigest() != digest:
            say("send")
            content = receive(size)
            if hashlib.sha256(content).hexdigest() != digest:
                say("damaged")
                return 3
            store(path, content)
            forget_old(home)
        os.utime(path, None)
    except OSError as error:
        say("failed", errno=error.errno, path=str(error.filename or home), reason=str(error.strerror))
        return 3
    os.write(1, b"\n")
    return os.execv(sys.executable, [sys.executable, path, "serve"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[2], int(sys.argv[3])))
