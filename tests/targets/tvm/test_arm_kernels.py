"""Kernels for ARM under emulation, against NumPy: integers exactly, floats to their rounding."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.data import Array
from greencc.core.errors import InputError, UnavailableError
from greencc.core.files import sha256_file
from greencc.targets._tvm.description import LIBRARY, RUNNER, WEIGHTS, FileFacts, read_description
from greencc.targets._tvm.emulator import LIBRARIES, Emulator, missing_emulator
from greencc.targets._tvm.epilogue import AddTensor, Clip, Epilogue, Quantize
from greencc.targets._tvm.features import _AARCH64, linux_flags
from greencc.targets._tvm.presets import TRIPLE, ArmMachine, ArmPreset, arm_machine
from greencc.targets._tvm.runner import HWCAPS, build_runner, missing_compiler
from greencc.targets._tvm.workload import Conv, Dense, Depthwise, Window

from .arm_library import emulated, library

pytest.importorskip("tvm")
if reason := missing_compiler() or missing_emulator():
    pytest.skip(reason, allow_module_level=True)

# One with dot products, one without, and what fits all.
ARMS = [ArmPreset.RPI5, ArmPreset.RPI4]
ZERO = -5
QUANTIZED = Epilogue(bias=True, multiplier=True, quantize=Quantize("int8", 1.0, 3))
WINDOWS = {
    "3x3": Window(7, 9, (3, 3), pads=(1, 1, 1, 1)),
    "1x1": Window(5, 6),
    "strides": Window(8, 11, (3, 3), (2, 2), pads=(0, 0, 1, 1)),
}

FULL = pytest.mark.full


def patches(window: Window, data: Array, zero_point: int) -> list[tuple[int, int, Array]]:
    """What each tap of the kernel reads, borders filled in."""
    top, left, bottom, right = window.pads
    pads = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(data, pads, constant_values=zero_point)
    rows, columns = window.output
    (down, across), (high, wide) = window.strides, window.dilations
    return [
        (
            i,
            j,
            padded[
                :,
                i * high : i * high + rows * down : down,
                j * wide : j * wide + columns * across : across,
            ],
        )
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    ]


def quantized(sums: Array, multiplier: Array) -> Array:
    return np.clip(np.rint(sums.astype(np.float32) * multiplier) + np.float32(3), -128, 127).astype(np.int8)


def integers(channels: int, *shape: int) -> tuple[Array, Array, Array]:
    """Weights, bias, multiplier."""
    rng = np.random.default_rng(7)
    return (
        rng.integers(-127, 128, shape).astype(np.int8),
        rng.integers(-5000, 5000, channels).astype(np.int32),
        rng.uniform(1e-4, 5e-3, channels).astype(np.float32),
    )


def run(main: Path, arm: ArmMachine, data: Array) -> Array:
    engine = emulated(main, arm)
    try:
        return engine.run({"x": data})["y"]
    finally:
        engine.close()


@pytest.mark.parametrize("preset", ARMS)
@pytest.mark.parametrize(
    "window",
    [pytest.param(value, id=name, marks=() if name == "3x3" else FULL) for name, value in WINDOWS.items()],
)
def test_integer_convolutions_are_exact(preset: ArmPreset, window: Window, tmp_path: Path) -> None:
    arm = arm_machine(preset)
    weights, bias, multiplier = integers(20, 20, 12, *window.kernel)
    workload = Conv(window, (12, 20), data="int8", zero_point=ZERO, epilogue=QUANTIZED)
    shape = (window.height, window.width, 12)
    main = library(
        workload, arm, tmp_path, (shape, "int8"), weights, [bias, multiplier], (*window.output, 20)
    )
    data = np.random.default_rng(0).integers(-128, 128, (3, *shape)).astype(np.int8)
    sums = bias.astype(np.int64)
    for i, j, values in patches(window, data.astype(np.int64), ZERO):
        sums = sums + values @ weights[:, :, i, j].astype(np.int64).T
    np.testing.assert_array_equal(run(main, arm, data), quantized(sums, multiplier))


@pytest.mark.parametrize("preset", [pytest.param(preset, marks=FULL) for preset in ARMS])
def test_integer_products_are_exact(preset: ArmPreset, tmp_path: Path) -> None:
    arm = arm_machine(preset)
    weights, bias, multiplier = integers(10, 70, 10)
    workload = Dense((70, 10), data="int8", zero_point=ZERO, epilogue=QUANTIZED)
    main = library(workload, arm, tmp_path, ((70,), "int8"), weights, [bias, multiplier], (10,))
    data = np.random.default_rng(0).integers(-128, 128, (5, 70)).astype(np.int8)
    sums = data.astype(np.int64) @ weights.astype(np.int64) + bias
    np.testing.assert_array_equal(run(main, arm, data), quantized(sums, multiplier))


@pytest.mark.parametrize("preset", ARMS)
def test_integer_depthwise_convolutions_are_exact(preset: ArmPreset, tmp_path: Path) -> None:
    pytest.importorskip("greencc.targets._tvm.kernels.depthwise")
    arm, window = arm_machine(preset), WINDOWS["3x3"]
    weights, bias, multiplier = integers(24, 24, 1, *window.kernel)
    workload = Depthwise(window, 24, data="int8", zero_point=ZERO, epilogue=QUANTIZED)
    shape = (window.height, window.width, 24)
    main = library(
        workload, arm, tmp_path, (shape, "int8"), weights, [bias, multiplier], (*window.output, 24)
    )
    data = np.random.default_rng(0).integers(-128, 128, (3, *shape)).astype(np.int8)
    sums = bias.astype(np.int64)
    for i, j, values in patches(window, data.astype(np.int64), ZERO):
        sums = sums + values * weights[:, 0, i, j].astype(np.int64)
    np.testing.assert_array_equal(run(main, arm, data), quantized(sums, multiplier))


@pytest.mark.parametrize("preset", [ArmPreset.RPI5, pytest.param(ArmPreset.GENERIC, marks=FULL)])
def test_float_convolutions(preset: ArmPreset, tmp_path: Path) -> None:
    arm, window = arm_machine(preset), WINDOWS["3x3"]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 12, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(20).astype(np.float32)
    workload = Conv(window, (12, 20), epilogue=Epilogue(bias=True, steps=(Clip(0.0, 6.0),)))
    shape = (window.height, window.width, 12)
    main = library(workload, arm, tmp_path, (shape, "float32"), weights, [bias], (*window.output, 20))
    data = rng.standard_normal((3, *shape)).astype(np.float32)
    sums = bias.astype(np.float64)
    for i, j, values in patches(window, data.astype(np.float64), 0):
        sums = sums + values @ weights[:, :, i, j].astype(np.float64).T
    np.testing.assert_allclose(run(main, arm, data), np.clip(sums, 0, 6), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def dotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that uses dot products."""
    arm, folder = arm_machine(ArmPreset.RPI5), tmp_path_factory.mktemp("dotted")
    weights, bias, multiplier = integers(10, 70, 10)
    workload = Dense((70, 10), data="int8", zero_point=ZERO, epilogue=QUANTIZED)
    return library(workload, arm, folder, ((70,), "int8"), weights, [bias, multiplier], (10,))


