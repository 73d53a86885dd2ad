"""Damaged models are refused with a `GreenccError` or load; nothing else ever escapes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import parser

from greencc.core.describe import describe
from greencc.core.errors import GreenccError
from greencc.core.model import digest, load_model, save_model

SEEDS = tuple(
    parser.parse_model(text).SerializeToString()
    for text in (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,M] y)
        <float[2,3,1,1] w = {1.0,2.0,3.0,4.0,5.0,6.0}, float[2] b = {0.5,1.5}, int64[2] s = {0,-1}> {
            c = Conv <kernel_shape = [1, 1]> (x, w, b)
            r = Relu(c)
            y = Reshape(r, s)
        }""",
        """<ir_version: 8, opset_import: ["" : 16]>
        g (bool c, float[N,3] x) => (float[N,3] y) {
            n = Constant <value = int64 {4}> ()
            y = If (c) <
                then_branch = t () => (float[N,3] a) { w = Constant <value_floats = [1.0, 2.0, 3.0]> () a = Add(x, w) },
                else_branch = e () => (float[N,3] b) { b = Loop (n, , x) <
                    body = l (int64 i, bool k, float[N,3] v) => (bool k2, float[N,3] u) { k2 = Identity(k) u = Neg(v) }
                > }
            >
        }""",
        """<ir_version: 10, opset_import: ["" : 18, "lib" : 1, "com.microsoft" : 1]>
        g (float[N,T] x) => (float[N,T] y) {
            t = lib.f <alpha = 2.0> (x)
            u = com.microsoft.Gelu(t)
            q = Shape(u)
            z = Expand(t, q)
            y = Range_like(z, u)
        }
        <domain: "lib", opset_import: ["" : 18]> f <alpha> (a) => (b) {
            c = Constant <value_float : float = @alpha> ()
            b = Mul(a, c)
        }""".replace("Range_like", "Add"),
        """<ir_version: 9, opset_import: ["" : 19]>
        g (float[2,2] x) => (float[2,2] y)
        <int8[2,2] w = {1,-2,3,4}, float s = {0.1}, float t = {0.2}, uint8 z = {128}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            f = Cast <to = 1> (w)
            y = MatMul(d, f)
        }""",
    )
)
MUTATION = st.tuples(
    st.sampled_from(["set", "flip", "cut", "insert", "repeat", "number"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.integers(1, 24),
)


def mutated(content: bytes, mutations: list[tuple[str, float, int, int]]) -> bytes:
    data = bytearray(content)
    for kind, position, value, length in mutations:
        at = int(position * len(data)) if data else 0
        if kind == "set" and data:
            data[at] = value
        elif kind == "flip" and data:
            data[at] ^= 1 << value % 8
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = bytes([value]) * length
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "number":
            data[at : at + 9] = b"\xff" * 8 + b"\x7f"
    return bytes(data)


def survives(content: bytes) -> bool:
    """Load, describe, save and load again; return whether the model was accepted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content)
        try:
            model = load_model(path)
            describe(model)
        except GreenccError:
            return False
        saved = save_model(model, Path(folder) / "out.onnx")[0]
        assert digest(load_model(saved)) == digest(model)
        return True


def fields_of(message: Message) -> list[tuple[Message, FieldDescriptor]]:
    """Every field that is set, at any depth, with the message it is in."""
    found: list[tuple[Message, FieldDescriptor]] = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                found.extend(fields_of(inner))
    return found


def rewired(content: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """Change fields of a valid model: numbers, names, order, missing and repeated parts."""
    model = onnx.ModelProto.FromString(content)
    names = ["x", *(name for node in model.graph.node for name in (*node.input, *node.output))]
    numbers = [0, 1, -1, 2, 7, 16, 1 << 31, (1 << 63) - 1, -(1 << 63), 100_000]
    for pick, action, choice in edits:
        candidates = fields_of(model)
        if not candidates:
            break
        message, field = candidates[pick % len(candidates)]
        value = getattr(message, field.name)
        if action == 0:
            message.ClearField(field.name)
        elif field.is_repeated:
            index = choice % len(value)
            if action == 1:
                del value[index]
            elif action == 2 and field.type == field.TYPE_MESSAGE:
                value.add().CopyFrom(value[index])
            elif field.type == field.TYPE_STRING:
                value[index] = names[choice % len(names)]
            elif field.type == field.TYPE_INT64:
                value[index] = numbers[choice % len(numbers)]
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, names[choice % len(names)])
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, value[: choice % 9] * (choice % 3))
        elif field.type == field.TYPE_INT64:
            setattr(message, field.name, numbers[choice % len(numbers)])
        elif field.type == field.TYPE_INT32:
            setattr(message, field.name, numbers[choice % len(numbers)] % 23)
        elif field.type == field.TYPE_ENUM:
            setattr(message, field.name, field.enum_type.values[choice % len(field.enum_type.values)].number)
        elif field.type == field.TYPE_FLOAT:
            setattr(message, field.name, [float("nan"), float("inf"), -1e38, 0.0][choice % 4])
    return model.SerializeToString()


EDIT = st.tuples(st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 1000))


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_the_undamaged_seeds_load(seed: int) -> None:
    assert survives(SEEDS[seed])


@settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(st.sampled_from(SEEDS), st.lists(EDIT, min_size=1, max_size=4))
def test_rewired_models(seed: bytes, edits: list[tuple[int, int, int]]) -> None:
    survives(rewired(seed, edits))


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.binary(max_size=512))
def test_random_bytes(content: bytes) -> None:
    survives(content)


@pytest.mark.full
@settings(
    max_examples=10_000,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.sampled_from(SEEDS), st.lists(MUTATION, min_size=1, max_size=8))
def test_many_damaged_models(seed: bytes, mutations: list[tuple[str, float, int, int]]) -> None:
    survives(mutated(seed, mutations))


@pytest.mark.full
@settings(
    max_examples=5_000,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.sampled_from(SEEDS), st.lists(EDIT, min_size=1, max_size=6))
def test_many_rewired_models(seed: bytes, edits: list[tuple[int, int, int]]) -> None:
    survives(rewired(seed, edits))
