"""Plans: what they hold, what shares memory, and what cannot be planned."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.data import TensorSpec
from greencc.core.errors import InputError
from greencc.targets._tvm import dims
from greencc.targets._tvm.dims import constant, symbol
from greencc.targets._tvm.engine import TvmEngine
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.pipeline import lower_to_kernels
from greencc.targets._tvm.plan import Place
from greencc.targets._tvm.planning import Planned, make_plan
from greencc.targets._tvm.storage import Lifetime, assign

from .conftest import FLOAT, Case

Write = Callable[[Case, Path], Path]


def _plan(case: Case, machine: Machine) -> Planned:
    lowered = lower_to_kernels(case.module, machine)
    return make_plan(lowered, [spec.name for spec in case.inputs], [spec.name for spec in case.outputs])


def _chain(body: Callable[[Any, Any, Any, Any], Any], shape: tuple[Any, ...] = ("n", 16)) -> Case:
    """A module of ordinary operators: `body(builder, n, m, x)` gives the result."""
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    sizes = {"n": n, "m": m, "2n": n * 2}
    x = relax.Var("x", relax.TensorType([sizes.get(size, size) for size in shape], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder, n, m, x))
        builder.emit_func_output(result)
    return Case(builder.get(), (TensorSpec("x", FLOAT, shape),), (TensorSpec("y", FLOAT, None),), {})


def test_mixed(mixed: Case, machine: Machine) -> None:
    planned = _plan(mixed, machine)
    plan = planned.plan
    assert plan.symbols == ("n",)
    called = [plan.symbol(step) for step in plan.steps]
    assert called[0] == "doubling"
    assert called[3:] == ["copy", "copy", "copy"]
    places = {name: plan.tensors[number].place for name, number in plan.outputs}
    assert set(places.values()) == {Place.OUTPUT}
    # The input is seen as [n, 16] without being moved.
    first = plan.tensors[plan.steps[0].args[0]]
    assert (first.place, first.shape) == (Place.INPUT, (symbol(0), constant(16)))
    assert plan.weights_bytes == 64
    assert [offset for offset, _ in planned.constants] == [0]


def test_a_chain_needs_two_buffers(machine: Machine) -> None:
    def body(builder: Any, n: Any, m: Any, x: Any) -> Any:
        from tvm import relax

        for _ in range(6):
            x = builder.emit(relax.op.nn.softmax(x))
        return x

    plan = _plan(_chain(body), machine).plan
    assert len(plan.steps) == 6
    assert len(plan.storages) == 2
    assert [dims.evaluate(size, [5]) for size in plan.storages] == [5 * 64] * 2


def test_equal_constants_are_kept_once(machine: Machine) -> None:
    def body(builder: Any, n: Any, m: Any, x: Any) -> Any:
        from tvm import relax

        for values in (np.ones(16), np.ones(16), np.zeros(16)):
            x = builder.emit(relax.op.nn.softmax(relax.op.add(x, relax.const(values.astype(np.float32)))))
        return x

    planned = _plan(_chain(body), machine)
    assert planned.plan.weights_bytes == 128


def test_dimensions_that_must_agree(write: Write, tmp_path: Path) -> None:
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    a = relax.Var("a", relax.TensorType((n * 2, 3), "float32"))
    b = relax.Var("b", relax.TensorType((n, 3), "float32"))
    with builder.function("main", [a, b]):
        with builder.dataflow():
            doubled = builder.emit(relax.op.concat([b, b], 0))
            result = builder.emit_output(relax.op.add(a, doubled))
        builder.emit_func_output(result)
    inputs = (TensorSpec("a", FLOAT, (None, 3)), TensorSpec("b", FLOAT, ("n", 3)))
    engine = TvmEngine(write(Case(builder.get(), inputs, (TensorSpec("y", FLOAT, None),), {}), tmp_path), 1)
    assert [spec.shape for spec in engine.inputs] == [(None, 3), ("n", 3)]
    first, second = np.ones((4, 3), np.float32), np.full((2, 3), 2, np.float32)
    np.testing.assert_array_equal(engine.run({"a": first, "b": second})["y"], np.full((4, 3), 3))
    with pytest.raises(InputError, match="input 'a' has 4 as dimension 0, the model takes 6 there"):
        engine.run({"a": first, "b": np.ones((3, 3), np.float32)})
    engine.close()


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int64", "float64"])
def test_types(write: Write, tmp_path: Path, dtype: str) -> None:
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 5), dtype))
    fixed = np.array([1, 0, 1, 1, 0]).astype(dtype)
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.equal(x, relax.const(fixed, dtype)))
        builder.emit_func_output(result)
    case = Case(
        builder.get(),
        (TensorSpec("x", np.dtype(dtype), ("n", 5)),),
        (TensorSpec("y", np.dtype(bool), None),),
        {},
    )
    engine = TvmEngine(write(case, tmp_path), 2)
    values = np.random.default_rng(0).integers(0, 2, (7, 5)).astype(dtype)
    got = engine.run({"x": values})["y"]
    assert got.dtype == bool
    np.testing.assert_array_equal(got, values == fixed)
    engine.close()


def test_what_tvm_has_no_code_for(write: Write, tmp_path: Path) -> None:
    """Comparing booleans passes TVM's checks of types, and then gives code that LLVM refuses."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "bool"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.equal(x, x))
        builder.emit_func_output(result)
    spec = TensorSpec("x", np.dtype(bool), (4,))
    with pytest.raises(InputError, match="TVM cannot compile this model: LLVM module verification failed"):
        write(Case(builder.get(), (spec,), (replace(spec, name="y"),), {}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_take_sizes(write: Write, tmp_path: Path) -> None:
    """A kernel may be told a size that no buffer of its own shows."""
    from tvm import relax, tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name("fill")
        T.func_attr({"global_symbol": "fill", "tirx.noalias": True, "tirx.is_scheduled": True})
        size = T.arg("size", T.int64())
        handle = T.arg("o", T.handle())
        output = T.match_buffer(handle, (3,), "int64")
        with T.serial(0, 3) as i:
            T.buffer_store(output, size + i, [i])
    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 4), "float32"))
    kernel = builder.add_func(ib.get(), "fill")
    with builder.function("main", [x]):
        with builder.dataflow():
            call = relax.call_tir(kernel, relax.Tuple([n * 2]), relax.TensorType((3,), "int64"))
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    case = Case(
        builder.get(), (TensorSpec("x", FLOAT, ("n", 4)),), (TensorSpec("y", np.dtype("int64"), (3,)),), {}
    )
    engine = TvmEngine(write(case, tmp_path), 1)
    for count in (4, 9):
        got = engine.run({"x": np.zeros((count, 4), np.float32)})["y"]
        assert got.tolist() == [2 * count, 2 * count + 1, 2 * count + 2]
    engine.close()


