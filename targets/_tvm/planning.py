"""From a Relax function of kernel calls to a `Plan` and its constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.targets._tvm.arguments import unfit
from greencc.targets._tvm.dims import Dim, from_tvm, is_symbol, product, symbols_of
from greencc.targets._tvm.kernels.emit import ALONE
from greencc.targets._tvm.plan import ALIGNMENT, Kernel, Place, Plan, PlannedStep, PlannedTensor
from greencc.targets._tvm.storage import Lifetime, assign

if TYPE_CHECKING:
    from tvm.ir import IRModule

VIEWS = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")
"""Calls that keep the elements where they are."""

_HINT = "compile this model for cpu or openvino"


@dataclass(eq=False)
class _Root:
    """What owns memory: an input, a constant, or what a step writes."""

    place: Place
    index: int = 0
    offset: int = 0
    size: Dim = ()
    first: int = -1
    last: int = -1


@dataclass(eq=False)
class _Tensor:
    """A root's memory seen with a type and a shape."""

    root: _Root
    dtype: str
    code: tuple[int, int, int]
    shape: tuple[Dim, ...]
    number: int = -1


_Value = _Tensor | list["_Value"]


@dataclass
class _Call:
    kernel: int | None
    args: list[_Tensor | Dim]

    @property
    def tensors(self) -> list[_Tensor]:
        return [arg for arg in self.args if isinstance(arg, _Tensor)]


@dataclass(frozen=True)
class Planned:
    """A plan and the constants of its weights file, by offset."""

    plan: Plan
    constants: tuple[tuple[int, Array], ...]


def make_plan(module: IRModule, inputs: Sequence[str], outputs: Sequence[str]) -> Planned:
    """Plan the function ``main`` of a module that the passes of `pipeline` have gone over.

    Args:
        module: ``main`` has a single chain of bindings: kernel calls, views, tuples.
        inputs: Names of main's parameters.
        outputs: Names of what it returns.

    Raises:
        InputError: It has control flow, a call that is no kernel, or sizes that depend on data.
    """
    main = module["main"]
    planner = _Planner(module)
    planner.take_inputs(main.params, inputs)
    planner.walk(main.body)
    return planner.finish(planner.value(main.body.body), outputs)


