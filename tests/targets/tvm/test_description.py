"""`model.json` is read strictly: anything else is refused with the key that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.capabilities import Arithmetic
from greencc.core.data import TensorSpec
from greencc.core.errors import InputError
from greencc.core.machine import CpuInfo
from greencc.targets._tvm.description import Description, FileFacts, Label, labels_for, read_description
from greencc.targets._tvm.features import check_cpu

GIVEN = Description(
    inputs=(TensorSpec("x", np.dtype(np.float32), ("batch", 3, None)),),
    outputs=(TensorSpec("y", np.dtype(bool), ()),),
    triple="x86_64-linux-gnu",
    cpu="znver4",
    features=("avx2",),
    tvm="0.27",
    steps=(Label("conv", "Conv", Arithmetic.INT8),),
    library=FileFacts(10, "0" * 64),
    weights=FileFacts(0, "f" * 64),
    part=3,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(GIVEN.dump())
    assert read_description(path) == GIVEN
    assert read_description(path).dump() == GIVEN.dump()


def _change(*keys: str | int, to: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("schema", to="greencc.tvm/2"), "has schema 'greencc.tvm/2'"),
        (_change("inputs", to={}), "'inputs' is missing or malformed"),
        (_change("inputs", to=[1]), "'inputs' is missing"),
        (_change("inputs", 0, "shape", to=[-1]), "'inputs' is missing"),
        (_change("inputs", 0, "shape", to=[True]), "'inputs' is missing"),
        (_change("inputs", 0, "shape", to=[1] * 17), "'inputs' is missing"),
        (_change("inputs", 0, "shape", to=None), "'inputs' is missing"),
        (_change("outputs", 0, "dtype", to="object"), "outputs has the unknown type 'object'"),
        (_change("outputs", 0, "name", to=3), "'name' is missing"),
        (_change("features", to=["avx2", 3]), "'features' is missing"),
        (_change("kernels", 0, "arithmetic", to="int4"), "'arithmetic' is missing"),
        (_change("kernels", to=[{}] * 100_001), "'kernels' is missing"),
        (_change("files", to={}), "'files' is missing"),
        (_change("files", "model.so", "size", to=-1), "'files' is missing"),
        (_change("files", "model.so", "size", to=1.5), "'files' is missing"),
        (_change("files", "weights.bin", "sha256", to="F" * 64), "'files' is missing"),
        (_change("triple", to=None), "'triple' is missing"),
        (_change("part", to=-1), "'part' is missing"),
        (_change("part", to=1 << 32), "'part' is missing"),
        (_change("part", to=True), "'part' is missing"),
    ],
)
def test_malformed(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    path = tmp_path / "model.json"
    data = json.loads(GIVEN.dump())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_description(path)


def test_a_runner_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    given = replace(GIVEN, runner=FileFacts(3, "1" * 64))
    path.write_text(given.dump())
    assert read_description(path) == given
    data = json.loads(given.dump())
    data["files"]["other"] = data["files"]["runner"]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="'files' is missing or malformed"):
        read_description(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"3"])
def test_not_a_description(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not valid JSON|has schema None"):
        read_description(path)


def test_missing_or_large(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with pytest.raises(InputError, match="does not exist"):
        read_description(path)
    with path.open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    with pytest.raises(InputError, match="larger than 16 MB"):
        read_description(path)


def test_labels_of_calls() -> None:
    first, second, other = Label("a", "Conv"), Label("b", "Conv"), Label("c", "MatMul")
    found = labels_for(["k", "m", "k", "fused_add", "k"], {"k": [first, second], "m": [other]})
    assert found == (first, other, second, Label("fused_add", "fused_add"), second)


def _cpu(architecture: str, *flags: str) -> CpuInfo:
    return CpuInfo(architecture, "some core", "some vendor", frozenset(flags), 4, None)


def test_processors() -> None:
    check_cpu("model", "x86_64-linux-gnu", ["avx512vnni", "sse3"], _cpu("x86_64", "avx512_vnni", "pni"))
    check_cpu("model", "aarch64-linux-gnu", ["neon", "dotprod"], _cpu("aarch64", "asimd", "asimddp"))
    check_cpu("model", "armv7-linux-gnueabihf", ["neon", "hwdiv"], _cpu("armv7l", "neon", "idivt"))
    with pytest.raises(InputError, match=r"needs dotprod, which this processor \(some core\) does not have"):
        check_cpu("model", "aarch64-linux-gnu", ["neon", "dotprod"], _cpu("aarch64", "asimd"))
    with pytest.raises(InputError, match="compiled for aarch64, this machine is x86_64"):
        check_cpu("model", "aarch64-linux-gnu", [], _cpu("x86_64"))
    with pytest.raises(InputError, match="no libraries can be made for riscv64"):
        check_cpu("model", "riscv64-linux-gnu", [], _cpu("riscv64"))
