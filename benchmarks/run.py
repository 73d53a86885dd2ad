"""`python -m benchmarks.run`: run the benchmarks, write their results, and render the tables."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    bench_backends,
    bench_build,
    bench_cleanup,
    bench_compression,
    bench_latency,
    bench_memory,
    bench_models,
    bench_planner,
    bench_quantization,
    render,
)
from benchmarks.results import Settings

BENCHMARKS: dict[str, Callable[[Settings], None]] = {
    "build": bench_build.run,
    "memory": bench_memory.run,
    "models": bench_models.run,
    "latency": bench_latency.run,
    "cleanup": bench_cleanup.run,
    "quantization": bench_quantization.run,
    "compression": bench_compression.run,
    "planner": bench_planner.run,
    "backends": bench_backends.run,
}
MODELS_VARIABLE = "BENCH_MODELS"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, help="run this one (may be given several times)"
    )
    parser.add_argument("--repetitions", type=int, help="of builds, interleaved [default: 5, quick: 2]")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="NAME",
        help="of quantization: all, or some of aimet, olive, quark [default: none]",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        help="quantization, compression, planner and backends: this model only (may be repeated)",
    )
    parser.add_argument(
        "--no-slow", action="store_true", help="leave out what takes minutes a model (AdaRound)"
    )
    parser.add_argument(
        "--models", type=Path, help=f"folder with more models [default: ${MODELS_VARIABLE}, else none]"
    )
    parser.add_argument(
        "--work", type=Path, help="keep scratch files here; bundles found there are used again"
    )
    asked = parser.parse_args(arguments)
    models = asked.models or _from_environment()
    if models is not None and not models.is_dir():
        parser.error(f"{models} is no folder")
    repetitions = asked.repetitions or (2 if asked.quick else 5)
    if repetitions < 1:
        parser.error("--repetitions must be at least 1")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="greencc-bench-") as scratch:
        work = (asked.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            None if models is None else models.resolve(),
            repetitions,
            asked.quick,
            shown_command(sys.argv[1:] if arguments is None else arguments, models is not None),
            work,
            os.getloadavg()[0],
            tuple(asked.peers),
            not asked.no_slow,
            tuple(asked.case),
        )
        for name in asked.only or BENCHMARKS:
            print(f"[{time.perf_counter() - started:6.0f} s] {name}", flush=True)
            BENCHMARKS[name](settings)
    render.main()
    print(f"[{time.perf_counter() - started:6.0f} s] done: docs/benchmarks.md", flush=True)
    return 0


def _from_environment() -> Path | None:
    value = os.environ.get(MODELS_VARIABLE)
    return Path(value) if value else None


def shown_command(arguments: list[str], with_models: bool) -> str:
    """The command without this machine's folders."""
    kept: list[str] = []
    skip = False
    for item in arguments:
        if skip or item.startswith(("--models=", "--work=")):
            skip = False
        elif item in ("--models", "--work"):
            skip = True
        else:
            kept.append(item)
    prefix = f"{MODELS_VARIABLE}=MODELS " if with_models else ""
    return f"{prefix}{shlex.join(['python', '-m', 'benchmarks.run', *kept])}"


if __name__ == "__main__":
    sys.exit(main())
