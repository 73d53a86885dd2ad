"""ONNX operators in PyTorch: convolutions, pooling, normalisation, resizing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from greencc.torch_graph.node import Inputs, Node, Operator, Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _padding(
    node: Node, size: list[int], kernel: list[int], stride: list[int], dilation: list[int]
) -> list[tuple[int, int]]:
    """Values added before and after each spatial axis."""
    auto, rank = node.text("auto_pad", "NOTSET"), len(kernel)
    if auto in ("NOTSET", "VALID"):
        pads = node.integers("pads") if auto == "NOTSET" else None
        pads = pads or [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    result = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return result


def _flat(pads: list[tuple[int, int]]) -> list[int]:
    """As `torch.nn.functional.pad` wants them: the last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def _conv(node: Node, inputs: Inputs) -> Tensor:
    value, weight = inputs[0], inputs[1]
    rank = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride = node.integers("strides") or [1] * rank
    dilation = node.integers("dilations") or [1] * rank
    pads = _padding(node, list(value.shape[2:]), kernel, stride, dilation)
    symmetric = all(before == after for before, after in pads)
    if not symmetric:
        value = F.pad(value, _flat(pads))
    return _CONV[rank](
        value,
        weight,
        node.input(inputs, 2, None),
        stride=stride,
        padding=[before for before, _ in pads] if symmetric else 0,
        dilation=dilation,
        groups=node.integer("group", 1),
    )


def _conv_transpose(node: Node, inputs: Inputs) -> Tensor:
    value, weight = inputs[0], inputs[1]
    rank = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride = node.integers("strides") or [1] * rank
    dilation = node.integers("dilations") or [1] * rank
    extra = node.integers("output_padding") or [0] * rank
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(value.shape[2:], kernel, stride, dilation, extra, strict=True)
    ]
    pads, wanted = _transpose_padding(node, full, list(value.shape[2:]), stride)
    # Everything is computed, then cropped: that covers pads of any shape.
    result = _CONV_TRANSPOSE[rank](
        value,
        weight,
        node.input(inputs, 2, None),
        stride=stride,
        output_padding=extra,
        dilation=dilation,
        groups=node.integer("group", 1),
    )
    for axis, ((before, _), size) in enumerate(zip(pads, wanted, strict=True), 2):
        result = result.narrow(axis, before, size)
    return result


