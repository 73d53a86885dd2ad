"""ONNX operators in PyTorch: shapes, indices and moving values about."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from greencc.torch_graph.node import Inputs, Node, Operator, Tensor

_INTEGERS = {
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def to_tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """A constant: every float type becomes float32, which is what training computes in."""
    if array.dtype.kind == "f" or "float" in array.dtype.name:
        return torch.from_numpy(np.array(array, np.float32))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(np.array(array, array.dtype))


def _cast(node: Node, inputs: Inputs) -> Tensor:
    kind = ir.DataType(node.integer("to", 1))
    return inputs[0].to(_INTEGERS.get(kind, torch.float32))


def _constant(node: Node, inputs: Inputs) -> Tensor:
    for name, value in node.attributes.items():
        if name == "value":
            return to_tensor(value.numpy())
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise ValueError("its constant is neither a tensor nor a number")


def _constant_of_shape(node: Node, inputs: Inputs) -> Tensor:
    value = node.attributes.get("value")
    fill = torch.zeros(1) if value is None else to_tensor(value.numpy()).reshape(1)
    return fill.expand(_list(inputs[0])).clone()


def _list(value: Tensor) -> list[int]:
    return [int(item) for item in value.reshape(-1).tolist()]


def _given(node: Node, inputs: Inputs, index: int, name: str) -> list[int] | None:
    """Numbers that older operator sets have as an attribute, newer ones as an input."""
    value = node.input(inputs, index, None)
    return node.integers(name) if value is None else _list(value)


def _reshape(node: Node, inputs: Inputs) -> Tensor:
    shape = _list(inputs[1])
    if not node.integer("allowzero", 0):
        shape = [inputs[0].shape[index] if size == 0 else size for index, size in enumerate(shape)]
    return inputs[0].reshape(shape)


def _flatten(node: Node, inputs: Inputs) -> Tensor:
    value, axis = inputs[0], node.integer("axis", 1)
    axis = axis + value.dim() if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))


def _transpose(node: Node, inputs: Inputs) -> Tensor:
    order = node.integers("perm") or list(range(inputs[0].dim()))[::-1]
    return inputs[0].permute(order)


def _squeeze(node: Node, inputs: Inputs) -> Tensor:
    axes = _given(node, inputs, 1, "axes")
    value = inputs[0]
    if axes is None:
        return value.squeeze()
    for axis in sorted((axis % value.dim() for axis in axes), reverse=True):
        value = value.squeeze(axis)
    return value


def _unsqueeze(node: Node, inputs: Inputs) -> Tensor:
    axes, value = _given(node, inputs, 1, "axes") or [], inputs[0]
    rank = value.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _concat(node: Node, inputs: Inputs) -> Tensor:
    return torch.cat(list(inputs), dim=node.integer("axis", 0))


def _split(node: Node, inputs: Inputs) -> tuple[Tensor, ...]:
    value, axis = inputs[0], node.integer("axis", 0)
    sizes = _given(node, inputs, 1, "split")
    if sizes is None:
        count = len(node.outputs)
        each = -(-value.shape[axis] // count)
        sizes = [each] * (count - 1) + [value.shape[axis] - each * (count - 1)]
    return tuple(torch.split(value, sizes, dim=axis))


def _slice(node: Node, inputs: Inputs) -> Tensor:
    value = inputs[0]
    starts, ends = _given(node, inputs, 1, "starts") or [], _given(node, inputs, 2, "ends") or []
    axes = _given(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _given(node, inputs, 4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Python's rules are ONNX's; huge numbers mean "to the end" in both.
        chosen = range(value.shape[axis])[slice(start, end, step)]
        if step == 1:
            value = value.narrow(axis, chosen.start, len(chosen))
        else:
            value = value.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return value


def _gather(node: Node, inputs: Inputs) -> Tensor:
    value, axis = inputs[0], node.integer("axis", 0) % max(inputs[0].dim(), 1)
    index = inputs[1].long()
    index = torch.where(index < 0, index + value.shape[axis], index)
    taken = value.index_select(axis, index.reshape(-1))
    return taken.reshape([*value.shape[:axis], *index.shape, *value.shape[axis + 1 :]])


def _gather_elements(node: Node, inputs: Inputs) -> Tensor:
    axis = node.integer("axis", 0)
    index = inputs[1].long()
    index = torch.where(index < 0, index + inputs[0].shape[axis], index)
    return torch.gather(inputs[0], axis, index)


def _expand(node: Node, inputs: Inputs) -> Tensor:
    return inputs[0] * torch.ones(_list(inputs[1]), dtype=inputs[0].dtype)


def _shape(node: Node, inputs: Inputs) -> Tensor:
    shape = list(inputs[0].shape)
    return torch.tensor(
        shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))], dtype=torch.int64
    )


def _range(node: Node, inputs: Inputs) -> Tensor:
    start, limit, delta = (item.reshape(()).item() for item in inputs)
    return torch.arange(start, limit, delta, dtype=inputs[0].dtype)


def _tile(node: Node, inputs: Inputs) -> Tensor:
    return inputs[0].repeat(_list(inputs[1]))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _pad(node: Node, inputs: Inputs) -> Tensor:
    value = inputs[0]
    pads = _given(node, inputs, 1, "pads") or []
    fill = node.input(inputs, 2, node.floating("value", 0.0))
    axes = _given(node, inputs, 3, "axes") or list(range(value.dim()))
    half = len(pads) // 2
    around = {axis % value.dim(): (pads[i], pads[half + i]) for i, axis in enumerate(axes)}
    mode = _PAD_MODES[node.text("mode", "constant")]
    if mode == "constant":
        flat = [side for axis in reversed(range(value.dim())) for side in around.get(axis, (0, 0))]
        return F.pad(value, flat, value=float(fill))
    spatial = [side for axis in reversed(range(2, value.dim())) for side in around.get(axis, (0, 0))]
    return F.pad(value, spatial, mode=mode)


def _depth_to_space(node: Node, inputs: Inputs) -> Tensor:
    value, block = inputs[0], node.integer("blocksize", 1)
    if node.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(value, block)
    n, c, h, w = value.shape
    split = value.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node, inputs: Inputs) -> Tensor:
    value, block = inputs[0], node.integer("blocksize", 1)
    n, c, h, w = value.shape
    split = value.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, c * block**2, h // block, w // block)


SHAPE: dict[str, Operator] = {
    "Identity": lambda node, inputs: inputs[0],
    "Dropout": lambda node, inputs: inputs[0],
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Shape": _shape,
    "Size": lambda node, inputs: torch.tensor(inputs[0].numel(), dtype=torch.int64),
    "Range": _range,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
