"""Batches in parts: how many samples, the same results as without, buffers that stop growing."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.targets._tvm import library
from greencc.targets._tvm.engine import TvmEngine
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.parts import StepBytes, part_of, samples_at_once
from greencc.targets._tvm.plan import Plan
from greencc.targets._tvm.planning import make_plan

from .conftest import Case
from .lowered import compile_model, parsed

PART = 3
HOST = Machine("x86_64-linux-gnu", "generic", frozenset(), cores=1, l2_bytes=1 << 20)
Open = Callable[[int, int], TvmEngine]


@pytest.mark.parametrize(
    ("steps", "part"),
    [
        ([], 0),
        ([StepBytes(0, 1000)], 0),
        # Half of 1 MiB holds five of the largest.
        ([StepBytes(100_000, 0), StepBytes(50_000, 0)], 5),
        # One sample is too large: one at a time all the same.
        ([StepBytes(6 << 20, 1 << 20), StepBytes(1 << 20, 2 << 20)], 1),
        # Weights of a megabyte for 10 kB of activations.
        ([StepBytes(10_000, 1 << 20)], 0),
        # Small layers: calls cost more than what is read again.
        ([StepBytes(1_000, 0)] * 50, 0),
        # 64 fit, 63 do.
        ([StepBytes((1 << 19) // 64, 0)], 0),
        ([StepBytes((1 << 19) // 63, 0)], 63),
    ],
)
def test_samples_at_once(steps: list[StepBytes], part: int) -> None:
    assert samples_at_once(steps, HOST) == part


def test_more_caches_hold_more_samples() -> None:
    steps = [StepBytes(100_000, 0), StepBytes(50_000, 0)]
    assert samples_at_once(steps, replace(HOST, cores=2)) == 10
    assert samples_at_once(steps, replace(HOST, l2_bytes=2 << 20)) == 10


def test_the_steps_of_a_plan(machine: Machine) -> None:
    plan = _plan(machine)
    # 32 KiB read and 32 KiB written, of 512 KiB; of 16 KiB.
    assert part_of(plan, replace(machine, l2_bytes=1 << 20)) == 8
    assert part_of(plan, replace(machine, l2_bytes=32 << 10)) == 1


def test_an_output_without_rows_keeps_batches_whole(mixed: Case, machine: Machine) -> None:
    from greencc.targets._tvm.pipeline import lower_to_kernels

    names = [[spec.name for spec in specs] for specs in (mixed.inputs, mixed.outputs)]
    plan = make_plan(lower_to_kernels(mixed.module, machine), *names).plan
    assert part_of(plan, replace(machine, l2_bytes=1 << 10)) == 0


def _plan(machine: Machine) -> Plan:
    """A Relu of [n, 8192] float32."""
    from tvm import relax, tirx

    from greencc.targets._tvm.pipeline import lower_to_kernels

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), 8192), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(result)
    return make_plan(lower_to_kernels(builder.get(), machine), ["x"], ["y"]).plan


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    # Values on a grid: sums are exact in any order, so that results can be compared bit by bit.
    return {
        "w": rng.integers(-4, 5, (8, 4, 3, 3)).astype(np.float32),
        "m": rng.integers(-4, 5, (8, 5)).astype(np.float32),
        "b": rng.integers(-4, 5, (1, 8, 1, 1)).astype(np.float32),
    }


BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) image = Add(r, b)"
    " p = GlobalMaxPool(image) f = Flatten(p) logits = MatMul(f, m) odd = Softmax(logits)"
)


@pytest.fixture(scope="module")
def opened(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """The same model with batches in parts of some size (0: whole), and some threads."""
    made: dict[int, Path] = {}

    def opened(part: int, threads: int) -> TvmEngine:
        if part not in made:
            folder = tmp_path_factory.mktemp(f"part{part}")
            model = parsed(BODY, _weights(), "float[N,4,7,7] x", "float image, float logits, float odd")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(library, "part_of", lambda plan, machine: part)
                compiled = compile_model(model, machine, folder, None)
            assert compiled.lowered.samplewise
            made[part] = folder / "model.json"
            assert json.loads(made[part].read_text())["part"] == part
        return TvmEngine(made[part], threads)

    return opened


def _feeds(samples: int) -> dict[str, Array]:
    values = np.random.default_rng(samples).integers(-8, 9, (samples, 4, 7, 7))
    return {"x": values.astype(np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_give_what_the_whole_gives(opened: Open, threads: int) -> None:
    whole, parted = opened(0, threads), opened(PART, threads)
    # A row of `logits` is 20 bytes: most parts of it start where buffers are not aligned.
    for samples in (0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 2, 97):
        feeds = _feeds(samples)
        expected, found = whole.run(feeds), parted.run(feeds)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_array_equal(found[name], array, err_msg=f"{name} of {samples}")


def test_parts_of_one(opened: Open) -> None:
    expected, found = opened(0, 1).run(_feeds(5)), opened(1, 1).run(_feeds(5))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_profiles_are_of_all_parts(opened: Open) -> None:
    engine = opened(PART, 1)
    few = sum(row.microseconds for row in engine.profile(_feeds(1), 5))
    many = sum(row.microseconds for row in engine.profile(_feeds(40 * PART), 5))
    assert many > few > 0


def test_shapes_are_checked_before_parts_run(opened: Open) -> None:
    with pytest.raises(InputError, match="x"):
        opened(PART, 1).run({"x": np.zeros((10, 4, 7, 8), np.float32)})


def test_buffers_stop_growing(opened: Open) -> None:
    engine = opened(PART, 2)
    batches = [_feeds(samples) for samples in (3 * PART + 2, 1, PART, 50, 2, PART + 1)]
    for feeds in batches:
        engine.run(feeds)
    before = _mapped()
    for turn in range(200):
        engine.run(batches[turn % len(batches)])
    # One page list of the allocator, not a buffer per run.
    assert _mapped() - before < 1 << 20


def _mapped() -> int:
    """Bytes of this process's address space that hold data."""
    text = Path("/proc/self/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) << 10


def test_a_plan_whose_outputs_have_no_rows_is_refused(mixed: Case, built: Path, machine: Machine) -> None:
    """`mixed` has an output that is constant: it cannot come in parts."""
    from greencc.targets._tvm.pipeline import lower_to_kernels

    names = [[spec.name for spec in specs] for specs in (mixed.inputs, mixed.outputs)]
    plan = make_plan(lower_to_kernels(mixed.module, machine), *names).plan
    code = ctypes.CDLL(str(built.parent / "model.so"))
    error, handle = ctypes.create_string_buffer(200), ctypes.c_void_p()
    weights = os.fsencode(built.parent / "weights.bin")
    for part, expected in ((0, 0), (2, 4)):
        data = replace(plan, part=part).encode()
        status = code.greencc_open_plan(
            data, ctypes.c_size_t(len(data)), weights, 1, ctypes.byref(handle), error, ctypes.c_size_t(200)
        )
        assert status == expected
        code.greencc_close(handle)
    assert b"do not come in parts" in error.value
