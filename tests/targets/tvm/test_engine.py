"""A compiled model runs, is refused where it must not run, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.targets._tvm.engine import TvmEngine
from greencc.targets._tvm.features import this_cpu
from greencc.targets._tvm.link import find_toolchain

ROOT = Path(__file__).resolve().parents[3]
Reference = Callable[[np.ndarray], dict[str, np.ndarray]]


def _data(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4, 4)).astype(np.float32)


def _check(engine: TvmEngine, x: np.ndarray, reference: Reference) -> None:
    got, expected = engine.run({"x": x}), reference(x)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].shape == values.shape, name
        np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_values_for_changing_batches(built: Path, mixed_reference: Reference, threads: int) -> None:
    engine = TvmEngine(built, threads)
    for turn, count in enumerate([1, 3, 3, 0, 257, 2, 257, 1]):
        _check(engine, _data(count, turn), mixed_reference)
    engine.close()


def test_results_are_kept_from_one_run_to_the_next(built: Path, mixed_reference: Reference) -> None:
    engine = TvmEngine(built, 1)
    for count in (2, 2000):
        first = engine.run({"x": _data(count, 1)})
        engine.run({"x": _data(count, 2)})
        np.testing.assert_allclose(first["shifted"], mixed_reference(_data(count, 1))["shifted"], rtol=1e-6)
    engine.close()


@pytest.mark.parametrize("count", [5, 5000])
def test_inputs_that_are_strided_or_misaligned(built: Path, mixed_reference: Reference, count: int) -> None:
    engine = TvmEngine(built, 2)
    _check(engine, _data(2 * count)[::2], mixed_reference)
    memory = np.zeros(count * 16 + 32, np.float32)
    for shift in range(0, 20, 3):
        shifted = memory[shift : shift + count * 16].reshape(count, 4, 4)
        shifted[:] = _data(count)
        _check(engine, shifted, mixed_reference)
    engine.close()


def test_engines_side_by_side_and_many_callers(built: Path, mixed_reference: Reference) -> None:
    engines = [TvmEngine(built, threads) for threads in (1, 3)]

    def work(engine: TvmEngine, seed: int) -> int:
        for turn in range(20):
            _check(engine, _data(1 + (seed + turn) % 5, seed), mixed_reference)
        return 20

    with ThreadPoolExecutor(6) as callers:
        turns = [callers.submit(work, engine, seed) for engine in engines for seed in range(3)]
        assert sum(turn.result() for turn in turns) == 120
    for engine in engines:
        engine.close()


def test_profile_names_the_steps(built: Path) -> None:
    engine = TvmEngine(built, 1)
    times = engine.profile({"x": _data(64)}, 5)
    assert (times[0].name, times[0].op_type) == ("first", "Mul")
    assert len(times) == len(json.loads(built.read_text())["kernels"]) == 6
    assert all(time.microseconds >= 0 for time in times)
    assert times[0].microseconds > 0
    with pytest.raises(UsageError, match="at least 1 run"):
        engine.profile({"x": _data(1)}, 0)
    engine.close()


def test_wrong_inputs(built: Path) -> None:
    engine = TvmEngine(built, 1)
    with pytest.raises(InputError, match="axis 2 must be 4"):
        engine.run({"x": np.zeros((1, 4, 5), np.float32)})
    with pytest.raises(InputError, match="has dtype float64"):
        engine.run({"x": np.zeros((1, 4, 4))})
    with pytest.raises(InputError, match="no output 'sofmax'"):
        engine.run({"x": _data(1)}, ["sofmax"])
    assert list(engine.run({"x": _data(1)}, ["view", "constant"])) == ["view", "constant"]
    engine.close()


def test_no_growth_and_no_threads_left(built: Path) -> None:
    process = psutil.Process()
    before_threads, before_files = process.num_threads(), process.num_fds()
    engine = TvmEngine(built, 3)
    assert process.num_threads() == before_threads + 2
    batches = [_data(count) for count in (1, 1000, 7, 500)]
    for turn in range(100):
        engine.run({"x": batches[turn % 4]})
    before = process.memory_info().rss
    for turn in range(1000):
        engine.run({"x": batches[turn % 4]})
    assert process.memory_info().rss - before < 1 << 20
    engine.close()
    assert process.num_threads() == before_threads
    assert process.num_fds() == before_files
    for _ in range(20):
        TvmEngine(built, 2).close()
    before = process.memory_info().rss
    for _ in range(200):
        TvmEngine(built, 2).close()
    assert process.memory_info().rss - before < 2 << 20
    assert process.num_threads() == before_threads
    assert "model.so" not in Path("/proc/self/maps").read_text()


def test_a_forgotten_engine_is_freed(built: Path) -> None:
    before = psutil.Process().num_threads()
    engine = TvmEngine(built, 3)
    del engine
    assert psutil.Process().num_threads() == before


def test_closed_twice_and_then_run(built: Path) -> None:
    engine = TvmEngine(built, 2)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="was closed"):
        engine.run({"x": _data(1)})


def test_a_model_built_over_an_open_one(copied: Path, mixed_reference: Reference, tmp_path: Path) -> None:
    """The dynamic linker must not take the open library for the new one at the same path."""
    first = TvmEngine(copied, 1)
    library = copied.parent / "model.so"
    code = library.read_bytes()
    changed = code + bytes(8)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(changed)
    fresh.replace(library)
    _describe(copied, "model.so", changed)
    second = TvmEngine(copied, 1)
    maps = {
        line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "model.so" in line
    }
    assert len(maps) == 2
    _check(first, _data(3), mixed_reference)
    first.close()
    _check(second, _data(3), mixed_reference)
    second.close()


def test_in_a_forked_child(built: Path, mixed_reference: Reference) -> None:
    engine = TvmEngine(built, 3)
    _check(engine, _data(3), mixed_reference)
    child = multiprocessing.get_context("fork").Process(
        target=_in_child, args=(engine, _data(9), mixed_reference)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    _check(engine, _data(3), mixed_reference)
    engine.close()


def test_a_child_that_is_forked_during_a_run_is_told(built: Path, mixed_reference: Reference) -> None:
    engine, idle = TvmEngine(built, 2), TvmEngine(built, 2)
    inside, go_on = threading.Event(), threading.Event()
    library = engine._library

    class Slow:
        """The library, with a run that lasts until it is told to end."""

        def __getattr__(self, name: str) -> object:
            return getattr(library, name)

        def greencc_run(self, *arguments: object) -> int:
            inside.set()
            go_on.wait(60)
            status: int = library.greencc_run(*arguments)
            return status

    engine._library = Slow()
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(engine.run, {"x": _data(3)})
        assert inside.wait(60)
        child = multiprocessing.get_context("fork").Process(
            target=_refused_in_child, args=(engine, idle, mixed_reference)
        )
        child.start()
        child.join(60)
        go_on.set()
        running.result(60)
    child.kill()
    assert child.exitcode == 0
    engine._library = library
    _check(engine, _data(3), mixed_reference)
    engine.close()
    idle.close()


def test_the_library_itself_tells_a_forked_child(built: Path) -> None:
    """Without the engine's turn, as programs in other languages call it."""
    engine, count = TvmEngine(built, 2), 200_000
    large = _data(count)
    engine.run({"x": large})
    shapes, found = (ctypes.c_int64 * 3)(count, 4, 4), (ctypes.c_int64 * 32)()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            engine.run({"x": large})

    def ask() -> None:
        error = ctypes.create_string_buffer(200)
        status = engine._library.greencc_output_shapes(handle, shapes, found, error, 200)
        os._exit(3 if status == 3 and b"forked while the model was running" in error.value else status)

    handle = engine._handle
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(work)
        try:
            codes = []
            while 3 not in codes and len(codes) < 50:
                child = multiprocessing.get_context("fork").Process(target=ask)
                child.start()
                child.join(60)
                child.kill()
                codes.append(child.exitcode)
        finally:
            over.set()
        running.result(60)
    assert set(codes) <= {0, 3}
    assert 3 in codes
    engine.close()


