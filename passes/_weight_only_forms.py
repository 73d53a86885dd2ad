"""Write weights of small integers into the graph, in the forms of `_weight_only_layout`.

Nodes keep their names, and float values that are read elsewhere keep theirs. Readers of one weight in the same form
share its constants; a table that is also the weight of a product (tied embeddings) is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.graph import Names, add_initializer, input_at, static_shape
from greencc.passes._block_quantize import BlockWeight, Grid, pack_blocks, pack_nibbles
from greencc.passes._quantize_insert import dequantized_name
from greencc.passes._weight_only_layout import MICROSOFT, Layout, Use

_INT4_IR_VERSION = 10
_CONVOLUTIONS = ("Conv", "ConvTranspose")


class Writer:
    """Replaces float weights of one model by integers."""

    def __init__(self, model: ir.Model, accuracy_level: int, *, foldable: bool = False) -> None:
        """Make a writer.

        Args:
            model: What is edited.
            accuracy_level: Of MatMulNBits.
            foldable: Convolutions read their weight through Cast and Mul, which the runtime folds when it loads the
                model, and not through a DequantizeLinear.
        """
        self._model = model
        self._foldable = foldable
        self._graph = model.graph
        self._names = Names(model)
        self._accuracy_level = accuracy_level

    def write(
        self,
        value: ir.Value,
        weight: BlockWeight,
        layout: Layout,
        uses: Sequence[tuple[ir.Node, Use]],
    ) -> None:
        """Replace one weight.

        Args:
            value: The float initializer.
            weight: What it becomes.
            layout: How the matrix of `weight` lies in `value`.
            uses: Its readers, each once, in the order of the graph, and the form of each.
        """
        shape = static_shape(value)
        assert shape is not None
        base = str(value.name)
        forms = {use for _, use in uses}
        one_copy = Use.PRODUCT in forms and self._shares(weight, [n for n, use in uses if use is Use.TABLE])
        packed: list[ir.Value] = []
        if Use.PRODUCT in forms:
            codes, zeros = pack_blocks(weight)
            packed = self._constants(base, codes, weight.scales, zeros)
        table: list[ir.Value] = []
        if Use.TABLE in forms and one_copy:
            table = [packed[0], self._constant(f"{base}_scale", weight.scales[..., np.newaxis])]
        elif Use.TABLE in forms:
            table = self._table(base, weight)
        foldable = self._foldable and not layout.blocked and all(n.op_type in _CONVOLUTIONS for n, _ in uses)
        plain: list[ir.Value] = []
        if not foldable and forms & {Use.ROWS, Use.DEQUANTIZED}:
            plain = self._plain(base, weight, layout, shape)
        restored: ir.Value | None = None
        for node, use in uses:
            if use is Use.PRODUCT:
                self._product(node, weight, packed)
            elif use is Use.TABLE:
                self._gather_packed(node, weight.grid, table, shape[1] if one_copy else None)
            elif use is Use.ROWS:
                self._gather_rows(node, weight.grid, layout, plain)
            else:
                if restored is None:
                    restored = ir.Value(
                        name=self._names.value(dequantized_name(base)),
                        type=ir.TensorType(ir.DataType.FLOAT),
                        shape=value.shape,
                    )
                    self._graph.insert_before(
                        node,
                        self._folded(base, weight, layout, shape, restored)
                        if foldable
                        else [self._dequantize(plain, restored, layout, weight.grid, layout.axis)],
                    )
                node.replace_input_with(0 if node.op_type == "Gather" else 1, restored)
        del self._graph.initializers[base]

    def _shares(self, weight: BlockWeight, tables: Sequence[ir.Node]) -> bool:
        """Whether the bytes of the packed product also serve the tables: whole blocks, and no packed zero points."""
        whole = weight.codes.shape[1] % weight.grid.block_size == 0
        return whole and weight.grid.symmetric and all(_index_rank(node) is not None for node in tables)

    def _plain(self, base: str, weight: BlockWeight, layout: Layout, shape: Sequence[int]) -> list[ir.Value]:
        """Codes, scales and zero points for DequantizeLinear; blocks with the middle as zero point go without."""
        grid = weight.grid
        codes = layout.stored(weight.codes, shape)
        zeros = layout.parameters(weight.zero_points)
        inputs = [
            self._integers(f"{base}_quantized", codes, grid),
            self._constant(f"{base}_scale", layout.parameters(weight.scales)),
        ]
        if not (layout.blocked and grid.symmetric):
            inputs.append(self._integers(f"{base}_zero_point", zeros, grid))
        return inputs

    def _folded(
        self, base: str, weight: BlockWeight, layout: Layout, shape: Sequence[int], restored: ir.Value
    ) -> list[ir.Node]:
        """Cast, subtract the zero points where there are any, and scale: constants from end to end."""
        grid = weight.grid
        broadcast = [-1 if axis == layout.axis else 1 for axis in range(len(shape))]
        codes = self._integers(f"{base}_quantized", layout.stored(weight.codes, shape), grid)
        steps: list[tuple[str, Array]] = []
        if not grid.symmetric:
            steps.append(("Sub", layout.parameters(weight.zero_points).astype(np.float32)))
        steps.append(("Mul", layout.parameters(weight.scales).astype(np.float32)))
        nodes = [ir.node("Cast", [codes], {"to": ir.DataType.FLOAT.value})]
        for op_type, parameters in steps:
            name = f"{base}_scale" if op_type == "Mul" else f"{base}_zero_point"
            constant = self._constant(name, parameters.reshape(broadcast))
            last = op_type == "Mul"
            nodes.append(
                ir.node(op_type, [nodes[-1].outputs[0], constant], outputs=[restored] if last else None)
            )
        for node in nodes:
            node.name = self._names.node(f"{base}_{node.op_type}")
            node.outputs[0].name = node.outputs[0].name or self._names.value(f"{base}_{node.op_type}_out")
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape(shape)
        return nodes

    def _integers(self, name: str, codes: NDArray[np.uint8], grid: Grid) -> ir.Value:
        """Codes as the element type says them: signed around 0 where the middle is the zero point."""
        name = self._names.value(name)
        moved = codes ^ np.uint8(grid.middle) if grid.symmetric else codes
        if grid.bits == 8:
            return add_initializer(self._graph, name, moved.view(np.int8) if grid.symmetric else moved)
        self._model.ir_version = max(self._model.ir_version, _INT4_IR_VERSION)
        kind = ir.DataType.INT4 if grid.symmetric else ir.DataType.UINT4
        packed = ir.PackedTensor(pack_nibbles(moved.reshape(-1)), kind, shape=codes.shape, name=name)
        return add_initializer(self._graph, name, packed)

    def _table(self, base: str, weight: BlockWeight) -> list[ir.Value]:
        codes, zeros = weight.codes, None if weight.grid.symmetric else weight.zero_points
        if weight.grid.bits == 4:
            codes = pack_nibbles(codes)
            zeros = None if zeros is None else pack_nibbles(zeros)
        return self._constants(base, codes, weight.scales, zeros)

    def _constants(self, base: str, codes: Array, scales: Array, zeros: Array | None) -> list[ir.Value]:
        inputs = [self._constant(f"{base}_quantized", codes), self._constant(f"{base}_scale", scales)]
        if zeros is not None:
            inputs.append(self._constant(f"{base}_zero_point", zeros))
        return inputs

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_initializer(self._graph, self._names.value(name), np.ascontiguousarray(array))

    def _product(self, node: ir.Node, weight: BlockWeight, packed: list[ir.Value]) -> None:
        rows, columns = weight.codes.shape
        bias = input_at(node, 2)
        fits = bias is not None and static_shape(bias) == (rows,)
        if bias is not None and not fits:
            product = self._behind(node, "product")
            self._graph.insert_after(
                node, ir.node("Add", [node.outputs[0], bias], outputs=[product], name=self._node(product))
            )
        inputs: list[ir.Value | None] = [node.inputs[0], *packed]
        if fits:
            inputs += [None] * (5 - len(inputs)) + [bias]
        _become(
            node,
            "MatMulNBits",
            inputs,
            {
                "K": columns,
                "N": rows,
                "bits": weight.grid.bits,
                "block_size": weight.grid.block_size,
                "accuracy_level": self._accuracy_level,
            },
        )
        self._model.opset_imports.setdefault(MICROSOFT, 1)

    def _gather_packed(self, node: ir.Node, grid: Grid, table: list[ir.Value], columns: int | None) -> None:
        """A packed table; with `columns` it has the blocks as an axis of their own, which is merged afterwards."""
        if columns is not None:
            rank = _index_rank(node)
            assert rank is not None
            rows = self._behind(node, "blocks")
            target = self._constant(f"{rows.name}_shape", np.array([0] * rank + [columns], np.int64))
            node.outputs[0].shape = None
            self._graph.insert_after(
                node,
                ir.node("Reshape", [node.outputs[0], target], outputs=[rows], name=self._node(rows)),
            )
        attributes = {
            "bits": grid.bits,
            "block_size": grid.block_size,
            "gather_axis": 0,
            "quantize_axis": 1 if columns is None else 2,
        }
        _become(node, "GatherBlockQuantized", [table[0], node.inputs[1], *table[1:]], attributes)
        self._model.opset_imports.setdefault(MICROSOFT, 1)

    def _gather_rows(self, node: ir.Node, grid: Grid, layout: Layout, plain: list[ir.Value]) -> None:
        """Gather integer rows, and the scales of their blocks, then dequantize; the float value keeps its name."""
        restored = self._behind(node, "quantized")
        rows = node.outputs[0]
        rows.type = ir.TensorType(ir.DataType.INT8 if grid.symmetric else ir.DataType.UINT8)
        node.replace_input_with(0, plain[0])
        parameters = plain[1:]
        last: ir.Node = node
        if layout.blocked:
            gathered: list[ir.Value] = []
            for constant in plain[1:]:
                name = self._names.value(f"{rows.name}_{len(gathered)}")
                picked = ir.Value(name=name, type=constant.type)
                pick = ir.node(
                    "Gather",
                    [constant, node.inputs[1]],
                    {"axis": 0},
                    outputs=[picked],
                    name=self._node(picked),
                )
                self._graph.insert_after(last, pick)
                gathered.append(picked)
                last = pick
            parameters = gathered
        self._graph.insert_after(last, self._dequantize([rows, *parameters], restored, layout, grid, -1))

    def _dequantize(
        self, inputs: Sequence[ir.Value], restored: ir.Value, layout: Layout, grid: Grid, axis: int
    ) -> ir.Node:
        attributes = {"axis": axis} | ({"block_size": grid.block_size} if layout.blocked else {})
        name = self._names.node(f"{restored.name}_DequantizeLinear")
        return ir.node("DequantizeLinear", inputs, attributes, outputs=[restored], name=name)

    def _behind(self, node: ir.Node, suffix: str) -> ir.Value:
        """Put a new value in the place of a node's result: it takes its name and its readers."""
        result = node.outputs[0]
        restored = ir.Value(name=None, type=result.type, shape=result.shape)
        result.replace_all_uses_with(restored, replace_graph_outputs=True)
        name = str(result.name)
        result.name = self._names.value(f"{name}_{suffix}")
        restored.name = name
        return restored

    def _node(self, value: ir.Value) -> str:
        producer = "greencc" if value.name is None else value.name
        return self._names.node(f"{producer}_weight_only")


def _index_rank(node: ir.Node) -> int | None:
    indices = input_at(node, 1)
    return None if indices is None or indices.shape is None else int(indices.shape.rank())


def _become(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
) -> None:
    """Turn a node into another operator; its name and outputs stay."""
    node.op_type, node.domain = op_type, MICROSOFT
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
