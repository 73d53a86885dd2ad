"""The agent's commands: ``serve`` for the host; ``job``, ``engine`` and ``watchdog`` are what it starts itself."""

import sys
from typing import List

from greencc.agent.problem import Problem

_USAGE = "usage: serve | job FOLDER | engine FOLDER OPTIONS | watchdog\n"


def main(arguments: List[str]) -> int:
    """Run a command.

    Returns:
        The exit code: 0, or 2 where it cannot be understood or done.
    """
    command, rest = arguments[:1], arguments[1:]
    try:
        if command == ["serve"] and not rest:
            from greencc.agent.server import serve

            return serve()
        if command == ["job"] and len(rest) == 1:
            from greencc.agent.supervisor import main as job

            return job(rest[0])
        if command == ["engine"] and len(rest) == 2:
            from greencc.agent.engine import main as engine

            return engine(*rest)
        if command == ["watchdog"] and not rest:
            from greencc.agent.power import main as watchdog

            return watchdog()
    except Problem as problem:
        sys.stderr.write("%s%s\n" % (problem.message, " (%s)" % problem.hint if problem.hint else ""))
        return 2
    sys.stderr.write(_USAGE)
    return 2
