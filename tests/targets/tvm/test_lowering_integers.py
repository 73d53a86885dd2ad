"""Whole quantized graphs in machine code, against the integer reference: bit for bit, but for what it allows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from greencc.core.capabilities import Arithmetic
from greencc.verify.integer_reference import run_integer

from .kernels.product_runs import MACHINES, runnable, some
from .lowered import Compiled, Quantized, compile_model

RELU = "{y} = Relu({x})"
SAME = "<pads=[1,1,1,1]>"


def chain(dtype: str) -> Quantized:
    """Three channels, a depthwise convolution, a residual sum, a mean and a product."""
    net = Quantized(3, 8, 8, dtype)
    net.product("Conv", "x", "first", (12, 3, 3, 3), attributes="<strides=[2,2], pads=[0,0,1,1]>", tail=RELU)
    net.weights |= {"low": np.array(-7.0, np.float32), "high": np.array(9.0, np.float32)}
    net.product(
        "Conv",
        "first",
        "deep",
        (12, 1, 3, 3),
        attributes="<group=12, pads=[1,1,1,1]>",
        tail="{y} = Clip({x}, low, high)",
    )
    net.product("Conv", "deep", "point", (12, 12, 1, 1), bias="float32")
    net.product(
        "Conv",
        "point",
        "sum",
        (12, 12, 3, 3),
        attributes=SAME,
        bias="",
        tail="skip = DequantizeLinear(first, first_s, first_z) a = Add({x}, skip) {y} = Relu(a)",
        exact=False,
    )
    net.operator("GlobalAveragePool", ["sum"], "mean", grid=(net.scales["sum"] / 2.3, 90), exact=False)
    net.operator("Flatten", ["mean"], "flat")
    net.product("Gemm", "flat", "logits", (10, 12), attributes="<transB=1>")
    return net


def branches(dtype: str) -> Quantized:
    """One channel, groups, pools, a Concat and movements that keep the grid."""
    net = Quantized(1, 9, 9, dtype, seed=2)
    net.product("Conv", "x", "first", (8, 1, 5, 5), attributes="<pads=[2,2,2,2], dilations=[1,1]>")
    grid = (net.scales["first"] * 3, 77)
    net.product("Conv", "first", "left", (6, 4, 3, 3), attributes="<group=2, pads=[1,1,1,1]>", grid=grid)
    net.product("Conv", "first", "right", (5, 8, 1, 1), tail=RELU, grid=grid)
    net.operator("Concat", ["left", "right"], "both", attributes="<axis=1>")
    net.operator(
        "MaxPool", ["both"], "most", attributes="<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
    )
    net.operator(
        "AveragePool",
        ["most"],
        "some",
        attributes="<kernel_shape=[2,2], pads=[0,0,1,1]>",
        grid=(grid[0] / 1.7, 60),
        exact=False,
    )
    net.operator("Transpose", ["some"], "turned", attributes="<perm=[0,2,3,1]>")
    net.weights["rows"] = np.array([0, -1, 11], np.int64)
    net.operator("Reshape", ["turned"], "rows_of", extra="rows")
    net.product("MatMul", "rows_of", "product", (11, 7), axis=1, bias="", tail="{y} = Identity({x})")
    return net


def functions(dtype: str) -> Quantized:
    """Activations between integers."""
    net = Quantized(4, 5, 6, dtype, seed=3)
    silu = "g = Sigmoid({x}) {y} = Mul({x}, g)"
    hard = "h = HardSigmoid<alpha=0.16666667>({x}) {y} = Mul(h, {x})"
    net.product("Conv", "x", "silu", (9, 4, 3, 3), attributes=SAME, tail=silu, exact=False)
    net.product("Conv", "silu", "swish", (9, 1, 3, 3), attributes="<group=9>", tail=hard, exact=False)
    net.product("Conv", "swish", "leaky", (5, 9, 1, 1), tail="{y} = LeakyRelu<alpha=0.1>({x})", exact=False)
    net.operator("Sigmoid", ["leaky"], "gate", grid=(1 / 255, 0), exact=False)
    net.operator("Mul", ["leaky", "gate"], "gated", exact=False)
    net.operator("Add", ["gated", "leaky"], "added", exact=False)
    return net


NETS: dict[str, tuple[Callable[[str], Quantized], tuple[int, ...]]] = {
    "chain": (chain, (3, 8, 8)),
    "branches": (branches, (1, 9, 9)),
    "functions": (functions, (4, 5, 6)),
}


def _cases() -> list[object]:
    """The best machine and the one without integer instructions, each with its own type and the other; all of them
    in the full run."""
    names, cases = runnable(), []
    for machine in names:
        for net in NETS:
            for dtype in ("uint8", "int8"):
                core = machine == names[0] and (dtype == "uint8" or net == "branches")
                flipped = machine == "plain" and dtype == "uint8" and net == "chain"
                marks = () if core or flipped else pytest.mark.full
                cases.append(pytest.param(machine, net, dtype, marks=marks))
    return cases


def judge(net: Quantized, compiled: Compiled, samples: int, shape: tuple[int, ...]) -> None:
    """Every value on what the library itself computed before it."""
    feeds = net.feeds(samples, shape)
    got = compiled.run(feeds)
    wanted = run_integer(net.model(), feeds, given=got)
    for name in [*net.exact, *net.close]:
        assert got[name].dtype == net.dtype
        assert got[name].shape == wanted[name].shape
        # Neither stuck at a bound nor at the zero point: values say something.
        assert len(np.unique(got[name])) > 6, name
    for name in net.exact:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    for name in net.close:
        away = np.abs(got[name].astype(int) - wanted[name].astype(int))
        assert away.max() <= 1, name
        assert np.mean(away) < 0.02, name


@pytest.mark.parametrize(("machine", "name", "dtype"), _cases())
def test_every_value_is_that_of_the_reference(machine: str, name: str, dtype: str, tmp_path: Path) -> None:
    write, shape = NETS[name]
    net = write(dtype)
    compiled = compile_model(net.model(), MACHINES[machine], tmp_path)
    assert not compiled.lowered.findings
    for samples in (5, 1):
        judge(net, compiled, samples, shape)
    empty = compiled.run(net.feeds(0, shape))
    assert all(len(values) == 0 for values in empty.values())
    labels = [label for calls in compiled.lowered.kernels.values() for label in calls]
    weighted = [label for label in labels if label.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(weighted) == sum(line.count("_sum = ") for line in net.lines)
    assert all(label.arithmetic is Arithmetic.INT8 for label in labels)


_INSTRUCTIONS = {
    "vnni512": r"\bvpdpbusd\b.*zmm",
    "avx512bw": r"\bvpmaddubsw\b.*zmm",
    "vnni256": r"\bvpdpbusd\b.*ymm",
    "avx2": r"\bvpmaddwd\b.*ymm",
    "dotprod": r"\bsdot\b",
    "neon": r"\bsmlal",
}


@pytest.mark.parametrize("name", some(_INSTRUCTIONS, ["vnni512", "avx2", "dotprod"]))
def test_libraries_hold_integer_instructions(name: str, tmp_path: Path) -> None:
    """Disassembled: what lies in the file that is shipped."""
    machine = MACHINES[name]
    prefix = "" if machine.x86 else "aarch64-linux-gnu-"
    tools = [shutil.which(f"{prefix}{tool}") for tool in ("gcc", "objdump")]
    if not all(tools):
        pytest.skip(f"no {prefix}gcc or {prefix}objdump")
    net = Quantized(16, 8, 8, machine.activation)
    net.product("Conv", "x", "wide", (32, 16, 3, 3), attributes=SAME, tail=RELU)
    net.product("Conv", "wide", "deep", (32, 1, 3, 3), attributes="<group=32, pads=[1,1,1,1]>")
    compiled = compile_model(net.model(), machine, tmp_path, threads=None)
    labels = [label for calls in compiled.lowered.kernels.values() for label in calls]
    assert [label.arithmetic for label in labels] == [Arithmetic.INT8, Arithmetic.INT8]
    listing = subprocess.run(
        [str(tools[1]), "-d", str(compiled.library)], capture_output=True, text=True, check=True
    ).stdout
    assert len(re.findall(_INSTRUCTIONS[name], listing)) >= 8
    # Integers from end to end: nothing multiplies floats but the scales, which are not fused with anything.
    assert not re.search(r"\bvfn?m(add|sub)|\bfml[as]\b", listing)


def test_values_on_other_grids_are_moved_as_floats(tmp_path: Path) -> None:
    net = Quantized(4, 6, 6)
    net.product("Conv", "x", "left", (4, 4, 1, 1))
    net.product("Conv", "x", "right", (4, 4, 1, 1), grid=(net.scales["left"] * 1.9, 80))
    grid = (net.scales["left"] * 2.1, 90)
    net.operator("Concat", ["left", "right"], "both", attributes="<axis=1>", grid=grid, exact=False)
    net.operator(
        "MaxPool", ["both"], "most", attributes="<kernel_shape=[2,2]>", grid=(grid[0] * 1.3, 99), exact=False
    )
    compiled = compile_model(net.model(), MACHINES[runnable()[0]], tmp_path)
    judge(net, compiled, 3, (4, 6, 6))
