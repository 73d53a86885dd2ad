"""Give the chosen nodes half-precision types, with casts at the borders.

A float value that half nodes read gets one half copy: another initializer for a constant, the source of an existing
Cast for what was cast to float just before, else one Cast after its producer. A half value that float nodes read gets
one float copy likewise. Bodies of If, Loop and Scan read the float copy.
"""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import Names, constant_tensor, is_op
from greencc.passes._half_rounding import half_tensor
from greencc.passes._half_schema import HalfType, half_inputs, half_outputs, is_blind
from greencc.passes._quantize_insert import release


class Converter:
    """Retypes nodes of the main graph; used once.

    Args:
        model: Edited in place.
        chosen: The nodes that compute in half precision.
        element: The half format.
        opset: Of the default domain.
        half_borders: Give the model's float inputs and outputs the half type, too.
    """

    def __init__(
        self, model: ir.Model, chosen: set[ir.Node], element: HalfType, opset: int, *, half_borders: bool
    ) -> None:
        self._graph = model.graph
        self._chosen = chosen
        self._element = element
        self._dtype = element.dtype
        self._opset = opset
        self._half_borders = half_borders
        self._names = Names(model)
        self._halves: dict[ir.Value, ir.Value] = {}
        self._inputs = {node: frozenset(half_inputs(node, opset)) for node in chosen}

    def run(self) -> None:
        order = [node for node in self._graph if node in self._chosen]
        outputs = {node: half_outputs(node, self._opset) for node in order}
        if self._half_borders:
            for value in self._graph.inputs:
                if value.dtype is ir.DataType.FLOAT and not value.is_initializer():
                    self._restore(value)
        for node in order:
            for index in sorted(self._inputs[node]):
                read = node.inputs[index]
                if read is not None and self._type(read) is ir.DataType.FLOAT:
                    node.replace_input_with(index, self._half(read))
            for value in outputs[node]:
                self._restore(value)
        if self._half_borders:
            for index, value in enumerate(self._graph.outputs):
                if value.dtype is ir.DataType.FLOAT:
                    self._swap_output(index, value, self._half(value))
        for value in self._halves:
            self._drop(value)

    def _type(self, value: ir.Value) -> ir.DataType | None:
        tensor = constant_tensor(value)
        return value.dtype if tensor is None else tensor.dtype

    def _half(self, value: ir.Value) -> ir.Value:
        """The half-precision copy of a float value."""
        if value not in self._halves:
            self._halves[value] = self._make_half(value)
        return self._halves[value]

    def _make_half(self, value: ir.Value) -> ir.Value:
        tensor, producer = constant_tensor(value), value.producer()
        source = value
        if tensor is None and producer is not None and is_op(producer, "Cast"):
            # Down and up again, or an integer that need not become float32 first.
            source = next(value for value in producer.inputs if value is not None)
            if source.dtype is self._dtype:
                return source
        name = self._names.value(f"{value.name}_{self._dtype.name.lower()}")
        half = ir.Value(name=name, type=ir.TensorType(self._dtype), shape=value.shape)
        if tensor is not None:
            half.const_value = half_tensor(tensor.numpy(), self._element, name)
            half.shape = ir.Shape(tensor.shape.numpy())
            release(tensor)
            self._graph.register_initializer(half)
        else:
            self._cast(source, half, value.producer())
        return half

    def _restore(self, value: ir.Value) -> None:
        """Make a value half; its float readers, and the model's outputs, read a cast of it."""
        uses = list(value.uses())
        float_uses = [
            use
            for use in uses
            if not is_blind(use.node) and use.idx not in self._inputs.get(use.node, frozenset())
        ]
        for use in uses:
            self._shorten(use.node)
        name = str(value.name)
        is_output = value.is_graph_output() and not self._half_borders
        value.type = ir.TensorType(self._dtype)
        if not float_uses and not is_output:
            return
        restored = ir.Value(name=None, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
        for use in float_uses:
            use.node.replace_input_with(use.idx, restored)
        restored.name = self._names.value(f"{name}_float32")
        for index, output in enumerate(self._graph.outputs):
            if is_output and output is value:
                self._swap_output(index, value, restored)
        self._cast(value, restored, value.producer())

    def _swap_output(self, index: int, old: ir.Value, new: ir.Value) -> None:
        """Let another value be the model's output of this name."""
        name = str(old.name)
        self._graph.outputs[index] = new
        if old.name != new.name and not old.is_graph_input():
            suffix = "float32" if old.dtype is ir.DataType.FLOAT else self._dtype.name.lower()
            old.name = self._names.value(f"{name}_{suffix}")
        new.name = name

    def _shorten(self, cast: ir.Node) -> None:
        """Drop a Cast to the half type this value is about to have."""
        attribute = cast.attributes.get("to")
        if not is_op(cast, "Cast") or attribute is None or attribute.as_int() != self._dtype.value:
            return
        result, source = cast.outputs[0], cast.inputs[0]
        if source is None or result.is_graph_output() or cast.graph is not self._graph:
            return
        result.replace_all_uses_with(source)
        self._graph.remove(cast, safe=True)

    def _cast(self, source: ir.Value, result: ir.Value, producer: ir.Node | None) -> None:
        name = self._names.node(f"{result.name}_Cast")
        cast = ir.node("Cast", [source], {"to": result.dtype.value}, outputs=[result], name=name)  # type: ignore[union-attr]
        if producer is not None:
            self._graph.insert_after(producer, cast)
        else:
            self._graph.insert_before(self._graph[0], cast)

    def _drop(self, value: ir.Value) -> None:
        """Remove a float constant or Cast that has no reader left."""
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            return
        producer = value.producer()
        if value.is_initializer():
            del self._graph.initializers[str(value.name)]
        elif producer is not None and is_op(producer, "Cast", "Constant") and producer.graph is self._graph:
            self._graph.remove(producer, safe=True)