def _transpose_padding(
    node: Node, full: list[int], size: list[int], stride: list[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """What is cropped from each axis of the full result, and the size that remains."""
    rank, auto = len(full), node.text("auto_pad", "NOTSET")
    wanted = node.integers("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = (node.integers("pads") if auto == "NOTSET" else None) or [0] * (2 * rank)
        pairs = list(zip(pads[:rank], pads[rank:], strict=True))
        return pairs, [n - a - b for n, (a, b) in zip(full, pairs, strict=True)]
    wanted = wanted[-rank:] if wanted is not None else [n * s for n, s in zip(size, stride, strict=True)]
    pairs = []
    for n, w in zip(full, wanted, strict=True):
        total = max(0, n - w)
        half = total // 2
        pairs.append((total - half, half) if auto == "SAME_LOWER" else (half, total - half))
    return pairs, wanted


def _pool(average: bool) -> Operator:
    def run(node: Node, inputs: Inputs) -> Tensor:
        value = inputs[0]
        kernel = node.integers("kernel_shape") or []
        rank = len(kernel)
        stride = node.integers("strides") or [1] * rank
        dilation = node.integers("dilations") or [1] * rank
        pads = _padding(node, list(value.shape[2:]), kernel, stride, dilation)
        ceil = bool(node.integer("ceil_mode", 0))
        fits = all(a == b and 2 * a <= k for (a, b), k in zip(pads, kernel, strict=True))
        around = [before for before, _ in pads]
        if not average:
            if not fits:
                value, around = F.pad(value, _flat(pads), value=float("-inf")), [0] * rank
            return _MAX_POOL[rank](value, kernel, stride, around, dilation, ceil_mode=ceil)
        counted = bool(node.integer("count_include_pad", 0))
        if fits or rank == 3:
            return _AVERAGE_POOL[rank](
                value, kernel, stride, around, ceil_mode=ceil, count_include_pad=counted
            )
        padded = F.pad(value, _flat(pads))
        total = _AVERAGE_POOL[rank](padded, kernel, stride, ceil_mode=ceil)
        if counted:
            return total
        # The mean over what is inside: the mean over all, divided by the share inside.
        share = _AVERAGE_POOL[rank](
            F.pad(torch.ones_like(value), _flat(pads)), kernel, stride, ceil_mode=ceil
        )
        return total / share

    return run


def _global(reduce: Callable[..., Tensor]) -> Operator:
    return lambda node, inputs: reduce(inputs[0], dim=list(range(2, inputs[0].dim())), keepdim=True)


def _channels(vector: Tensor, value: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (value.dim() - 2))


def _batch_norm(node: Node, inputs: Inputs) -> Tensor:
    """With the statistics of the model: they are not trained (see docs/recover.md)."""
    value, scale, bias, mean, variance = inputs[:5]
    factor = scale / torch.sqrt(variance + node.floating("epsilon", 1e-5))
    return value * _channels(factor, value) + _channels(bias - mean * factor, value)


def _instance_norm(node: Node, inputs: Inputs) -> Tensor:
    return F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=node.floating("epsilon", 1e-5))


def _group_norm(node: Node, inputs: Inputs) -> Tensor:
    value, scale, bias = inputs
    groups = node.integer("num_groups", 1)
    if scale.numel() != value.shape[1]:
        # Until opset 20 there is one scale per group.
        scale, bias = (item.repeat_interleave(value.shape[1] // groups) for item in (scale, bias))
    return F.group_norm(value, groups, scale, bias, eps=node.floating("epsilon", 1e-5))


def _layer_norm(node: Node, inputs: Inputs) -> Tensor:
    value = inputs[0]
    axis = node.integer("axis", -1)
    axes = list(range(axis % value.dim(), value.dim()))
    centred = value - value.mean(dim=axes, keepdim=True)
    variance = (centred * centred).mean(dim=axes, keepdim=True)
    result = centred * torch.rsqrt(variance + node.floating("epsilon", 1e-5)) * inputs[1]
    bias = node.input(inputs, 2, None)
    return result if bias is None else result + bias


def _lp_norm(node: Node, inputs: Inputs) -> Tensor:
    return F.normalize(inputs[0], p=node.integer("p", 2), dim=node.integer("axis", -1))


_RESIZE = {
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("nearest", "half_pixel", "round_prefer_floor"): ("nearest-exact", None),
    ("nearest", "half_pixel", "round_prefer_ceil"): ("nearest-exact", None),
    ("linear", "half_pixel", ""): ("linear", False),
    ("linear", "pytorch_half_pixel", ""): ("linear", False),
    ("linear", "align_corners", ""): ("linear", True),
}


def _resize(node: Node, inputs: Inputs) -> Tensor:
    """Nearest and linear interpolation of the spatial axes."""
    value = inputs[0]
    upsample = node.op_type == "Upsample"
    mode = node.text("mode", "nearest")
    transform = "asymmetric" if upsample else node.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if upsample else node.text("nearest_mode", "round_prefer_floor")
    how = _RESIZE.get((mode, transform, rounding if mode == "nearest" else ""))
    if how is None:
        raise ValueError(f"it resizes by {mode} interpolation with {transform} coordinates ({rounding})")
    scales = node.input(inputs, 1 if upsample else 2, None)
    sizes = None if upsample else node.input(inputs, 3, None)
    rank = value.dim() - 2
    if sizes is not None and sizes.numel():
        wanted = [int(size) for size in sizes.tolist()][-rank:]
    else:
        factors = (scales if scales is not None else torch.ones(value.dim())).tolist()[-rank:]
        wanted = [int(n * factor) for n, factor in zip(value.shape[2:], factors, strict=True)]
    name, corners = how
    if name == "linear":
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
        return F.interpolate(value, size=wanted, mode=name, align_corners=corners)
    return F.interpolate(value, size=wanted, mode=name)


NN: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool(average=False),
    "AveragePool": _pool(average=True),
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "Resize": _resize,
    "Upsample": _resize,
}
