"""What one core of this machine can do at most, measured: arithmetic in registers, and reading from memory of several sizes.

The program (`peaks.c`) is compiled for this very processor, so that it has its widest instructions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greencc.core.errors import UnavailableError

SOURCE = Path(__file__).with_name("peaks.c")
COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Peaks:
    """Of one core.

    Attributes:
        width_bits: Of the vectors that were used.
        float_ops: FP32 operations per second; a multiply-accumulate is two.
        int8: The instructions that the INT8 peak was measured with; None: the processor has none of those known.
        int8_ops: INT8 operations per second.
        bandwidth: Size of a buffer in bytes, and bytes per second when it is read again and again.
    """

    width_bits: int
    float_ops: float
    int8: str | None
    int8_ops: float | None
    bandwidth: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, told: dict[str, Any]) -> Peaks:
        """From the program's JSON, or from a result file."""
        sizes = tuple((int(size), float(rate)) for size, rate in told["bandwidth"])
        return cls(told["width_bits"], told["float_ops"], told["int8"], told["int8_ops"], sizes)

    def ops(self, integers: bool) -> float | None:
        """Operations per second in the arithmetic asked for."""
        return self.int8_ops if integers else self.float_ops

    def read_rate(self, size: int) -> float:
        """Bytes per second for so many bytes: those of the smallest buffer measured that holds them.

        Where a still larger one was read faster, that measurement was disturbed, and the faster rate counts.
        """
        rates = [rate for bound, rate in self.bandwidth if bound >= size]
        return max(rates) if rates else self.bandwidth[-1][1]


def measure_peaks() -> Peaks:
    """Compile the program and run it (about a second).

    Raises:
        UnavailableError: There is no C compiler, or the program does not compile or run.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UnavailableError(
            f"no C compiler ({', '.join(COMPILERS)}) to measure the machine's peaks with",
            hint="install one: apt install gcc",
        )
    with tempfile.TemporaryDirectory(prefix="greencc-peaks-") as folder:
        program = Path(folder) / "peaks"
        _run([compiler, "-O3", "-march=native", "-o", str(program), str(SOURCE)])
        return Peaks.of(json.loads(_run([str(program)])))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"the machine's peaks cannot be measured: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UnavailableError(f"the machine's peaks cannot be measured: {lines[0]}")
    return done.stdout