@dataclass
class _Planner:
    module: Any
    symbols: list[Any] = field(default_factory=list)
    bound: set[int] = field(default_factory=set)
    values: dict[Any, _Value] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    signatures: list[Kernel] = field(default_factory=list)
    tensors: list[_Tensor] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    constants: dict[tuple[str, bytes], int] = field(default_factory=dict)
    arrays: list[tuple[int, Array]] = field(default_factory=list)
    inputs: list[tuple[str, _Tensor]] = field(default_factory=list)
    weights_bytes: int = 0

    def take_inputs(self, params: Sequence[Any], names: Sequence[str]) -> None:
        if len(params) != len(names):
            raise ValueError(f"main has {len(params)} parameters, {len(names)} names were given")
        for number, (param, name) in enumerate(zip(params, names, strict=True)):
            tensor = self.new(param.ty, _Root(Place.INPUT, number), f"input {name!r}", define=True)
            self.values[param] = tensor
            self.inputs.append((name, tensor))
            self.bound |= {dim[1] for dim in tensor.shape if is_symbol(dim)}
        free = {index for _, tensor in self.inputs for dim in tensor.shape for index in symbols_of(dim)}
        for index in sorted(free - self.bound):
            raise InputError(
                f"dimension {self.symbols[index].name!r} cannot be told from the inputs' shapes", hint=_HINT
            )

    def walk(self, body: Any) -> None:
        if type(body).__name__ != "SeqExpr":
            return
        for block in body.blocks:
            for binding in block.bindings:
                where = f"value {binding.var.name!r}"
                if type(binding).__name__ == "MatchCast":
                    self.values[binding.var] = self.cast(binding, where)
                else:
                    self.values[binding.var] = self.expression(binding.value, binding.var, where)

    def cast(self, binding: Any, where: str) -> _Value:
        """A cast to a shape that is known from the inputs anyway."""
        value = self.value(binding.value)
        if isinstance(value, list):
            raise InputError(f"{where}: a tuple is cast, which cannot be planned", hint=_HINT)
        cast = self.new(binding.var.ty, value.root, where)
        if cast.shape != value.shape:
            raise InputError(f"{where}: its shape depends on the data, which cannot be planned", hint=_HINT)
        return value

    def expression(self, expr: Any, var: Any, where: str) -> _Value:
        kind = type(expr).__name__
        if kind == "If":
            raise InputError(f"{where}: a condition (If, Loop) cannot be planned", hint=_HINT)
        if kind != "Call":
            return self.value(expr, where)
        name = str(getattr(expr.op, "name", None) or getattr(expr.op, "name_hint", type(expr.op).__name__))
        if name == "relax.call_tir":
            return self.call_tir(expr, where)
        if name in VIEWS:
            viewed = self.value(expr.args[0], where)
            assert isinstance(viewed, _Tensor)
            return self.new(var.ty, viewed.root, where)
        raise InputError(f"{where}: {name} has no kernel", hint=_HINT)

    def value(self, expr: Any, where: str = "the result") -> _Value:
        kind = type(expr).__name__
        if kind in ("Var", "DataflowVar"):
            known: _Value = self.values[expr]
            return known
        if kind == "Tuple":
            return [self.value(part, where) for part in expr.fields]
        if kind == "TupleGetItem":
            parts = self.value(expr.tuple_value, where)
            assert isinstance(parts, list)
            part: _Value = parts[expr.index]
            return part
        if kind in ("GenericConst", "Constant"):
            return self.constant(expr, where)
        if kind == "ShapeExpr":
            return []  # The second argument of views; their shape is in their type.
        raise InputError(f"{where}: {kind} cannot be planned", hint=_HINT)

    def new(self, ty: Any, root: _Root, where: str, *, define: bool = False) -> _Tensor:
        """A tensor of a Relax type; `define` says that new symbolic dimensions get their values here."""
        shape = getattr(getattr(ty, "shape", None), "values", None)
        if type(ty).__name__ != "TensorType" or shape is None:
            raise InputError(f"{where}: its shape is not known before it runs ({ty})", hint=_HINT)
        try:
            dims = tuple(from_tvm(size, self.symbol_index(define)) for size in shape)
        except ValueError as error:
            raise InputError(f"{where}: {error}", hint=_HINT) from error
        dtype = str(getattr(ty.dtype, "dtype", ty.dtype))
        tensor = _Tensor(root, dtype, _code(dtype, where), dims)
        if root.size == () and root.place is not Place.CONSTANT:
            root.size = product(dims, _item_bytes(tensor.code))
        return tensor

    def symbol_index(self, define: bool) -> Callable[[Any], int]:
        def find(var: Any) -> int:
            for index, known in enumerate(self.symbols):
                if known.same_as(var):
                    return index
            if not define:
                raise ValueError(f"the size {var.name} depends on the data")
            self.symbols.append(var)
            return len(self.symbols) - 1

        return find

    def constant(self, expr: Any, where: str) -> _Tensor:
        source = expr.value if hasattr(expr, "value") else expr.data
        array = np.ascontiguousarray(source.numpy())
        key = (str(array.dtype), array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.weights_bytes
            self.arrays.append((self.weights_bytes, array))
            self.weights_bytes += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return self.new(expr.ty, _Root(Place.CONSTANT, offset=self.constants[key]), where)

    def call_tir(self, expr: Any, where: str) -> _Value:
        symbol = expr.args[0].name_hint
        packed = _packed_calls(self.module[symbol])
        if packed:
            raise InputError(f"{where}: {symbol} calls {packed[0]}, which needs TVM's runtime", hint=_HINT)
        reads = [self.argument(arg, where) for arg in expr.args[1]]
        out = expr.ty_args[0]
        single = type(out).__name__ == "TensorType"
        writes = [
            self.new(ty, _Root(Place.STORAGE), f"{where} ({symbol})")
            for ty in ([out] if single else out.fields)
        ]
        pattern = "".join("r" if isinstance(arg, _Tensor) else "i" for arg in reads) + "w" * len(writes)
        kernel = Kernel(symbol, pattern, int(self.module[symbol].attrs.get(ALONE, 0)))
        self.check_sizes(self.module[symbol], expr, where)
        number = self.kernels.setdefault(symbol, len(self.kernels))
        if number == len(self.signatures):
            self.signatures.append(kernel)
        elif self.signatures[number] != kernel:
            raise ValueError(f"{symbol} is called with different arguments")
        self.calls.append(_Call(number, [*reads, *writes]))
        return writes[0] if single else list(writes)

    def check_sizes(self, function: Any, call: Any, where: str) -> None:
        """Kernels do not look at the shapes of their arguments: they have to be those that the code is for."""
        out = call.ty_args[0]
        stored = [out] if type(out).__name__ == "TensorType" else list(out.fields)
        given = [*(_given(arg) for arg in call.args[1]), *(list(ty.shape) for ty in stored)]
        problem = unfit(function, given)
        if problem is not None:
            raise InputError(f"{where}: {call.args[0].name_hint} {problem}", hint=_HINT)

    def argument(self, expr: Any, where: str) -> _Tensor | Dim:
        """A tensor, or an integer: a size that the kernel is told."""
        if type(expr.ty).__name__ == "PrimType":
            try:
                return from_tvm(expr, self.symbol_index(False))
            except ValueError as error:
                raise InputError(f"{where}: {error}", hint=_HINT) from error
        (tensor,) = self.flat([self.value(expr, where)], where)
        return tensor

    def flat(self, values: Sequence[_Value], where: str) -> list[_Tensor]:
        for value in values:
            if isinstance(value, list):
                raise InputError(f"{where}: a kernel takes a tuple, which cannot be planned", hint=_HINT)
        return list(values)  # type: ignore[arg-type]

    def finish(self, result: _Value, names: Sequence[str]) -> Planned:
        results = self.flat(result if isinstance(result, list) else [result], "the result")
        if len(results) != len(names):
            raise ValueError(f"main returns {len(results)} tensors, {len(names)} names were given")
        ports = [self.output(number, tensor) for number, tensor in enumerate(results)]
        self.measure_lifetimes()
        roots = [
            root
            for root in dict.fromkeys(tensor.root for call in self.calls for tensor in call.tensors)
            if root.place is Place.STORAGE
        ]
        lifetimes = [Lifetime(root.size, root.first, root.last) for root in roots]
        buffers, storages = assign(lifetimes, len(self.symbols))
        for root, buffer in zip(roots, buffers, strict=True):
            root.index = buffer
        # A view that is an output alone is no argument of any step.
        for tensor in [tensor for _, tensor in self.inputs] + ports:
            self.number(tensor)
        steps = [
            PlannedStep(
                call.kernel,
                tuple(self.number(arg) if isinstance(arg, _Tensor) else arg for arg in call.args),
            )
            for call in self.calls
        ]
        plan = Plan(
            symbols=tuple(str(var.name) for var in self.symbols),
            kernels=tuple(self.signatures),
            tensors=tuple(_planned(tensor) for tensor in self.tensors),
            steps=tuple(steps),
            inputs=tuple((name, tensor.number) for name, tensor in self.inputs),
            outputs=tuple((name, tensor.number) for name, tensor in zip(names, ports, strict=True)),
            storages=tuple(storages),
            weights_bytes=self.weights_bytes,
        )
        return Planned(plan, tuple(self.arrays))

    def output(self, number: int, tensor: _Tensor) -> _Tensor:
        """The tensor in the caller's buffer: the kernel writes there itself where nothing else claims its result."""
        if tensor.root.place is Place.STORAGE:
            tensor.root.place, tensor.root.index = Place.OUTPUT, number
            return tensor
        copy = _Tensor(_Root(Place.OUTPUT, number), tensor.dtype, tensor.code, tensor.shape)
        self.calls.append(_Call(None, [tensor, copy]))
        return copy

    def measure_lifetimes(self) -> None:
        for step, call in enumerate(self.calls):
            for tensor in call.tensors:
                if tensor.root.first < 0:
                    tensor.root.first = step
                tensor.root.last = step

    def number(self, tensor: _Tensor) -> int:
        if tensor.number < 0:
            tensor.number = len(self.tensors)
            self.tensors.append(tensor)
        return tensor.number


def _planned(tensor: _Tensor) -> PlannedTensor:
    root = tensor.root
    return PlannedTensor(tensor.dtype, tensor.code, tensor.shape, root.place, root.index, root.offset)


def _code(dtype: str, where: str) -> tuple[int, int, int]:
    """DLPack's type; elements are whole bytes."""
    import tvm

    found = tvm.DataType(dtype)
    code = (int(found.type_code), int(found.bits), int(found.lanes))
    if code[1] * code[2] % 8:
        raise InputError(f"{where}: tensors of {dtype} are not supported", hint=_HINT)
    return code


def _item_bytes(code: tuple[int, int, int]) -> int:
    return code[1] * code[2] // 8


def _given(arg: Any) -> Any:
    """The sizes of an argument, or the number that it is."""
    return arg if type(arg.ty).__name__ == "PrimType" else list(arg.ty.shape)


def _packed_calls(function: Any) -> list[str]:
    """What a TIR function calls in TVM's runtime, by name."""
    import tvm_ffi
    from tvm.ir import Call

    found: list[str] = []

    def visit(node: Any) -> None:
        name = str(getattr(node.op, "name", ""))
        if "call_packed" in name or "call_cpacked" in name:
            found.append(str(getattr(node.args[0], "value", node.args[0])))

    tvm_ffi.structural_walk(function.body, (Call, visit), order="post")
    return found
