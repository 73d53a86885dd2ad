"""The tvm-cpu target: what is claimed of the generated kernels, and what an artifact needs to be opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from greencc.core.capabilities import Capabilities, ElementType
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.core.loading import load_model
from greencc.targets import TvmCpuTarget, format_spec, make_target
from greencc.targets._ort_facts import RuntimeFacts, runtime_facts
from greencc.targets._tvm.building import tensor_specs
from greencc.targets._tvm.capabilities import INPUT_OPS, MAX_OPSET, MOVE_OPS, tvm_capabilities
from greencc.targets._tvm.machine import Machine

from .networks import WEIGHTED, chain, residual, static_int8

RUNTIME = RuntimeFacts(
    "1.99.0",
    25,
    12,
    frozenset({"com.microsoft::Gelu", "ai.onnx::Gelu", "ai.onnx::Mish"}),
    frozenset({"Conv"}),
)
V3 = frozenset({"avx2", "fma"})
V4 = V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
VNNI = Machine("x86_64-linux-gnu", "znver4", V4 | {"avx512vnni"})
AVX_VNNI = Machine("x86_64-linux-gnu", "alderlake", V3 | {"avxvnni"})
OLD = Machine("x86_64-linux-gnu", "haswell", V3)
OLDEST = Machine("x86_64-linux-gnu", "x86-64", frozenset())
PI5 = Machine("aarch64-linux-gnu", "cortex-a76", frozenset({"neon", "dotprod"}))
PI4 = Machine("aarch64-linux-gnu", "cortex-a72", frozenset({"neon"}))
RISCV = Machine("riscv64-linux-gnu", "generic", frozenset())

here = pytest.mark.skipif(TvmCpuTarget().missing() is not None, reason=str(TvmCpuTarget().missing()))


def claimed(machine: Machine) -> Capabilities:
    return tvm_capabilities(machine, RUNTIME, ["apache-tvm 0.27"])


def test_specs_in_both_directions() -> None:
    assert make_target("tvm-cpu:threads=2") == TvmCpuTarget(threads=2)
    assert format_spec(TvmCpuTarget(threads=2)) == "tvm-cpu:threads=2"
    assert format_spec(TvmCpuTarget()) == "tvm-cpu"


# capabilities


@pytest.mark.parametrize(
    ("machine", "activation", "bits", "lanes"),
    [
        (VNNI, ElementType.UINT8, 8, 16),
        (AVX_VNNI, ElementType.UINT8, 8, 8),
        (OLD, ElementType.UINT8, 7, 8),
        (PI5, ElementType.INT8, 8, 4),
        (PI4, ElementType.INT8, 8, 4),
    ],
)
def test_int8_has_the_form_of_the_instructions(
    machine: Machine, activation: ElementType, bits: int, lanes: int
) -> None:
    found = claimed(machine)
    int8 = found.int8
    assert int8 is not None
    assert (int8.activation, int8.weight_bits, int8.bias) == (activation, bits, ElementType.INT32)
    assert not int8.symmetric_activations
    assert int8.per_channel
    assert (int8.quantize_outputs, int8.quantize_skips) == (False, True)
    assert found.channel_alignment == lanes
    assert found.slow_denormals == machine.x86


@pytest.mark.parametrize("machine", [OLDEST, RISCV])
def test_nothing_is_claimed_of_integers_where_no_instruction_helps(machine: Machine) -> None:
    found = claimed(machine)
    assert found.int8 is None
    assert found.notes[-1] == "INT8: no integer kernels for this CPU (AVX2 or ARM NEON needed)"


def test_float_and_opset_are_what_both_importer_and_reference_know() -> None:
    found = claimed(VNNI)
    assert found.float16 == found.bfloat16 == frozenset()
    assert found.max_opset == MAX_OPSET
    assert tvm_capabilities(VNNI, RuntimeFacts("1.20", 21, 10, frozenset(), frozenset()), ()).max_opset == 21
    assert found.fused_ops == {"ai.onnx::Gelu"}
    assert not found.runs("com.microsoft", "Gelu")
    assert found.notes == ("apache-tvm 0.27", "reference values by onnxruntime 1.99.0")


# the form that passes give a graph


def producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def dequantized(value: ir.Value | None) -> ir.DataType | None:
    """The integer type that a value was dequantized from, or None."""
    node = producer(value)
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[2] is None:
        return None
    zero_point = node.inputs[2].const_value
    assert zero_point is not None
    return zero_point.dtype


@pytest.mark.parametrize(
    ("machine", "activation", "most"),
    [(VNNI, ir.DataType.UINT8, 127), (OLD, ir.DataType.UINT8, 64), (PI5, ir.DataType.INT8, 127)],
)
def test_passes_give_a_graph_of_that_form(machine: Machine, activation: ir.DataType, most: int) -> None:
    model = static_int8(tvm_capabilities(machine, runtime_facts(), ()))
    nodes = {node.name: node for node in model.graph}
    for name in WEIGHTED:
        data, weight, *bias = nodes[name].inputs
        assert dequantized(data) is activation, name
        assert dequantized(weight) is ir.DataType.INT8, name
        stored = producer(weight).inputs[0].const_value.numpy()  # type: ignore[union-attr]
        assert most // 2 < np.abs(stored.astype(int)).max() <= most
        for value in filter(None, bias):
            assert dequantized(value) is ir.DataType.INT32, name
        # Activation and residual sum come before anything is quantized.
        readers = {use.node.op_type for use in nodes[name].outputs[0].uses()}
        assert "QuantizeLinear" not in readers, name
    assert [dequantized(value) for value in nodes["skip"].inputs] == [None, activation]
    assert dequantized(nodes["pool"].inputs[0]) is activation
    assert {node.domain for node in model.graph} == {""}
    assert dequantized(nodes["flatten"].inputs[0]) is activation


# the kernels that are claimed


def steps(op: str, folder: Path, **attributes: object) -> list[str]:
    """Types of what runs behind the first of two convolutions around an operator, up to the second if there is one."""
    path = folder / "model.onnx"
    onnx.save(chain(op, **attributes), path)
    target = TvmCpuTarget(threads=1)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    rows = target.profile(target.build(target.lower(load_model(path)), folder / "artifact"), feeds, 1)
    kinds = {row.name: row.op_type for row in rows}
    assert kinds["before"] == "Conv:int8"
    assert kinds.get("after", "Conv:int8") == "Conv:int8"
    names = [row.name for row in rows]
    end = names.index("after") if "after" in names else len(names) - 1
    return [row.op_type for row in rows[names.index("before") + 1 : end]]


@here
@pytest.mark.parametrize("op", sorted(INPUT_OPS | MOVE_OPS))
def test_every_claimed_operator_works_on_integers(op: str, tmp_path: Path) -> None:
    if TvmCpuTarget().capabilities().int8 is None:
        pytest.skip("no integer kernels are claimed on this CPU")
    for kind in steps(op, tmp_path):
        # A move has no arithmetic: it must not go through floats.
        assert kind.endswith(":int8") or "quantize" not in kind


@here
@pytest.mark.parametrize(("op", "attributes"), [("Softmax", {"axis": -1}), ("Resize", {})])
def test_what_is_not_claimed_works_on_floats(op: str, attributes: dict[str, object], tmp_path: Path) -> None:
    if TvmCpuTarget().capabilities().int8 is None:
        pytest.skip("no integer kernels are claimed on this CPU")
    assert any("dequantize" in kind for kind in steps(op, tmp_path, **attributes))


# building and opening


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TensorProto.BFLOAT16, "input 'x' has type BFLOAT16, which the tvm targets do not take"),
        (TensorProto.STRING, "input 'x' has type STRING, which the tvm targets do not take"),
    ],
)
def test_types_that_code_cannot_take(kind: int, message: str) -> None:
    proto = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1])],
        [helper.make_tensor_value_info("y", kind, [1])],
    )
    model = ir.from_proto(helper.make_model(proto))
    with pytest.raises(InputError, match=message):
        tensor_specs(model.graph.inputs, "input")


def test_a_rank_must_be_known() -> None:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    with pytest.raises(InputError, match=r"output 'x' has no known rank.*\(compile for cpu, or export"):
        tensor_specs([value], "output")
    with pytest.raises(InputError, match="output 'y' has no known type"):
        tensor_specs([ir.Value(name="y", shape=ir.Shape([1]))], "output")


def test_specs_keep_names_and_unknown_dimensions() -> None:
    (found,) = tensor_specs(residual("N").graph.inputs, "input")
    assert (found.name, found.dtype, found.shape) == ("image", np.float32, ("N", 3, 12, 12))


@here
def test_an_onnx_file_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from greencc.targets._tvm import building

    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(residual()), path)
    target = TvmCpuTarget(threads=1)
    target.open(path).close()

    def never(*_: object) -> Path:
        raise AssertionError("compiled again")

    monkeypatch.setattr(building, "build_library", never)
    target.open(path).close()
    assert Path(target.memory_command(path, tmp_path / "feeds.npz", 1)[4]).name == "model.json"


@here
def test_an_artifact_is_opened_without_tvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TvmCpuTarget(threads=1)
    artifact = target.build(target.lower(residual()), tmp_path / "artifact")
    onnx.save(ir.to_proto(residual()), tmp_path / "model.onnx")
    monkeypatch.setattr(TvmCpuTarget, "missing", lambda self: "apache-tvm is not installed")
    assert target.missing_to_open() is None
    target.open(artifact).close()
    with pytest.raises(
        UnavailableError, match="the tvm-cpu target cannot run here: apache-tvm is not installed"
    ):
        target.open(tmp_path / "model.onnx")


@here
@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_files_that_were_changed_are_not_loaded(tmp_path: Path, name: str) -> None:
    target = TvmCpuTarget(threads=1)
    artifact = target.build(target.lower(residual()), tmp_path)
    path = artifact.parent / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        target.open(artifact)
    path.unlink()
    with pytest.raises(InputError, match=name):
        target.open(artifact)


@here
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": 99}', b"{" * 100_000])
def test_descriptions_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.json"):
        TvmCpuTarget(threads=1).open(path)


def test_more_cores_than_a_library_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greencc.core.machine.usable_threads", lambda *_: 384)
    target = TvmCpuTarget()
    assert (target.used_threads(), target.beside().threads, target.with_threads(300).threads) == (
        256,
        256,
        256,
    )
    assert TvmCpuTarget(threads=256).used_threads() == 256
    with pytest.raises(UsageError, match="threads is 257") as caught:
        TvmCpuTarget(threads=257)
    assert "256" in (caught.value.hint or "")
