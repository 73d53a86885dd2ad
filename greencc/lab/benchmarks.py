"""The calibration suite: datatype x operator x size x memory level.

Sizes follow the device's caches, so that every level is the one that holds a benchmark's data, and cover the shapes of
small networks: a rate that only large matrices reach says little about a keyword spotter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from greencc.core.capabilities import Capabilities, Int8Support
from greencc.core.data import Feeds
from greencc.lab.graphs import GraphMaker

_LARGEST_BYTES = 256 << 20
"""Of a working set, unless a cache is larger."""
_FAN = 8


@dataclass(frozen=True)
class Benchmark:
    """One graph to time.

    Attributes:
        name: Unique, such as ``conv3x3-float32-64x28``.
        make: Builds the graph and an input.
    """

    name: str
    make: Callable[[], tuple[ir.Model, Feeds]]


def suite(capabilities: Capabilities, level_bytes: Sequence[int]) -> list[Benchmark]:
    """All benchmarks for a target.

    Args:
        capabilities: Which types its kernels compute in.
        level_bytes: Sizes of the caches, from the fastest; may be empty.
    """
    dtypes = ["float32"]
    if capabilities.float16.issuperset({"Conv", "MatMul"}):
        dtypes.append("float16")
    if capabilities.int8 is not None and {"Conv", "MatMul"} <= capabilities.int8.ops:
        dtypes.append("int8")
    found = [*_overheads(), *_movers(level_bytes), *_functions()]
    for dtype in dtypes:
        int8 = capabilities.int8 if dtype == "int8" else None
        found += [*_products(dtype, int8), *_streams(dtype, int8, level_bytes), *_convolutions(dtype, int8)]
    return found


def _overheads() -> Iterator[Benchmark]:
    for count in (1, 4, 16, 48):
        yield Benchmark(f"tiny-float32-{count}", partial(_fan, "Add", (1, 64), count))


def _movers(level_bytes: Sequence[int]) -> Iterator[Benchmark]:
    """Element-wise additions and copies whose data sit in each level."""
    for size in working_sets(level_bytes):
        # One input, and a constant and a result for each operator.
        elements = max(256, size // 4 // (_FAN + 2))
        for op_type in ("Add", "Concat"):
            yield Benchmark(
                f"{op_type.lower()}-float32-{_human(size)}",
                partial(_fan, op_type, (1, elements), _FAN),
            )


def working_sets(level_bytes: Sequence[int]) -> list[int]:
    """A size for each cache that fills half of it, and one that fits none; two sizes where caches are far apart."""
    sizes: list[int] = []
    for index, size in enumerate(level_bytes):
        below = level_bytes[index - 1] if index else 0
        sizes.append(size // 2)
        if size >= 8 * max(below, 1 << 14):
            sizes.append(max(2 * below, size // 8))
    last = level_bytes[-1] if level_bytes else _LARGEST_BYTES // 4
    return sorted({*sizes, min(4 * last, max(_LARGEST_BYTES, 2 * last))})


def _fan(op_type: str, shape: tuple[int, ...], count: int) -> tuple[ir.Model, Feeds]:
    maker = GraphMaker("float32", shape)
    attributes = {"axis": 0} if op_type == "Concat" else {}
    results = [maker.operator(op_type, [maker.start], shape, attributes) for _ in range(count)]
    return maker.model(results), maker.feeds()


def _functions() -> Iterator[Benchmark]:
    for op_type, shapes in {
        "Softmax": ((64, 64), (256, 256)),
        "Sigmoid": ((16, 1024), (256, 1024)),
        "Erf": ((64, 1024),),
        "Tanh": ((64, 256),),
    }.items():
        for shape in shapes:
            yield Benchmark(
                f"{op_type.lower()}-float32-{_shape(shape)}",
                partial(_function, op_type, shape),
            )
    for shape in ((64, 384), (128, 768)):
        yield Benchmark(f"layernorm-float32-{_shape(shape)}", partial(_layer_norm, shape))


def _function(op_type: str, shape: tuple[int, ...]) -> tuple[ir.Model, Feeds]:
    maker = GraphMaker("float32", shape)
    # Softmax joins nothing; the others do not follow each other, so that each stays a kernel of its own.
    if op_type == "Softmax":
        value = maker.start
        for _ in range(4):
            value = maker.operator(op_type, [value])
        return maker.model([value]), maker.feeds()
    return maker.model([maker.operator(op_type, [maker.start])]), maker.feeds()


def _layer_norm(shape: tuple[int, int]) -> tuple[ir.Model, Feeds]:
    maker = GraphMaker("float32", shape)
    value = maker.start
    for _ in range(4):
        value = maker.operator("LayerNormalization", [value], (shape[1],), {"axis": -1})
    return maker.model([value]), maker.feeds()


def _products(dtype: str, int8: Int8Support | None) -> Iterator[Benchmark]:
    for rows, inner, repeat in ((16, 128, 8), (32, 256, 6), (64, 384, 4), (128, 512, 2), (192, 768, 1)):
        yield Benchmark(
            f"matmul-{dtype}-{rows}x{inner}x{inner}",
            partial(_matmuls, dtype, int8, rows, inner, repeat),
        )


def _streams(dtype: str, int8: Int8Support | None, level_bytes: Sequence[int]) -> Iterator[Benchmark]:
    """Products with a vector, which read each weight once: bound by the level that holds the weights."""
    width = 1 if dtype == "int8" else 2 if dtype == "float16" else 4
    for size in working_sets(level_bytes):
        inner = 128
        while inner < 2048 and 4 * inner * inner * width <= size:
            inner *= 2
        repeat = min(64, max(1, size // (inner * inner * width)))
        yield Benchmark(
            f"gemv-{dtype}-{_human(size)}",
            partial(_matmuls, dtype, int8, 1, inner, repeat),
        )


def _matmuls(
    dtype: str, int8: Int8Support | None, rows: int, inner: int, repeat: int
) -> tuple[ir.Model, Feeds]:
    maker = GraphMaker(dtype, (rows, inner), int8)
    value = maker.start
    for _ in range(repeat):
        value = maker.operator("MatMul", [value], (inner, inner))
    return maker.model([value]), maker.feeds()


def _convolutions(dtype: str, int8: Int8Support | None) -> Iterator[Benchmark]:
    layers = {
        "conv3x3": (3, False, ((16, 32, 4), (32, 28, 4), (64, 28, 2), (128, 14, 2), (256, 7, 2))),
        "conv1x1": (1, False, ((24, 56, 4), (64, 28, 4), (128, 14, 4), (256, 14, 2), (512, 7, 2))),
        "depthwise3x3": (3, True, ((32, 56, 4), (96, 28, 4), (192, 14, 4), (384, 7, 4))),
    }
    for name, (kernel, grouped, shapes) in layers.items():
        for channels, size, repeat in shapes:
            yield Benchmark(
                f"{name}-{dtype}-{channels}x{size}",
                partial(_convs, dtype, int8, kernel, grouped, channels, size, repeat),
            )


def _convs(
    dtype: str, int8: Int8Support | None, kernel: int, grouped: bool, channels: int, size: int, repeat: int
) -> tuple[ir.Model, Feeds]:
    maker = GraphMaker(dtype, (1, channels, size, size), int8)
    value = maker.start
    for _ in range(repeat):
        value = maker.operator(
            "Conv",
            [value],
            (channels, 1 if grouped else channels, kernel, kernel),
            {"group": channels if grouped else 1, "pads": [kernel // 2] * 4},
        )
    return maker.model([value]), maker.feeds()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _human(size: int) -> str:
    return f"{size >> 20}MiB" if size >= 1 << 20 else f"{size >> 10}KiB"
