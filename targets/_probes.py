"""One-node models that tell by running whether a runtime has an operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper


@dataclass(frozen=True)
class Probe:
    """A one-node model. One input is the activation, the others are weights.

    Attributes:
        domain: Of the operator, "" for the default one.
        op_type: The operator.
        shapes: Of the inputs; None where an optional one is left out.
        attributes: Name and value of each.
        opset: The default-domain opset the model imports.
        types: ONNX element types of the inputs; empty: all have the type the model is probed in.
        outputs: Element types of the outputs; empty: one, of the type the model is probed in.
        variant: What is special about this form of the operator, for its name.
        activation: Index of the input that is fed; the others are constants.
    """

    domain: str
    op_type: str
    shapes: tuple[tuple[int, ...] | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    opset: int = 17
    types: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    variant: str = ""
    activation: int = 0

    @property
    def qualified(self) -> str:
        variant = f":{self.variant}" if self.variant else ""
        return f"{self.domain or 'ai.onnx'}::{self.op_type}{variant}"


_X = (2, 4, 8)
_MS = "com.microsoft"

FUSED_PROBES: tuple[Probe, ...] = (
    Probe(_MS, "Gelu", (_X,)),
    Probe(_MS, "FastGelu", (_X, (8,))),
    Probe(_MS, "BiasGelu", (_X, (8,))),
    Probe(_MS, "QuickGelu", (_X,), (("alpha", 1.702),)),
    Probe(_MS, "SkipLayerNormalization", (_X, _X, (8,), (8,)), (("epsilon", 1e-5),)),
    Probe(_MS, "SkipSimplifiedLayerNormalization", (_X, _X, (8,)), (("epsilon", 1e-5),)),
    Probe("", "SimplifiedLayerNormalization", (_X, (8,)), (("axis", -1), ("epsilon", 1e-5))),
    Probe(_MS, "Attention", (_X, (8, 24), (24,)), (("num_heads", 2),)),
    Probe(_MS, "MultiHeadAttention", (_X, _X, _X), (("num_heads", 2),)),
    Probe(_MS, "FusedMatMul", ((4, 8), (16, 8)), (("transB", 1), ("alpha", 0.5))),
    Probe(_MS, "FusedConv", ((1, 4, 8, 8), (8, 4, 3, 3)), (("activation", "Relu"), ("kernel_shape", [3, 3]))),
    Probe(_MS, "FusedGemm", ((4, 8), (8, 16), (16,)), (("activation", "Relu"),)),
    Probe("", "LayerNormalization", (_X, (8,), (8,)), (("axis", -1),)),
    Probe("", "HardSwish", (_X,)),
    Probe("", "Mish", (_X,), opset=18),
    Probe("", "Gelu", (_X,), opset=20),
    Probe("", "GroupNormalization", ((1, 4, 8, 8), (4,), (4,)), (("num_groups", 2),), opset=21),
    Probe("", "RMSNormalization", (_X, (8,)), (("axis", -1),), opset=23),
    Probe("", "Swish", (_X,), opset=24),
    Probe("", "Attention", ((1, 2, 4, 8),) * 3, opset=23),
)

_F, _U8, _S8, _S32, _S4 = (
    TensorProto.FLOAT,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT4,
)


def _packed_product(bits: int, variant: str = "") -> Probe:
    """MatMulNBits with a partial last block and a bias, as greencc writes it."""
    attributes = (("K", 40), ("N", 4), ("bits", bits), ("block_size", 32), ("accuracy_level", 4))
    shapes = ((2, 40), (4, 2, 4 * bits), (4, 2), None, None, (4,))
    return Probe(_MS, "MatMulNBits", shapes, attributes, types=(_F, _U8, _F, _U8, _S32, _F), variant=variant)


def _packed_table(bits: int, variant: str = "") -> Probe:
    """GatherBlockQuantized over a table of bytes, which needs no INT4 type."""
    attributes = (("bits", bits), ("block_size", 32), ("gather_axis", 0), ("quantize_axis", 1))
    return Probe(
        _MS,
        "GatherBlockQuantized",
        ((4, 8 * bits), (2,), (4, 2)),
        attributes,
        types=(_U8, TensorProto.INT64, _F),
        outputs=(_F,),
        variant=variant,
        activation=1,
    )


INTEGER_PROBES: tuple[Probe, ...] = (
    _packed_product(4),
    _packed_product(8, "8"),
    _packed_table(4),
    _packed_table(8, "8"),
    Probe(
        "",
        "DequantizeLinear",
        ((64, 2), (2, 2)),
        (("axis", 0), ("block_size", 32)),
        opset=21,
        types=(_S4, _F),
        outputs=(_F,),
        variant="int4",
        activation=1,
    ),
    Probe("", "DynamicQuantizeLinear", (_X,), outputs=(_U8, _F, _U8)),
    Probe("", "MatMulInteger", ((4, 8), (8, 4)), types=(_U8, _S8), outputs=(_S32,)),
    Probe("", "ConvInteger", ((1, 4, 8, 8), (8, 4, 3, 3)), types=(_U8, _U8), outputs=(_S32,)),
    Probe(
        "",
        "QLinearConv",
        ((1, 4, 8, 8), (), (), (8, 4, 3, 3), (8,), (8,), (), ()),
        types=(_U8, _F, _U8, _S8, _F, _S8, _F, _U8),
        outputs=(_U8,),
    ),
    Probe(
        _MS,
        "QGemm",
        ((4, 8), (), (), (8, 4), (), (), (4,)),
        types=(_U8, _F, _U8, _S8, _F, _S8, _S32),
        outputs=(_F,),
    ),
    Probe(_MS, "DynamicQuantizeMatMul", ((4, 8), (8, 4), (4,), (4,)), types=(_F, _S8, _F, _S8)),
    Probe(
        _MS,
        "MatMulIntegerToFloat",
        ((4, 8), (8, 4), (), (4,), (), (4,)),
        types=(_U8, _S8, _F, _F, _U8, _S8),
        outputs=(_F,),
    ),
    Probe(
        _MS,
        "DynamicQuantizeLSTM",
        ((3, 1, 4), (1, 4, 32), (1, 8, 32), None, None, None, None, None, (1,), (1,), (1,), (1,)),
        (("hidden_size", 8),),
        types=(_F, _S8, _S8, _F, _S32, _F, _F, _F, _F, _S8, _F, _S8),
    ),
)

FLOAT16_PROBES: tuple[Probe, ...] = (
    Probe("", "Conv", ((1, 4, 8, 8), (8, 4, 3, 3))),
    Probe("", "Gemm", ((4, 8), (8, 16), (16,))),
    Probe("", "MatMul", ((4, 8), (8, 16))),
    Probe("", "Add", (_X, _X)),
    Probe("", "Mul", (_X, _X)),
    Probe("", "Relu", (_X,)),
    Probe("", "LeakyRelu", (_X,)),
    Probe("", "Tanh", (_X,)),
    Probe("", "Sigmoid", (_X,)),
    Probe("", "Softmax", (_X,)),
    Probe("", "LayerNormalization", (_X, (8,), (8,)), (("axis", -1),)),
    Probe("", "MaxPool", ((1, 4, 8, 8),), (("kernel_shape", [2, 2]),)),
    Probe("", "AveragePool", ((1, 4, 8, 8),), (("kernel_shape", [2, 2]),)),
    Probe("", "GlobalAveragePool", ((1, 4, 8, 8),)),
)


def probe_feeds(probe: Probe) -> dict[str, NDArray[Any]]:
    """What a probe's model is fed, in FP32 where the probe does not say otherwise."""
    source, shape = _source(probe, TensorProto.FLOAT)
    kind = helper.tensor_dtype_to_np_dtype(source)
    if kind.kind != "f":
        return {"x": np.ones(shape, kind)}
    return {"x": np.linspace(-0.5, 1.0, int(np.prod(shape)), dtype=kind).reshape(shape)}