def test_sorting_needs_the_runtime(machine: Machine) -> None:
    def body(builder: Any, n: Any, m: Any, x: Any) -> Any:
        from tvm import relax

        return builder.emit(relax.op.sort(x, -1))

    with pytest.raises(InputError, match="sort"):
        _plan(_chain(body), machine)


def test_sizes_that_depend_on_data(machine: Machine) -> None:
    def body(builder: Any, n: Any, m: Any, x: Any) -> Any:
        from tvm import relax

        return builder.emit(relax.op.nonzero(x))

    with pytest.raises(InputError, match="call_pure_packed has no kernel"):
        _plan(_chain(body), machine)


def test_an_input_of_any_shape(machine: Machine) -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(dtype="float32", ndim=2))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    case = Case(builder.get(), (TensorSpec("x", FLOAT, None),), (TensorSpec("y", FLOAT, None),), {})
    with pytest.raises(InputError, match="input 'x': its shape is not known before it runs"):
        _plan(case, machine)


def test_a_dimension_without_a_source(machine: Machine) -> None:
    with pytest.raises(InputError, match="dimension 'n' cannot be told from the inputs' shapes"):
        _plan(_chain(lambda builder, n, m, x: x, ("2n", 16)), machine)


def test_conditions(machine: Machine) -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    flag = relax.Var("flag", relax.TensorType((), "bool"))
    with builder.function("main", [x, flag]):
        result = builder.emit(relax.If(flag, relax.op.add(x, x), x))
        builder.emit_func_output(result)
    specs = (TensorSpec("x", FLOAT, (2,)), TensorSpec("flag", np.dtype(bool), ()))
    with pytest.raises(InputError, match=r"If|condition"):
        _plan(Case(builder.get(), specs, (TensorSpec("y", FLOAT, None),), {}), machine)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 50), st.integers(0, 20), st.integers(0, 5)), max_size=25
    ),
    st.integers(0, 40),
)
@settings(deadline=None)
def test_tensors_alive_together_never_share(rows: list[tuple[int, int, int, int]], batch: int) -> None:
    lifetimes = [
        Lifetime(dims.product([symbol(0)] if kind else [], size), first, first + length)
        for kind, size, first, length in rows
    ]
    buffers, sizes = assign(lifetimes, 1)
    for number, (life, buffer) in enumerate(zip(lifetimes, buffers, strict=True)):
        assert dims.evaluate(sizes[buffer], [batch]) >= dims.evaluate(life.size, [batch])
        for other, other_buffer in zip(lifetimes[:number], buffers[:number], strict=True):
            if life.first <= other.last and other.first <= life.last:
                assert buffer != other_buffer


def test_expressions_of_tvm() -> None:
    from tvm import tirx

    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    names = {"n": 0, "m": 1}
    cases = [
        (n + 1, lambda n, m: n + 1),
        ((n * 3 - m) // 2, lambda n, m: (n * 3 - m) // 2),
        (tirx.floormod(n, 4) + tirx.max(n, m) - tirx.min(n, 2), lambda n, m: n % 4 + max(n, m) - min(n, 2)),
        (tirx.truncdiv(n - 9, 2), lambda n, m: int((n - 9) / 2)),
        (tirx.truncmod(n - 9, 4), lambda n, m: (n - 9) - int((n - 9) / 4) * 4),
    ]
    chooser = random.Random(0)
    for expression, expected in cases:
        code = dims.from_tvm(expression, lambda var: names[var.name])
        for _ in range(50):
            values = [chooser.randrange(30), chooser.randrange(30)]
            assert dims.evaluate(code, values) == expected(*values), (str(expression), values)
    with pytest.raises(ValueError, match="cannot be computed"):
        dims.from_tvm(n << 2, lambda var: 0)
    deep: Any = n
    for _ in range(40):
        deep = tirx.max(m, deep + 1)
    with pytest.raises(ValueError, match="too deep"):
        dims.from_tvm(tirx.max(m, deep), lambda var: 0)
