"""Parts of the backends that need no process: ONNX facts, stretches, messages, the agent in a zip file."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from greencc.agent import wire
from greencc.agent.backends import driving
from greencc.agent.backends.bindings_engine import kind_of
from greencc.agent.backends.onnx_io import OnnxFacts, read_facts
from greencc.agent.backends.tensors import ITEM_BYTES, Spec
from greencc.agent.problem import Problem

from . import backend_support as support


def test_what_an_onnx_file_says(tmp_path: Path) -> None:
    kinds = [
        TensorProto.FLOAT,
        TensorProto.INT64,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        TensorProto.BFLOAT16,
    ]
    inputs = [helper.make_tensor_value_info(f"in:{kind}", kind, ["n", 3, None]) for kind in kinds]
    scalar = helper.make_tensor_value_info("scalar", TensorProto.UINT8, [])
    valued = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Identity", [each.name], [each.name + "'"], name="n" + each.name)
        for each in [*inputs, scalar]
    ]
    outputs = [
        helper.make_tensor_value_info(each.name + "'", each.type.tensor_type.elem_type, None)
        for each in inputs
    ]
    weights = [numpy_helper.from_array(np.zeros(2, np.float32), "w")]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Neg", ["w"], ["v"])], "g", [*inputs, scalar, valued], outputs, weights
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    facts = read_facts(str(tmp_path / "m.onnx"))
    found = [(spec.name, spec.dtype, spec.shape) for spec in facts.inputs]
    names = ["float32", "int64", "float16", "bool", "bfloat16"]
    wanted = [(f"in:{kind}", name, (-1, 3, -1)) for kind, name in zip(kinds, names, strict=True)]
    assert found == [*wanted, ("scalar", "uint8", ())]
    assert [spec.name for spec in facts.outputs] == [each.name for each in outputs]
    assert facts.op_types["nscalar"] == "Identity"
    assert "" not in facts.op_types


@given(st.data())
def test_damaged_onnx_files_are_problems(data: st.DataObject) -> None:
    """Cut off or changed anywhere: facts or one message, and nothing else."""
    whole = bytearray(_model_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    path = Path(_scratch()) / "m.onnx"
    path.write_bytes(content)
    found = _facts_or_problem(str(path))
    if isinstance(found, Problem):
        assert found.kind == "input"
    else:
        assert all(spec.dtype in ITEM_BYTES for spec in found.inputs)


def _facts_or_problem(path: str) -> OnnxFacts | Problem:
    try:
        return read_facts(path)
    except Problem as problem:
        return problem


_KEPT: dict[str, Any] = {}


def _scratch() -> str:
    import tempfile

    if "folder" not in _KEPT:
        _KEPT["folder"] = tempfile.TemporaryDirectory()
    return str(_KEPT["folder"].name)


def _model_bytes() -> bytes:
    if "bytes" not in _KEPT:
        _KEPT["bytes"] = support.net(Path(_scratch()) / "whole.onnx").read_bytes()[:2000]
    return bytes(_KEPT["bytes"])


def plan(**arguments: Any) -> driving.Plan:
    return driving.Plan({"into": "", **arguments})


def test_a_stretch_cycles_its_feeds_and_begins_where_it_should() -> None:
    ran: list[int] = []
    recorded = driving.drive(ran.append, 3, plan(runs=5, first=2))
    assert ran == [2, 0, 1, 2, 0]
    assert len(recorded.services) == len(recorded.latencies) == 5
    assert recorded.late == 0


def test_requests_wait_until_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: a run takes 2 s, and requests come every second."""
    moment = [100.0]

    def sleep(seconds: float) -> None:
        moment[0] += seconds

    def run(index: int) -> None:
        sleep(2.0)

    monkeypatch.setattr(driving.time, "monotonic", lambda: moment[0])
    monkeypatch.setattr(driving.time, "sleep", sleep)
    recorded = driving.drive(run, 1, plan(seconds=4.0, rate=1.0))
    assert list(recorded.services) == [2000.0] * 4
    # Those before have to be waited for, which counts: due at 0, 1, 2 and 3.
    assert list(recorded.latencies) == [2000.0, 3000.0, 4000.0, 5000.0]
    assert recorded.late == 1
    assert (recorded.begin, recorded.end) == (100.0, 108.0)
    idle = driving.drive(run, 1, plan(seconds=10.0, due=[1.0, 5.0, 12.0]))
    assert list(idle.latencies) == [2000.0, 2000.0]
    assert idle.end - idle.begin == 10.0


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"runs": 1, "seconds": 1},
        {"runs": "many"},
        {"seconds": float("nan")},
        {"runs": True},
        {"runs": 1, "rate": -1},
    ],
)
def test_stretches_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(Problem) as caught:
        plan(**arguments)
    assert caught.value.kind == "usage"


def test_times_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        driving.drive(lambda index: None, 1, plan(runs=1)).save(str(tmp_path / "none"))
    assert caught.value.kind == "disk"


def test_layers_are_told_by_their_nodes() -> None:
    types = {"conv1": "Conv", "relu1": "Relu", "add": "Add"}
    assert kind_of("conv1 + relu1", types) == "Conv+Relu"
    assert kind_of("{ForeignNode[conv1...add]}", types) == ""
    assert kind_of("Reformatting CopyNode for Input Tensor 0", types) == ""


@pytest.mark.parametrize("line", [b"[]\n", b"{\n", b'{"bytes": -1}\n', b'{"bytes": "x"}\n', b"\xff\n"])
def test_messages_that_are_none(line: bytes) -> None:
    with pytest.raises(Problem) as caught:
        wire.read(io.BytesIO(line))
    assert caught.value.kind == "internal"


def test_messages() -> None:
    stream = io.BytesIO()
    wire.write(stream, {"id": 1, "op": "run"}, b"12345")
    wire.write(stream, {"id": 2})
    whole = stream.getvalue()
    stream.seek(0)
    assert wire.read(stream) == ({"id": 1, "op": "run", "bytes": 5}, b"12345")
    assert wire.read(stream) == ({"id": 2, "bytes": 0}, b"")
    assert wire.read(stream) is None
    with pytest.raises(Problem, match="ended within"):
        wire.read(io.BytesIO(whole[:-30]))


def test_specs() -> None:
    spec = Spec("x", "float16", [2, 3])
    assert spec.nbytes == 12
    assert Spec.from_json(spec.as_json()).shape == (2, 3)


def test_workers_start_from_a_zip_file(tmp_path: Path) -> None:
    """As on a device, where there is nothing of greencc but the agent."""
    packed = tmp_path / "agent.pyz"
    source = support.REPOSITORY / "greencc" / "agent"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("greencc/__init__.py", "")
        for each in sorted(source.rglob("*.py")):
            file.write(each, Path("greencc/agent") / each.relative_to(source))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from greencc.agent.backends import find\n"
        "found = find('tvm', '/', {'PATH': '/usr/bin'}, '')\n"
        "print(found.facts()['implementation'], found.__class__.__module__, sys.modules['greencc'].__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(packed)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["tvm", "greencc.agent.backends.tvm", f"{packed}/greencc/__init__.py"]