def _refused_in_child(engine: TvmEngine, idle: TvmEngine, reference: Reference) -> None:
    with pytest.raises(UnavailableError, match="forked while the model was running"):
        engine.run({"x": _data(1)})
    engine.close()
    _check(idle, _data(9), reference)
    idle.close()


@pytest.mark.parametrize("how", ["run", "profile"])
def test_exit_during_a_run(built: Path, how: str) -> None:
    call = "engine.run(feeds)" if how == "run" else "engine.profile(feeds, 3)"
    script = (
        "import sys, threading; from pathlib import Path; import numpy as np\n"
        "from greencc.targets._tvm.engine import TvmEngine\n"
        "engine, feeds = TvmEngine(Path(sys.argv[1]), 2), {'x': np.ones((100_000, 4, 4), np.float32)}\n"
        "started = threading.Event()\n"
        "def work():\n"
        "    while True:\n"
        f"        {call}\n"
        "        started.set()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "started.wait(60)\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script, str(built)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_profiling_keeps_its_turn_and_tells_the_real_error(built: Path) -> None:
    engine = TvmEngine(built, 1)
    library, seen = engine._library, []

    class Watched:
        """The library, with step times that fail."""

        def __getattr__(self, name: str) -> object:
            return getattr(library, name)

        def greencc_profile(self, handle: object, on: int) -> None:
            seen.append((on, engine._turn.locked()))
            library.greencc_profile(handle, on)

        def greencc_step_times(self, *_: object) -> int:
            seen.append((None, engine._turn.locked()))
            engine._error.value = b"no times"
            return 3

    engine._library = Watched()
    with pytest.raises(InputError, match=r"profiling .*: no times"):
        engine.profile({"x": _data(1)}, 2)
    assert seen == [(1, True), (None, True), (0, True)]
    engine._library = library
    assert len(engine.profile({"x": _data(1)}, 2)) == 6
    engine.close()
    with pytest.raises(RuntimeError, match="was closed"):
        engine.profile({"x": _data(1)}, 1)


def _in_child(engine: TvmEngine, x: np.ndarray, reference: Reference) -> None:
    _check(engine, x, reference)
    engine.close()


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_wrong_thread_counts(built: Path, threads: int) -> None:
    with pytest.raises(InputError, match=r"from 1 to 256 are possible"):
        TvmEngine(built, threads)


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_changed_files_are_refused(copied: Path, name: str) -> None:
    file = copied.parent / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    for content in (bytes(data), bytes(data[:-1]), b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match="was changed or damaged"):
            TvmEngine(copied, 1)
    file.unlink()
    with pytest.raises(InputError, match="cannot read"):
        TvmEngine(copied, 1)


def test_a_library_that_is_none(copied: Path) -> None:
    before = psutil.Process().num_fds()
    for content in (b"", b"not a library"):
        (copied.parent / "model.so").write_bytes(content)
        _describe(copied, "model.so", content)
        with pytest.raises(InputError, match="cannot be loaded"):
            TvmEngine(copied, 1)
    assert psutil.Process().num_fds() == before


def test_a_library_of_something_else_leaves_nothing_behind(
    copied: Path, built: Path, mixed_reference: Reference, tmp_path: Path
) -> None:
    """Its name must not be taken for the next one's, and its code must not stay."""
    before = psutil.Process().num_fds()
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    compiler = find_toolchain(f"{os.uname().machine}-linux-gnu")
    compiler.run(["-shared", "-fPIC", "-o", "other.so", "other.c"], tmp_path, "building a test's library")
    content = (tmp_path / "other.so").read_bytes()
    (copied.parent / "model.so").write_bytes(content)
    _describe(copied, "model.so", content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"cannot be loaded.*greencc_"):
            TvmEngine(copied, 1)
        assert "model.so" not in Path("/proc/self/maps").read_text()
        engine = TvmEngine(built, 1)
        _check(engine, _data(3), mixed_reference)
        engine.close()
    assert psutil.Process().num_fds() == before


def test_code_that_cannot_be_unmapped_is_not_taken_for_the_next(
    copied: Path, built: Path, mixed_reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    compiler = find_toolchain(f"{os.uname().machine}-linux-gnu")
    stays = ["-shared", "-fPIC", "-Wl,-z,nodelete", "-o", "other.so", "other.c"]
    compiler.run(stays, tmp_path, "building a test's library")
    content = (tmp_path / "other.so").read_bytes()
    (copied.parent / "model.so").write_bytes(content)
    _describe(copied, "model.so", content)
    with pytest.raises(InputError, match="cannot be loaded"):
        TvmEngine(copied, 1)
    assert "model.so" in Path("/proc/self/maps").read_text()
    engine = TvmEngine(built, 1)
    _check(engine, _data(3), mixed_reference)
    engine.close()


def test_weights_that_the_library_does_not_have(copied: Path) -> None:
    (copied.parent / "weights.bin").write_bytes(bytes(128))
    _describe(copied, "weights.bin", bytes(128))
    with pytest.raises(InputError, match=r"model/weights\.bin has 128 bytes, the model needs 64"):
        TvmEngine(copied, 1)


@pytest.mark.parametrize(
    ("key", "row", "change"),
    [
        ("inputs", 0, {"shape": ["batch", 4]}),
        ("inputs", 0, {"dtype": "int8"}),
        ("outputs", 1, {"dtype": "float64"}),
        ("outputs", 3, {"shape": []}),
    ],
)
def test_a_description_of_another_library(
    copied: Path, key: str, row: int, change: dict[str, object]
) -> None:
    data = json.loads(copied.read_text())
    data[key][row].update(change)
    copied.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"does not describe"):
        TvmEngine(copied, 1)


def test_missing_features_are_found_before_the_code_is_loaded(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(ctypes, "CDLL", load)
    cpu = this_cpu()
    data = json.loads(copied.read_text())
    name, flag = ("avx512vnni", "avx512_vnni") if cpu.x86 else ("i8mm", "i8mm")
    data["features"].append(name)
    copied.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"needs {name}, which this processor"):
        TvmEngine(copied, 1, cpu=replace(cpu, features=cpu.features - {flag}))
    data["features"].append("avx4096")
    copied.write_text(json.dumps(data))
    with pytest.raises(InputError, match="avx4096"):
        TvmEngine(copied, 1)
    with pytest.raises(InputError, match="this machine is riscv64"):
        TvmEngine(copied, 1, cpu=replace(cpu, architecture="riscv64"))


def test_no_room_for_the_code(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(UnavailableError, match="Too many open files"):
        TvmEngine(built, 1)


def test_batches_too_large_for_memory(built: Path) -> None:
    engine = TvmEngine(built, 1)
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 50, 4, 4), (0, 0, 0))
    with pytest.raises(UnavailableError, match="out of memory"):
        engine.run({"x": huge})
    assert engine.run({"x": _data(1)})["view"].shape == (1, 4, 4)
    engine.close()


def _describe(description: Path, name: str, content: bytes) -> None:
    import hashlib

    data = json.loads(description.read_text())
    data["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    description.write_text(json.dumps(data))