def identity(opset: int, ir_version: int) -> onnx.ModelProto:
    """A model that does nothing, of an opset and an IR version."""
    node = helper.make_node("Identity", ["x"], ["y"])
    floats = TensorProto.FLOAT
    return _wrap(node, (floats, [2]), [floats], [], opset, ir_version=ir_version)


def probe_model(probe: Probe, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The model of a probe: `dtype` is the type of what has none of its own."""
    types = probe.types or (dtype,) * len(probe.shapes)
    names = [f"w{index}" if index != probe.activation else "x" for index in range(len(probe.shapes))]
    used = [name if shape is not None else "" for name, shape in zip(names, probe.shapes, strict=True)]
    # MultiHeadAttention and the like take several activations; constants are as good.
    weights = [
        helper.make_tensor(name, kind, shape, np.full(int(np.prod(shape)), _filling(kind)).tolist())
        for name, shape, kind in zip(names, probe.shapes, types, strict=True)
        if shape is not None and name != "x"
    ]
    outputs = list(probe.outputs) or [dtype]
    results = ["y", *(f"y{index}" for index in range(1, len(outputs)))]
    node = helper.make_node(
        probe.op_type, used, results, name="probe", domain=probe.domain, **dict(probe.attributes)
    )
    # INT4 came with IR version 10.
    ir_version = 10 if TensorProto.INT4 in types else 8
    return _wrap(node, _source(probe, dtype), outputs, weights, probe.opset, ir_version=ir_version)


def _source(probe: Probe, dtype: int) -> tuple[int, tuple[int, ...]]:
    """Element type and shape of what is fed."""
    kind = probe.types[probe.activation] if probe.types else dtype
    return kind, probe.shapes[probe.activation] or ()


def _filling(kind: int) -> float:
    return 0.25 if kind in (TensorProto.FLOAT, TensorProto.FLOAT16) else 1


def _wrap(
    node: onnx.NodeProto,
    source: tuple[int, Sequence[int]],
    outputs: Sequence[int],
    weights: Sequence[onnx.TensorProto],
    opset: int,
    *,
    ir_version: int,
) -> onnx.ModelProto:
    """A model around a node: `source` is the type and shape of its input x."""
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", source[0], list(source[1]))],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(node.output, outputs, strict=True)
        ],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir_version
    return model
