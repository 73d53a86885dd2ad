"""The executor under sanitizers, with plans of any bytes: each is refused or runs, none crashes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.targets._tvm import link
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.pipeline import compile_object, lower_to_kernels
from greencc.targets._tvm.planning import Planned, make_plan

from .conftest import Case

HARNESS = Path(__file__).with_name("harness.c")
Harness = Callable[[str, int, int, int], str]


@pytest.fixture(scope="module", params=["whole", "parts"])
def planned(
    mixed: Case, rows: Case, machine: Machine, request: pytest.FixtureRequest
) -> tuple[Planned, bytes]:
    case = rows if request.param == "parts" else mixed
    lowered = lower_to_kernels(case.module, machine)
    names = [[spec.name for spec in specs] for specs in (case.inputs, case.outputs)]
    made = make_plan(lowered, *names)
    if case is rows:
        # The harness has three samples.
        made = replace(made, plan=replace(made.plan, part=2))
    # Plans are changed below: kernels refuse what their code is not for.
    return made, compile_object(lowered, machine, checked=True)


@pytest.fixture(scope="module")
def harness(planned: tuple[Planned, bytes], tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Compiles the harness with some sanitizers, and runs it: (sanitizers, threads, first, last) -> what it printed."""
    plan, code = planned
    compiler = link.find_toolchain(f"{os.uname().machine}-linux-gnu").command
    made: dict[str, Path] = {}

    def build(sanitizers: str) -> Path:
        folder = tmp_path_factory.mktemp("harness")
        encoded = plan.plan.encode()
        (folder / "plan.bin").write_bytes(encoded)
        (folder / "weights.bin").write_bytes(bytes(plan.plan.weights_bytes))
        (folder / "kernels.o").write_bytes(code)
        (folder / "model.c").write_text(link.model_source(plan.plan.kernels, encoded))
        sources = [str(link.RUNTIME / source) for source in link.SOURCES]
        done = subprocess.run(
            [
                *(*compiler, "-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"),
                *(f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-strict-aliasing"),
                *("-I", str(link.RUNTIME), *sources, str(HARNESS), "model.c", "kernels.o"),
                *("-o", "harness", "-lm", "-lpthread"),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if "cannot find" in done.stderr and "san" in done.stderr:
            pytest.skip(f"the compiler has no -fsanitize={sanitizers}")
        assert done.returncode == 0, done.stderr
        return folder

    def run(sanitizers: str, threads: int, first: int, last: int) -> str:
        if sanitizers not in made:
            made[sanitizers] = build(sanitizers)
        options = "allocator_may_return_null=1:max_allocation_size_mb=256"
        done = subprocess.run(
            ["./harness", "plan.bin", "weights.bin", str(threads), str(first), str(last)],
            cwd=made[sanitizers],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"ASAN_OPTIONS": options},
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.mark.parametrize("threads", [1, 3])
def test_plans_of_any_bytes(harness: Harness, threads: int) -> None:
    found = re.fullmatch(
        r"(\d+) refused, (\d+) failed, (\d+) ran\n", harness("address,undefined", threads, 0, 4000)
    )
    assert found is not None
    refused, failed, ran = map(int, found.groups())
    assert refused + failed + ran == 4001
    # Some of each kind: the changes reach behind the first checks, and not all of them matter.
    assert min(refused, failed, ran) > 40


def test_threads_do_not_race(harness: Harness) -> None:
    assert harness("thread", 4, 0, 0) == "0 refused, 0 failed, 1 ran\n"


def test_a_plan_cut_anywhere(planned: tuple[Planned, bytes], built: Path) -> None:
    import ctypes

    library = ctypes.CDLL(str(built.parent / "model.so"))
    encoded = planned[0].plan.encode()
    weights = os.fsencode(built.parent / "weights.bin")
    handle = ctypes.c_void_p()
    error = ctypes.create_string_buffer(200)

    def open_plan(data: bytes) -> int:
        status: int = library.greencc_open_plan(
            data, ctypes.c_size_t(len(data)), weights, 1, ctypes.byref(handle), error, ctypes.c_size_t(200)
        )
        return status

    for length in range(len(encoded)):
        assert open_plan(encoded[:length]) == 4
        assert error.value.startswith(b"the plan is corrupt: ")
    assert open_plan(encoded + b"\0") == 4
    assert open_plan(encoded) == 0
    library.greencc_close(handle)
