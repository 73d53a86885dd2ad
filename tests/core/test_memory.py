"""Giving memory back."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import pytest

from greencc.core import memory


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"
)
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    # Blocks below the size that the C library maps one by one, each second one freed.
    blocks = [bytearray(b"x" * 50_000) for _ in range(2000)]
    before = resident_bytes()
    blocks = blocks[::2]
    memory.give_back()
    assert resident_bytes() < before - 25_000_000
    assert all(block[0] == ord("x") for block in blocks)


def test_without_such_a_library_nothing_happens(monkeypatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.give_back()
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.give_back()
