"""TVM's ONNX front end, one operator at a time, and the Relax expressions that calls of kernels are made of."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import label, opset_of
from greencc.targets._tvm.failures import UNSUPPORTED, named
from greencc.targets._tvm.indices import bounded
from greencc.targets._tvm.proofs import variables

_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


class Importer:
    """Makes Relax expressions.

    Args:
        model: Its opset decides which version of an operator is meant.
    """

    def __init__(self, model: ir.Model) -> None:
        from tvm.relax.frontend.onnx import onnx_frontend

        self._frontend = onnx_frontend.ONNXGraphImporter({}, "float32")
        self._operators = onnx_frontend._get_convert_map()
        self._opset = opset_of(model)
        self._symbols: dict[str, Any] = {}
        self._names: set[str] = set()
        self.builder = self._frontend.bb

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """End the builder's open block where writing fails: it would be complained of on standard error."""
        try:
            yield
        except BaseException:
            self.builder._end_block()
            raise

    def variable(self, value: ir.Value) -> Any:
        """An input of the model; dimensions of the same name are one variable, nameless first axes are the batch.

        Raises:
            InputError: Its rank or type is not known.
        """
        from tvm import relax

        if value.shape is None or value.dtype is None:
            raise InputError(f"input {value.name!r} has no rank or type", hint="export the model with shapes")
        shape = [
            size if isinstance(size, int) else self._symbol(size.value, axis, str(value.name))
            for axis, size in enumerate(value.shape)
        ]
        return relax.Var(self._fresh(str(value.name)), relax.TensorType(shape, value.dtype.numpy().name))

    def _symbol(self, name: str | None, axis: int, owner: str) -> Any:
        from tvm import tirx

        key = name or ("batch" if axis == 0 else f"{owner} axis {axis}")
        if key not in self._symbols:
            plain = "".join(char if char.isalnum() else "_" for char in key)
            self._symbols[key] = tirx.Var(f"n{len(self._symbols)}_{plain}", "int64")
        return self._symbols[key]

    def _fresh(self, name: str) -> str:
        base = "".join(char if char.isalnum() else "_" for char in name)
        candidates = itertools.chain([f"in_{base}"], (f"in_{base}_{index}" for index in itertools.count(1)))
        chosen = next(name for name in candidates if name not in self._names)
        self._names.add(chosen)
        return chosen

    def constant(self, array: Array) -> Any:
        from tvm import relax

        return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))

    def sizes(self, expression: Any) -> Sequence[Any] | None:
        """The shape of an expression, or None where its rank is not known."""
        shape = getattr(expression.ty, "shape", None)
        return None if shape is None else list(shape)

    def sized(self, sizes: Array, dtype: np.dtype[Any]) -> Any:
        """A tensor of sizes: a shape where it is a list of free ones of INT64, a constant where all are known."""
        from tvm import relax

        if all(isinstance(size, int) for size in sizes.reshape(-1)):
            return self.constant(sizes.astype(dtype))
        shape = relax.ShapeExpr(list(sizes.reshape(-1)))
        if sizes.ndim == 1 and dtype == np.int64:
            return shape
        tensor = self.builder.emit(relax.op.shape_to_tensor(shape))
        if sizes.ndim == 0:
            tensor = self.builder.emit(relax.op.reshape(tensor, relax.ShapeExpr([])))
        return self.typed(tensor, str(dtype))

    def typed(self, expression: Any, dtype: str) -> Any:
        """A tensor in the type that the model gives it: some of TVM's operators choose one of their own."""
        from tvm import relax

        if not isinstance(expression.ty, relax.TensorType) or _dtype(expression) == dtype:
            return expression
        return self.builder.emit(relax.op.astype(expression, dtype))

    def reshape(self, expression: Any, sizes: Array) -> Any:
        """ONNX's Reshape to known sizes: 0 keeps an axis, -1 takes what is left."""
        from tvm import relax

        shape = expression.ty.shape
        wanted = [shape[axis] if _is(size, 0) else size for axis, size in enumerate(sizes)]
        return self.builder.emit(relax.op.reshape(expression, wanted))

    def bundle(self, results: Sequence[Any], dtypes: Sequence[str]) -> Any:
        """What `main` returns: tensors in the order of the outputs, of the types that the model gives them."""
        from tvm import relax

        tensors = [self.typed(self._tensor(item), dtype) for item, dtype in zip(results, dtypes, strict=True)]
        return tensors[0] if len(tensors) == 1 else relax.Tuple(tensors)

    def _tensor(self, expression: Any) -> Any:
        """A shape as a tensor."""
        from tvm import relax

        if not isinstance(expression.ty, relax.ShapeType):
            return expression
        return self.builder.emit(relax.op.shape_to_tensor(expression))

    def convert(
        self, node: ir.Node, inputs: Sequence[Any], changes: Mapping[str, int] | None = None
    ) -> Sequence[Any]:
        """An operator of TVM's own.

        Args:
            node: What to convert.
            inputs: Its operands, None where absent.
            changes: Attributes that differ from the node's.

        Raises:
            InputError: TVM has no such operator, or not with these operands.
        """
        from tvm import relax
        from tvm.ir import GenericConst
        from tvm.relax.frontend.onnx.onnx_frontend import onnx_input

        if node.op_type in _CONTROL:
            raise InputError(
                f"{label(node)} chooses what is computed while the model runs, and generated code is one fixed "
                "sequence of kernels",
                hint=UNSUPPORTED,
            )
        if node.op_type not in self._operators:
            raise InputError(f"{label(node)}: TVM has no operator {node.op_type}", hint=UNSUPPORTED)
        extreme = {"Max": relax.op.maximum, "Min": relax.op.minimum}.get(node.op_type)
        if extreme is not None and not all(isinstance(item, GenericConst) for item in inputs):
            # The front end stacks the operands in memory first.
            results = [
                functools.reduce(lambda a, b: self.builder.emit(extreme(a, b)), map(self._tensor, inputs))
            ]
            self._check_shape(node, inputs, results[0])
            return results
        attributes = self._frontend._parse_attr(ir.to_proto(node).attribute)
        attributes.update(changes or {})
        attributes["tvm_custom"] = {"name": str(node.name), "num_outputs": len(node.outputs)}
        operands = onnx_input()
        operands.extend(bounded(node, inputs, self.builder))
        with named(node, "TVM cannot import it"), contextlib.redirect_stdout(io.StringIO()):
            if node.op_type == "Gather":
                # As the front end does it, but for its mode, of which TVM warns on every build.
                result = self._gathered(operands[0], operands[1], attributes.get("axis", 0))
            else:
                result = self._frontend._convert_operator(node.op_type, operands, attributes, self._opset)
        if isinstance(result, relax.Tuple):
            results = [self._emitted(field) for field in result.fields]
        elif isinstance(result.ty, relax.TupleType):
            whole = self.builder.emit(result)
            results = [self.builder.emit(relax.TupleGetItem(whole, i)) for i in range(len(result.ty.fields))]
        else:
            results = [self._emitted(result)]
        for item in results:
            self._check_shape(node, inputs, item)
        return results

    def _gathered(self, data: Any, indices: Any, axis: int) -> Any:
        """Elements of `data` at indices that `bounded` has checked or brought within the axis."""
        from tvm import relax
        from tvm.ir import GenericConst

        if isinstance(indices, GenericConst) and np.any(indices.value.numpy() < 0):
            # Negative ones count from an end that is known, or `bounded` would have made an expression of them.
            known, extent = indices.value.numpy(), int(data.ty.shape[axis % len(data.ty.shape)])
            indices = self.constant(np.where(known < 0, known + extent, known).astype(known.dtype))
        return self.builder.normalize(relax.op.take(data, indices, axis, mode="clip"))

    def _check_shape(self, node: ir.Node, inputs: Sequence[Any], result: Any) -> None:
        """Refuse sizes that do not follow from those of the inputs."""
        from tvm import relax

        if not isinstance(result.ty, relax.TensorType):
            return
        if isinstance(result.ty.shape, relax.ShapeExpr):
            if all(self._follows(size) for size in result.ty.shape):
                return
        else:
            shapes = [shape for shape in map(_free_shape, inputs) if shape is not None]
            if len(shapes) > 1:
                raise InputError(
                    f"{label(node)}: its operands' sizes follow from free sizes of the inputs "
                    f"({', '.join(self._differing(shapes))}) and cannot be shown to fit",
                    hint="give the model's inputs fixed sizes but for the batch, or compile for the target 'cpu'",
                )
        raise InputError(
            f"{label(node)}: its shape depends on data, and code is generated for known shapes",
            hint=UNSUPPORTED,
        )

    def _follows(self, size: Any) -> bool:
        """Whether a size is made of the inputs' free sizes."""
        known = self._symbols.values()
        return all(any(name.same_as(variable) for variable in known) for name in variables(size))

    def _differing(self, shapes: Sequence[Sequence[Any]]) -> list[str]:
        """The free sizes, in the model's names, that axes consist of which are not written equally everywhere."""
        columns = [column for column in zip(*shapes, strict=False) if len(set(map(str, column))) > 1]
        found = [name for column in columns for size in column for name in variables(size)]
        return sorted(
            key
            for key, variable in self._symbols.items()
            if any(name.same_as(variable) for name in found) or not columns
        )

    def _emitted(self, expression: Any) -> Any:
        from tvm import relax
        from tvm.ir import GenericConst

        if isinstance(expression, relax.Var | relax.ShapeExpr | GenericConst):
            return expression
        return self.builder.emit(expression)

    def function(self, function: Any, symbol: str) -> Any:
        """Make a kernel known by its symbol; what `call` takes."""
        return self.builder.add_func(function, symbol)

    def call(self, kernel: Any, arguments: Sequence[Any], shape: Sequence[Any], dtype: str) -> Any:
        """Call a kernel that stores one tensor."""
        from tvm import relax

        stored = relax.TensorType(list(shape), dtype)
        return self.builder.emit(relax.call_tir(kernel, list(arguments), out_ty=stored))

    def batch(self, expression: Any) -> Any:
        """The size of the first axis."""
        return expression.ty.shape[0]

    def flip_sign(self, expression: Any, dtype: str) -> Any:
        """uint8 as int8 or the other way round: the same steps, 128 apart."""
        from tvm import relax

        wide = relax.op.astype(expression, "int32")
        moved = relax.op.add(wide, relax.const(-128 if dtype == "int8" else 128, "int32"))
        return self.builder.emit(relax.op.astype(moved, dtype))

    def rows(self, expression: Any) -> Any:
        """All axes but the last as one."""
        shape = list(expression.ty.shape)
        return self._reshaped(expression, [_product(shape[:-1]), shape[-1]])

    def flat(self, image: Any) -> Any:
        """[n, 1, 1, c] without its middle axes."""
        return self._reshaped(image, [image.ty.shape[0], image.ty.shape[3]])

    def pixels(self, rows: Any) -> Any:
        """[n, c] as the image [n, 1, 1, c]."""
        return self._reshaped(rows, [rows.ty.shape[0], 1, 1, rows.ty.shape[1]])

    def unrows(self, result: Any, like: Any) -> Any:
        """The axes of `like` but the last, and the result's last."""
        return self._reshaped(result, [*list(like.ty.shape)[:-1], result.ty.shape[-1]])

    def stacked(self, expression: Any) -> Any:
        """All axes but the last two as one."""
        shape = list(expression.ty.shape)
        return self._reshaped(expression, [_product(shape[:-2]), shape[-2], shape[-1]])

    def unstacked(self, result: Any, like: Any) -> Any:
        """The axes of `like` but the last two, and the result's last two."""
        return self._reshaped(result, [*list(like.ty.shape)[:-2], *list(result.ty.shape)[-2:]])

    def _reshaped(self, expression: Any, shape: Sequence[Any]) -> Any:
        from tvm import relax

        if len(shape) == len(expression.ty.shape):
            return expression
        return self.builder.emit(relax.op.reshape(expression, relax.ShapeExpr(list(shape))))


def _free_shape(expression: Any) -> list[Any] | None:
    """The shape of a tensor that has sizes which are not constants."""
    from tvm.tirx import IntImm

    shape = getattr(getattr(expression, "ty", None), "shape", None)
    sizes = [] if shape is None else list(shape)
    return sizes if any(not isinstance(size, IntImm) for size in sizes) else None


def _dtype(expression: Any) -> str:
    return str(getattr(expression.ty.dtype, "dtype", expression.ty.dtype))


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _product(sizes: Sequence[Any]) -> Any:
    product = sizes[0] if len(sizes) else 1
    for size in list(sizes)[1:]:
        product = product * size
    return product
