"""A search that ends in the middle, by Ctrl-C or SIGKILL, goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greencc.bundle import load
from greencc.core.errors import ExitCode
from greencc.core.report import Report
from tests.cli.conftest import listing

from .conftest import COMPILE, entries, environment

ASKED = (*COMPILE[:-2], "--minimize", "latency")
LONGEST_SECONDS = 240


def start(folder: Path, cache: Path, output: str) -> subprocess.Popen[str]:
    """A compile in a process of its own, on a steady machine."""

    def hear_interrupts() -> None:
        # A shell's background jobs ignore them, and so would what they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.plan.steady", *ASKED, "-o", output],
        cwd=folder,
        env=environment(cache),
        preexec_fn=hear_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0, err
    assert "was chosen out of" in " ".join(out.split())


def report_of(bundle: Path) -> Report:
    with load(bundle) as loaded:
        return loaded.report


def shipped_ms(report: Report) -> float:
    return report.artifact.latency_ms.median


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "points"),
    [(signal.SIGINT, 2), (signal.SIGKILL, 3)],
    ids=["ctrl-c", "sigkill"],
)
def test_an_interrupted_search_goes_on(
    blocks: Path,
    cache: Path,
    planned_files: tuple[Path, Path],
    number: signal.Signals,
    points: int,
) -> None:
    before = listing(blocks)
    process = start(blocks, cache, "out.greencc")
    try:
        deadline = time.monotonic() + LONGEST_SECONDS
        # The form with all layers in integers is the first point.
        while len(entries(cache, "plan-point")) < points:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not (blocks / "out.greencc").exists()
    if number is signal.SIGINT:
        assert process.returncode == ExitCode.INTERRUPTED
        assert err == "\ngreencc: interrupted; nothing was left half-written\n"
        assert listing(blocks) == before
    else:
        assert process.returncode == -signal.SIGKILL
    kept = contents(cache)
    verified = {name for name in kept if name.startswith("plan-point")}
    assert len(verified) >= points
    assert any(name.startswith("plan-error") for name in kept)

    finish(start(blocks, cache, "again.greencc"))

    found = report_of(blocks / "again.greencc")
    assert found.plan is not None
    assert any(point.origin == "cache" for point in found.plan.points)
    # Nothing that was finished was computed, and written, again: entries have the time in them. The times of the best
    # points are taken once more at the end.
    now = contents(cache)
    errors = {name: digest for name, digest in kept.items() if not name.startswith("plan-point")}
    assert {name: now[name] for name in errors} == errors
    assert kept.keys() <= now.keys()
    assert len(now) > len(kept)
    # What is known from the start may lead it to other plans, not to a worse one.
    assert shipped_ms(found) <= 1.02 * shipped_ms(report_of(planned_files[0] / "out.greencc"))


def contents(cache: Path) -> dict[str, str]:
    """Every entry with a hash of what it holds."""
    files = listing(cache)
    return {name: found for name, found in files.items() if name.endswith(".cache") and "/." not in name}
