"""ONNX to Relax: kernels of ours where there are some, TVM's own operators for the rest.

Images are NHWC between kernels and through element-wise operators; every value is kept in the layouts in which somebody
wanted it, so that a transposition is written once, and only where one is read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from greencc.core.capabilities import Arithmetic
from greencc.core.errors import InputError
from greencc.core.graph import ONNX_DOMAINS, attribute_int, constant_of, ensure_names, is_op, label
from greencc.targets._tvm.constants import folded, moved
from greencc.targets._tvm.description import Label
from greencc.targets._tvm.elementwise import image_attributes, image_operand
from greencc.targets._tvm.failures import named
from greencc.targets._tvm.fusion import Fused, fuse
from greencc.targets._tvm.image_moves import moved_image
from greencc.targets._tvm.importer import Importer
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.layouts import Layouts
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.proofs import equal_shapes, never_negative
from greencc.targets._tvm.resolving import resolve_shapes
from greencc.targets._tvm.samplewise import is_samplewise
from greencc.targets._tvm.schedules import Schedules
from greencc.targets._tvm.sizes import Sizes
from greencc.targets._tvm.transposed import split_transposed
from greencc.targets._tvm.workload import (
    BatchedProduct,
    Conv,
    Dense,
    Depthwise,
    Pool,
    PoolKind,
    Workload,
    form_of,
)


@dataclass(frozen=True)
class Lowered:
    """A model as Relax.

    Attributes:
        module: Function `main`: inputs and outputs in the model's order.
        kernels: What each kernel of ours computes, by symbol: a label per call, in their order.
        findings: What runs slower than it could, and why: one sentence each.
        samplewise: Each sample of a batch is computed by itself, for certain.
    """

    module: Any
    kernels: Mapping[str, Sequence[Label]]
    findings: tuple[str, ...]
    samplewise: bool = False


def lower_model(model: ir.Model, machine: Machine, schedules: Schedules) -> Lowered:
    """Bring a model into the form that the library is built from.

    Args:
        model: Not changed. QuantizeLinear/DequantizeLinear pairs around weighted operators become integer kernels.
        machine: What it will run on.
        schedules: How each kernel is written.

    Raises:
        InputError: An operator has no lowering; the message names it.
    """
    clone = model.clone()
    ensure_names(clone)
    resolve_shapes(clone)
    split_transposed(clone)
    return _Lowering(clone, machine, schedules).run()


class _Lowering:
    def __init__(self, model: ir.Model, machine: Machine, schedules: Schedules) -> None:
        self.model = model
        self.machine = machine
        self.schedules = schedules
        self.importer = Importer(model)
        self.values = Layouts(self.importer.builder)
        self.sizes = Sizes(never_negative)
        self.kernels: dict[str, list[Label]] = {}
        self.written: dict[tuple[Workload, Schedule], Any] = {}
        self.findings: list[str] = []

    def run(self) -> Lowered:
        fused = fuse(self.model, self.machine)
        last = {item.nodes[-1]: item for item in fused}
        absorbed = {node for item in fused for node in item.nodes}
        needed = self._needed(last, absorbed)
        inputs = self._inputs()
        dtypes = [_declared(value) for value in self.model.graph.outputs]
        builder = self.importer.builder
        with warnings.catch_warnings(), self.importer.closed_on_error():
            warnings.simplefilter("ignore")
            with builder.function("main", params=list(inputs)):
                with builder.dataflow():
                    for node in self.model.graph:
                        if node not in needed:
                            continue
                        with named(node):
                            if node in last:
                                self._kernel(last[node])
                            else:
                                self._operator(node)
                    results = [self._plain(value) for value in self.model.graph.outputs]
                    output = builder.emit_output(self.importer.bundle(results, dtypes))
                builder.emit_func_output(output)
        return Lowered(builder.get(), self.kernels, tuple(self.findings), is_samplewise(self.model))

    def _needed(self, last: Mapping[ir.Node, Fused], absorbed: set[ir.Node]) -> set[ir.Node]:
        """Nodes at which something is written: kernels at their last node, other operators that are read."""
        wanted = set(self.model.graph.outputs)
        needed: set[ir.Node] = set()
        for node in reversed(self.model.graph):
            item = last.get(node)
            if item is not None:
                read = [item.data, item.second, *item.arguments]
                if item.output in wanted:
                    needed.add(node)
                    wanted.update(value for value in read if isinstance(value, ir.Value))
            elif node not in absorbed and any(value in wanted for value in node.outputs):
                needed.add(node)
                if folded(node.outputs[0]) is None:
                    move = moved(node)
                    operands = node.inputs if move is None else move[1]
                    wanted.update(value for value in operands if value is not None)
        return needed

    def _inputs(self) -> Sequence[Any]:
        variables = []
        for value in self.model.graph.inputs:
            variable = self.importer.variable(value)
            self.values.define(value, variable)
            variables.append(variable)
        return variables

    def _kernel(self, item: Fused) -> None:
        """Call a kernel of ours."""
        workload, make = item.workload, self.importer
        template = template_of(workload)
        schedule = self.schedules.schedule(workload, self.machine)
        form = form_of(workload)
        written = self.written.get((form, schedule))
        if written is None:
            symbol = self._symbol(item)
            written = make.function(template.build(form, schedule, self.machine, symbol), symbol)
            self.written[form, schedule] = written
        images = isinstance(workload, Conv | Depthwise | Pool)
        rows = make.stacked if isinstance(workload, BatchedProduct) else make.rows
        shaped = _same if images else rows
        original = self._read(item.data, images)
        data = shaped(original)
        self._check_sizes(item, item.data, data, [make.batch(data), *_data_shape(workload)])
        if not isinstance(workload, Pool | BatchedProduct) and item.dtype != workload.data:
            data = make.flip_sign(data, workload.data)
        arguments = [data]
        if item.weights is not None:
            packed = template.pack(workload, schedule, self.machine, item.weights)
            arguments.extend(make.constant(array) for array in packed)
        if item.second is not None:
            second = make.stacked(self._plain(item.second))
            self._check_sizes(item, item.second, second, [make.batch(data), *_second_shape(workload)])
            arguments.append(second)
        shape = [make.batch(data), *_output_shape(workload)]
        for argument in (*item.arguments, *number_arguments(workload)):
            if isinstance(argument, ir.Value):
                added = shaped(self._read(argument, images))
                self._check_sizes(item, argument, added, shape)
                arguments.append(added)
            else:
                arguments.append(make.constant(argument))
        result = make.call(written, arguments, shape, _output_dtype(workload))
        if isinstance(workload, Dense):
            self.values.define(item.output, make.unrows(result, original))
        elif isinstance(workload, BatchedProduct):
            self.values.define(item.output, make.unstacked(result, original))
        elif item.output.shape is not None and item.output.shape.rank() == 2:
            # A mean over rows and columns that drops them.
            self.values.define(item.output, make.flat(result))
        else:
            self.values.define_image(item.output, result)
        arithmetic = Arithmetic.INT8 if item.integers else Arithmetic.FLOAT
        label = Label(str(item.nodes[0].name), item.nodes[0].op_type, arithmetic)
        self.kernels.setdefault(written.name_hint, []).append(label)

    def _check_sizes(self, item: Fused, value: ir.Value, read: Any, wanted: Sequence[Any]) -> None:
        """A kernel does not look at the sizes of what it reads; those that a model declares may be wrong."""
        sizes = self.importer.sizes(read)
        if sizes is None or not equal_shapes(sizes, wanted):
            found, read_as = (
                "an unknown shape" if shape is None else f"[{', '.join(map(str, shape))}]"
                for shape in (sizes, wanted)
            )
            raise InputError(
                f"{label(item.nodes[-1])}: {value.name!r} has {found}, which cannot be shown to be the {read_as} "
                "that its shapes in the model say",
                hint="check the shapes that the model declares for its outputs, or export it again",
            )

    def _symbol(self, item: Fused) -> str:
        name = re.sub(r"[^A-Za-z0-9_]+", "_", str(item.nodes[0].name)).strip("_")[:40]
        return f"k{len(self.written)}_{type(item.workload).__name__.lower()}_{name}"

    def _read(self, value: ir.Value, image: bool) -> Any:
        """A value for a kernel: NHWC for images."""
        if not image:
            return self._plain(value)
        self._provide(value)
        if value.shape is not None and value.shape.rank() == 2:
            # Of a mean over rows and columns that drops them.
            return self.importer.pixels(self.values.plain(value))
        return self.values.image(value)

    def _plain(self, value: ir.Value) -> Any:
        self._provide(value)
        return self.values.plain(value)

    def _provide(self, value: ir.Value) -> None:
        """Make constants known when somebody reads them."""
        if value in self.values:
            return
        array, sizes = constant_of(value), self.sizes.of(value)
        if array is None and sizes is not None:
            self.values.define(value, self.importer.sized(sizes.entries, sizes.dtype))
            return
        if array is None:
            raise InputError(f"value {value.name!r} is never computed")
        self.values.define(value, self.importer.constant(array))

    def _operator(self, node: ir.Node) -> None:
        """One of TVM's own operators."""
        array = folded(node.outputs[0])
        if array is not None:
            self.values.define(node.outputs[0], self.importer.constant(array))
            return
        if self._sizes(node):
            return
        if node.domain not in ONNX_DOMAINS:
            raise InputError(
                f"{label(node)} is an operator of {node.domain!r}, which has no lowering for TVM",
                hint="compile for the target 'cpu', or give the model with operators of the default domain only",
            )
        move = moved(node)
        if move is None:
            self._convert(node, node.inputs, node.outputs)
        else:
            self._convert(*move, node.outputs)

    def _sizes(self, node: ir.Node) -> bool:
        """Follow tensors of sizes; they become tensors only where something else reads them."""
        read = node.inputs[0] if node.inputs else None
        shape = None
        if is_op(node, "Shape") and read is not None:
            shape = self.importer.sizes(self._plain(read))
        return self.sizes.follow(node, shape)

    def _convert(
        self, node: ir.Node, operands: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> None:
        """Write an operator that reads `operands` and computes `outputs`, which may differ from the node's own."""
        if self._transpose(node, operands, outputs) or self._in_images(node, operands, outputs):
            return
        if self._reshape(node, operands, outputs):
            return
        inputs = [None if value is None else self._plain(value) for value in operands]
        for value, result in zip(outputs, self.importer.convert(node, inputs), strict=False):
            self.values.define(value, self._typed(value, result))
        if node.op_type in _HEAVY:
            self.findings.append(
                f"{label(node)} has no kernel of ours for its shapes: TVM's plain loops compute it, slowly"
            )

    def _typed(self, value: ir.Value, result: Any) -> Any:
        """What TVM computes, in the type that ONNX's inference gives it."""
        return result if value.dtype is None else self.importer.typed(result, _declared(value))

    def _reshape(
        self, node: ir.Node, operands: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> bool:
        """A Reshape to sizes that are known, which TVM's front end misreads where one is 0."""
        if not is_op(node, "Reshape") or len(operands) < 2 or attribute_int(node, "allowzero", 0):
            return False
        sizes, value = self.sizes.of(operands[1]), operands[0]
        if sizes is None or value is None or sizes.entries.ndim != 1:
            return False
        self.values.define(outputs[0], self.importer.reshape(self._plain(value), sizes.entries))
        return True

    def _transpose(
        self, node: ir.Node, operands: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> bool:
        """A Transpose between layouts is no work."""
        value = operands[0] if operands else None
        order = node.attributes.get("perm")
        if not is_op(node, "Transpose") or value is None or order is None or constant_of(value) is not None:
            return False
        if tuple(order.as_ints()) == (0, 2, 3, 1) and self.values.has_image(value):
            self.values.define(outputs[0], self.values.image(value))
            return True
        if tuple(order.as_ints()) == (0, 3, 1, 2) and not self.values.has_image(value):
            self.values.define_image(outputs[0], self._plain(value))
            return True
        return False

    def _in_images(
        self, node: ir.Node, operands: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> bool:
        """Run an element-wise operator or a Concat of channels on NHWC values when its operands are."""
        first = operands[0] if operands else None
        if first is not None and self.values.only_image(first):
            moved_pixels = moved_image(node, self.values.image(first))
            if moved_pixels is not None:
                self.values.define_image(outputs[0], self.importer.builder.emit(moved_pixels))
                return True
        changes = image_attributes(node)
        if changes is None or not any(
            value is not None and self.values.only_image(value) for value in operands
        ):
            return False
        inputs: list[Any] = []
        for value in operands:
            if value is None:
                inputs.append(None)
                continue
            constant = constant_of(value)
            if constant is not None:
                array = image_operand(node, constant)
                if array is None:
                    return False
                inputs.append(self.importer.constant(array))
            elif value.shape is not None and value.shape.rank() == 4:
                inputs.append(self._read(value, image=True))
            elif value.shape is not None and value.shape.rank() == 0:
                inputs.append(self._plain(value))
            else:
                return False
        for value, result in zip(outputs, self.importer.convert(node, inputs, changes), strict=False):
            self.values.define_image(value, self._typed(value, result))
        return True


def _same(expression: Any) -> Any:
    return expression


def _declared(value: ir.Value) -> str:
    """The type of a value, in the name that TVM shares with NumPy."""
    if value.dtype is None:
        raise InputError(f"value {value.name!r} has no type", hint="export the model with types")
    return str(value.dtype.numpy().name)


def _data_shape(workload: Workload) -> tuple[int, ...]:
    """The shape of what a kernel reads first, behind the batch."""
    match workload:
        case Conv():
            return workload.window.height, workload.window.width, workload.channels[0]
        case Dense():
            return (workload.channels[0],)
        case BatchedProduct():
            return workload.shape[0], workload.shape[1]
    return workload.window.height, workload.window.width, workload.channels


def _second_shape(workload: Workload) -> tuple[int, ...]:
    """The shape of a product's second operand, behind the batch."""
    assert isinstance(workload, BatchedProduct)
    return workload.shape[1], workload.shape[2]


def _output_shape(workload: Workload) -> tuple[int, ...]:
    """The shape of what a kernel stores, behind the batch."""
    match workload:
        case Conv():
            return (*workload.window.output, workload.channels[1])
        case Dense():
            return (workload.channels[1],)
        case BatchedProduct():
            return workload.shape[0], workload.shape[2]
    return (*workload.window.output, workload.channels)


def _output_dtype(workload: Workload) -> str:
    if isinstance(workload, Pool) and workload.kind is PoolKind.MAX:
        return workload.data
    return workload.epilogue.dtype


# What TVM computes in loops that nobody schedules, and that take most of a network's time.
_HEAVY = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "MatMulInteger"}
)
