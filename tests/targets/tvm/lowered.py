"""Small ONNX graphs, compiled as the targets compile them, and run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds
from greencc.core.graph import ensure_names
from greencc.core.shapes import infer_shapes
from greencc.targets._tvm.building import tensor_specs
from greencc.targets._tvm.description import LIBRARY
from greencc.targets._tvm.engine import TvmEngine
from greencc.targets._tvm.library import write_library
from greencc.targets._tvm.lowering import Lowered, lower_model
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.schedules import DefaultSchedules


def parsed(
    body: str, weights: Mapping[str, Array], inputs: str, outputs: str, *, opset: int = 17
) -> ir.Model:
    """A model from ONNX's text; weights that it does not name are left out."""
    words = set(re.findall(r"\w+", body + outputs))
    read = [ir.tensor(array, name=name) for name, array in weights.items() if name in words]
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "custom" : 1]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = ir.from_onnx_text(text, initializers=read)
    ensure_names(model)
    infer_shapes(model)
    return model


def lowered(model: ir.Model, machine: Machine) -> Lowered:
    """As Relax, without tuning."""
    return lower_model(model, machine, DefaultSchedules())


@dataclass
class Compiled:
    """A model in machine code.

    Attributes:
        lowered: What it was made of.
        folder: Where its files are.
    """

    lowered: Lowered
    folder: Path
    engine: TvmEngine

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return self.engine.run(feeds)

    @property
    def library(self) -> Path:
        return self.folder / LIBRARY


def compile_model(model: ir.Model, machine: Machine, folder: Path, threads: int | None = 1) -> Compiled:
    """Through Relax to a library; it is not opened where there are no threads."""
    result = lowered(model, machine)
    description = write_library(
        result.module,
        folder,
        machine=machine,
        inputs=tensor_specs(model.graph.inputs, "input"),
        outputs=tensor_specs(model.graph.outputs, "output"),
        kernels=result.kernels,
        samplewise=result.samplewise,
    )
    return Compiled(result, folder, TvmEngine(description, threads) if threads else None)


class Quantized:
    """A graph of QuantizeLinear/DequantizeLinear pairs, written operator by operator.

    Every quantized value is an output too, so that each can be judged by itself.

    Attributes:
        exact: Values that must equal the reference bit for bit.
        close: Values that may be one step away.
    """

    def __init__(self, channels: int, rows: int, columns: int, dtype: str = "uint8", seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.weights: dict[str, Array] = {}
        self.lines: list[str] = []
        self.exact: list[str] = []
        self.close: list[str] = []
        self.scales: dict[str, float] = {}
        self.inputs = f"{dtype}[N,{channels},{rows},{columns}] x"
        self._grid("x", 0.04, 9)

    def feeds(self, samples: int, shape: Sequence[int]) -> dict[str, Array]:
        limits = np.iinfo(self.dtype)
        values = self.rng.integers(limits.min, limits.max + 1, (samples, *shape))
        return {"x": values.astype(self.dtype)}

    def model(self) -> ir.Model:
        names = [*self.exact, *self.close]
        outputs = ", ".join(f"{self.dtype.name} {name}" for name in names)
        return parsed(" ".join(self.lines), self.weights, self.inputs, outputs)

    def product(
        self,
        op_type: str,
        read: str,
        stored: str,
        shape: Sequence[int],
        *,
        attributes: str = "",
        axis: int = 0,
        bias: str = "int32",
        tail: str = "{y} = Identity({x})",
        exact: bool = True,
        grid: tuple[float, int] | None = None,
    ) -> None:
        """A weighted operator with per-channel weights, what follows it, and the quantization of that.

        Args:
            attributes: In angle brackets.
            axis: Of the output channels in `shape`.
            bias: ``int32`` on the grid of the sums, ``float32``, or nothing.
            tail: What follows, from {x} to {y}.
            exact: The reference's docstring allows no step between the two.
            grid: Scale and zero point of the output; default: so that sums fill it.
        """
        channels, depth = shape[axis], int(np.prod(shape)) / shape[axis]
        scales = self.rng.uniform(0.005, 0.015, channels).astype(np.float32)
        self._tensor(f"{stored}_w", self.rng.integers(-128, 128, shape).astype(np.int8))
        self._tensor(f"{stored}_ws", scales)
        self._tensor(f"{stored}_wz", np.zeros(channels, np.int8))
        self.lines.append(
            f"{stored}_wf = DequantizeLinear<axis={axis}>({stored}_w, {stored}_ws, {stored}_wz)"
        )
        operands = f"{self._read(read)}, {stored}_wf"
        step = self.scales[read] * 0.01 * np.sqrt(depth)
        if bias == "int32":
            self._tensor(f"{stored}_b", self.rng.integers(-9000, 9000, channels).astype(np.int32))
            self._tensor(f"{stored}_bs", np.float32(self.scales[read]) * scales)
            self._tensor(f"{stored}_bz", np.zeros(channels, np.int32))
            self.lines.append(f"{stored}_bf = DequantizeLinear<axis=0>({stored}_b, {stored}_bs, {stored}_bz)")
            operands += f", {stored}_bf"
        elif bias == "float32":
            self._tensor(f"{stored}_bf", (self.rng.normal(size=channels) * 3000 * step).astype(np.float32))
            operands += f", {stored}_bf"
        self.lines.append(f"{stored}_sum = {op_type}{attributes}({operands})")
        self.lines.append(tail.format(x=f"{stored}_sum", y=f"{stored}_f"))
        scale, zero_point = grid or (float(step * 70), 101)
        self._quantize(stored, scale, zero_point, exact)

    def operator(
        self,
        op_type: str,
        read: Sequence[str],
        stored: str,
        *,
        attributes: str = "",
        extra: str = "",
        exact: bool = True,
        grid: tuple[float, int] | None = None,
    ) -> None:
        """An operator without weights; it keeps the grid of the first value read where none is given."""
        operands = ", ".join([*map(self._read, read), *([extra] if extra else [])])
        self.lines.append(f"{stored}_f = {op_type}{attributes}({operands})")
        scale, zero_point = grid or (self.scales[read[0]], int(self.weights[f"{read[0]}_z"]) + self._shift)
        self._quantize(stored, scale, zero_point, exact)

    def _quantize(self, stored: str, scale: float, zero_point: int, exact: bool) -> None:
        self._grid(stored, scale, zero_point)
        self.lines.append(f"{stored} = QuantizeLinear({stored}_f, {stored}_s, {stored}_z)")
        (self.exact if exact else self.close).append(stored)

    def _read(self, name: str) -> str:
        """A dequantized form for each reader, as exporters write them."""
        copy = f"{name}_d{len(self.lines)}"
        self.lines.append(f"{copy} = DequantizeLinear({name}, {name}_s, {name}_z)")
        return copy

    def _grid(self, name: str, scale: float, zero_point: int) -> None:
        self.scales[name] = scale
        self._tensor(f"{name}_s", np.array(scale, np.float32))
        self._tensor(f"{name}_z", np.array(zero_point - self._shift, self.dtype))

    @property
    def _shift(self) -> int:
        """Zero points are given as of uint8."""
        return 128 if self.dtype == np.int8 else 0

    def _tensor(self, name: str, array: Array) -> None:
        self.weights[name] = array
