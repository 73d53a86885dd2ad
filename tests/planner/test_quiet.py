from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from greencc.planner._quiet import without_output


def test_what_compiled_code_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    sys.stdout.write("before\n")
    library.puts(b"from C, before")
    with without_output():
        library.puts(b"from C")
        os.write(1, b"straight to the file\n")
    sys.stdout.write("after\n")
    library.puts(b"from C, after")
    library.fflush(None)
    assert sorted(capfd.readouterr().out.split("\n")) == [
        "", "after", "before", "from C, after", "from C, before",
    ]  # fmt: skip


def test_errors_pass_and_output_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), without_output():
        raise ZeroDivisionError
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_without_standard_output() -> None:
    code = (
        "import os\nfrom greencc.planner._quiet import without_output\nos.close(1)\n"
        "with without_output():\n    os.write(2, b'ran')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"ran"