def test_the_instructions_are_those_of_the_machine(dotted: Path, tmp_path: Path) -> None:
    weights, bias, multiplier = integers(10, 70, 10)
    workload = Dense((70, 10), data="int8", zero_point=ZERO, epilogue=QUANTIZED)
    plain = library(
        workload, arm_machine(ArmPreset.RPI4), tmp_path, ((70,), "int8"), weights, [bias, multiplier], (10,)
    )

    def listing(main: Path) -> str:
        tool = ["aarch64-linux-gnu-objdump", "-d", str(main.parent / LIBRARY)]
        return subprocess.run(tool, capture_output=True, text=True, check=True).stdout

    assert "sdot" in listing(dotted)
    assert "sdot" not in listing(plain)
    assert "smull" in listing(plain)


def test_dot_products_never_reach_a_processor_without_them(dotted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs dotprod"):
        emulated(dotted, replace(arm_machine(ArmPreset.CORTEX_A53)))
    # Neither past the description: the runner asks the processor itself.
    old = replace(arm_machine(ArmPreset.RPI5), emulated="cortex-a53")
    engine_of = pytest.MonkeyPatch()
    engine_of.setattr("greencc.targets._tvm.arm_engine.check_emulated", lambda *_: None)
    try:
        with pytest.raises(InputError, match=r"it has no .*, which the model was compiled to use"):
            emulated(dotted, old)
        # And where even that is taken out, the emulated processor faults as a real one would.
        main = tmp_path / "model" / dotted.name
        shutil.copytree(dotted.parent, main.parent)
        replace_runner(main, ["neon"])
        engine = emulated(main, old)
        try:
            with pytest.raises(UnavailableError, match="ended by SIGILL") as caught:
                engine.run({"x": np.ones((5, 70), np.int8)})
            assert "right preset" in (caught.value.hint or "")
        finally:
            engine.close()
    finally:
        engine_of.undo()


def replace_runner(main: Path, features: list[str]) -> None:
    """Build another one, and describe it."""
    runner = main.parent / RUNNER
    build_runner(runner, TRIPLE, features)
    facts = FileFacts(runner.stat().st_size, sha256_file(runner))
    main.write_text(replace(read_description(main), runner=facts).dump(), encoding="utf-8")


@pytest.mark.parametrize(
    ("feature", "emulated_as", "told"),
    [
        ("dotprod", "cortex-a53", r"dotprod \(asimddp\)"),
        ("fullfp16", "cortex-a53", r"fullfp16 \(asimdhp\)"),
        ("i8mm", "cortex-a76", r"i8mm \(i8mm\)"),
        ("lse", "cortex-a72", r"lse \(atomics\)"),
        ("dotprod", "cortex-a76", None),
        ("fullfp16", "cortex-a76", None),
    ],
)
def test_the_runner_asks_the_processor_for_all_it_needs(
    dotted: Path, tmp_path: Path, feature: str, emulated_as: str, told: str | None
) -> None:
    main = tmp_path / "model" / dotted.name
    shutil.copytree(dotted.parent, main.parent)
    replace_runner(main, ["neon", feature])
    command = Emulator.find().command(
        emulated_as,
        main.parent / RUNNER,
        *(str(main.parent / name) for name in (LIBRARY, WEIGHTS)),
        "--serve",
    )
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == (4 if told else 0)
    assert re.search(told or "^$", done.stderr.decode())


def test_the_bits_are_those_of_linux() -> None:
    header = LIBRARIES / "include/asm/hwcap.h"
    if not header.is_file():
        pytest.skip("the headers of Linux for aarch64 are not installed")
    found = header.read_text()
    for word, names in zip(("HWCAP", "HWCAP2"), HWCAPS, strict=True):
        for bit, name in enumerate(names):
            assert re.search(rf"^#define {word}_{name.upper()}\s+\(1 << {bit}\)", found, re.MULTILINE), name


def test_every_instruction_set_has_a_bit() -> None:
    for _, flag in linux_flags(TRIPLE, _AARCH64):
        assert flag in HWCAPS[0] + HWCAPS[1]


def test_a_damaged_artifact_is_refused(dotted: Path, tmp_path: Path) -> None:
    arm = arm_machine(ArmPreset.RPI5)
    for name in (LIBRARY, WEIGHTS, RUNNER):
        folder = tmp_path / name
        shutil.copytree(dotted.parent, folder)
        with (folder / name).open("r+b") as stream:
            stream.write(b"broken")
        with pytest.raises(InputError, match=rf"{name} is not the file that model\.json describes"):
            emulated(folder / dotted.name, arm)
        (folder / name).unlink()
        with pytest.raises(InputError, match=rf"cannot read .*{name}"):
            emulated(folder / dotted.name, arm)


def test_a_runner_that_is_not_listed_is_not_run(dotted: Path, tmp_path: Path) -> None:
    main = tmp_path / "model" / dotted.name
    shutil.copytree(dotted.parent, main.parent)
    main.write_text(replace(read_description(main), runner=None).dump(), encoding="utf-8")
    with pytest.raises(InputError, match="lists no runner"):
        emulated(main, arm_machine(ArmPreset.RPI5))
    runner = main.parent / RUNNER
    shutil.copyfile("/bin/true", runner)
    facts = FileFacts(runner.stat().st_size, sha256_file(runner))
    main.write_text(replace(read_description(main), runner=facts).dump(), encoding="utf-8")
    with pytest.raises(InputError, match="runner is no program for aarch64"):
        emulated(main, arm_machine(ArmPreset.RPI5))


def test_what_runs_is_what_was_checked(dotted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that change, or lose their mode, after the check make no difference."""
    main = tmp_path / "model" / dotted.name
    shutil.copytree(dotted.parent, main.parent)
    (main.parent / RUNNER).chmod(0o600)
    before = Emulator.command

    def changing(self: Emulator, *arguments: Any) -> list[str]:
        for name in (LIBRARY, WEIGHTS, RUNNER):
            (main.parent / name).unlink()
            (main.parent / name).write_bytes(b"other code")
        return before(self, *arguments)

    x = np.ones((5, 70), np.int8)
    first = emulated(dotted, arm_machine(ArmPreset.RPI5))
    monkeypatch.setattr(Emulator, "command", changing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    second = emulated(main, arm_machine(ArmPreset.RPI5))
    np.testing.assert_array_equal(first.run({"x": x})["y"], second.run({"x": x})["y"])
    assert list((tmp_path / "temporary").iterdir()) == []
    first.close()
    second.close()


@FULL
def test_a_residual_sum_and_its_scale(tmp_path: Path) -> None:
    """An argument of the epilogue that is a constant of the whole batch's shape would not be one: batch 1."""
    arm, window = arm_machine(ArmPreset.RPI5), WINDOWS["1x1"]
    weights, bias, multiplier = integers(16, 16, 8, 1, 1)
    step = AddTensor("int8", scale=0.5, zero_point=2)
    workload = Conv(window, (8, 16), data="int8", zero_point=ZERO, epilogue=replace(QUANTIZED, steps=(step,)))
    rng = np.random.default_rng(3)
    skip = rng.integers(-128, 128, (1, *window.output, 16)).astype(np.int8)
    data = rng.integers(-128, 128, (1, window.height, window.width, 8)).astype(np.int8)
    main = library(
        workload,
        arm,
        tmp_path,
        (data.shape[1:], "int8"),
        weights,
        [bias, multiplier, skip],
        (*window.output, 16),
        batch=1,
    )
    sums = (data.astype(np.int64) @ weights[:, :, 0, 0].astype(np.int64).T + bias).astype(np.float32)
    value = sums * multiplier + np.float32(0.5) * (skip.astype(np.float32) - 2)
    expected = np.clip(np.rint(value) + 3, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(run(main, arm, data), expected)


def test_bounds_keep_what_is_no_number(tmp_path: Path) -> None:
    """Also in a tail of two channels, and in the wrong order the upper bound wins."""
    arm = arm_machine(ArmPreset.RPI5)
    rng = np.random.default_rng(4)
    weights, data = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 22), (5, 8)))
    data[1, 3] = np.nan
    for low, high in ((-1.0, 1.0), (2.0, -1.0)):
        workload = Dense((8, 22), epilogue=Epilogue(steps=(Clip(low, high),)))
        folder = tmp_path / str(low)
        folder.mkdir()
        main = library(workload, arm, folder, ((8,), "float32"), weights, [], (22,))
        expected = np.clip(data @ weights, np.float32(low), np.float32(high))
        assert np.isnan(expected).sum() == 22
        np.testing.assert_allclose(run(main, arm, data), expected, rtol=1e-5, atol=1e-6)
