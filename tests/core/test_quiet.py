from __future__ import annotations

import os
import sys

import pytest

from greencc.core.quiet import stdout_to_stderr


def test_what_c_writes_to_standard_output_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before\n")
    with stdout_to_stderr():
        os.write(1, b"from C\n")
    sys.stdout.write("after\n")
    found = capfd.readouterr()
    assert found.out == "before\nafter\n"
    assert found.err == "from C\n"


def test_it_is_put_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), stdout_to_stderr():
        raise ValueError("no")
    os.write(1, b"again\n")
    assert capfd.readouterr().out == "again\n"
