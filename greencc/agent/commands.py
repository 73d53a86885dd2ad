"""Runs a program of the device for what it prints, with a time limit."""

import subprocess
from typing import Optional, Sequence, Tuple

TIMEOUT_S = 10.0


def run(command: Sequence[str], timeout_s: float = TIMEOUT_S, told: bytes = b"") -> Tuple[Optional[int], str]:
    """Exit code and what it printed on both streams; the code is None where it cannot be started or hangs.

    Args:
        told: Its standard input.
    """
    try:
        # Output goes through one pipe, and the input ends: a program that asks gets no answer.
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return None, "%s: %s" % (command[0], error.strerror)
    with process:
        try:
            text, _ = process.communicate(told, timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, "%s gave no answer for %g s" % (command[0], timeout_s)
    return process.returncode, text.decode("utf-8", "replace")
