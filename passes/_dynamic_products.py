"""MatMul, Gemm and Conv with a constant weight as integer products of dynamically quantized activations.

With x ~ s_x (q_x - z_x) and w = s_w q_w, one scale per output channel,

    x w + b  ~  float(MatMulInteger(q_x, q_w, z_x)) * (s_x * s_w) + b

The product of the two scales has s_x first and the bias comes last: that is the pattern ONNX Runtime fuses into
`DynamicQuantizeMatMul`, or `MatMulIntegerToFloat` where several products share the activation
(`core/optimizer/matmul_integer_to_float.cc`, `dynamic_quantize_matmul_fusion.cc`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import attribute_int, constant_tensor, input_at
from greencc.passes._dynamic_insert import DynamicInserter, is_finite, replace_output
from greencc.passes._quantize_scales import weight_limit

INTEGER_OPS = {"Conv": "ConvInteger", "Gemm": "MatMulInteger", "MatMul": "MatMulInteger"}
_MAX_SUM = 2**31 - 1


@dataclass(frozen=True)
class Product:
    """How a node is expressed.

    Attributes:
        node: Conv, Gemm or MatMul.
        x: Its activation.
        weight: Its constant weight.
        tensor: What the weight holds.
        axis: Output channels in the layout the integer operator wants; None for one scale per tensor.
        bias: Added to the result; None where there is none.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    tensor: ir.TensorProtocol
    axis: int | None
    bias: ir.Value | None = None


def describe(node: ir.Node, min_elements: int, per_channel: bool, bits: int) -> Product | str | None:
    """How a product is quantized, why it is not, or None where there is nothing to say (it is too small)."""
    x, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant_tensor(weight)
    if x is None or weight is None:
        return "an operand is missing"
    if constant_tensor(x) is not None:
        return "its first operand is constant"
    if tensor is None:
        if node.op_type == "MatMul":
            return "both operands are activations"
        return "its weight is computed, or can be overridden by an input"
    if x.dtype not in (ir.DataType.FLOAT, None) or tensor.dtype is not ir.DataType.FLOAT:
        return "its operands are not float32"
    shape = [int(size) for size in tensor.shape.numpy()]
    if tensor.size == 0:
        return "its weight is empty"
    if len(shape) < 2 or (x.shape is not None and x.shape.rank() < 2):
        return "it multiplies by a vector"
    if tensor.size < min_elements:
        return None
    bias = None if node.op_type == "MatMul" else input_at(node, 2)
    if node.op_type == "Gemm" and (problem := _gemm_problem(node, bias)) is not None:
        return problem
    terms = int(np.prod(shape[1:])) if node.op_type == "Conv" else shape[-2]
    if node.op_type == "Gemm" and attribute_int(node, "transB", 0):
        terms = shape[1]
    if terms * 255 * weight_limit(bits) > _MAX_SUM:
        return f"a sum of {terms} products may overflow 32 bits"
    if not is_finite(tensor):
        return "its weight is not finite"
    axis = 0 if node.op_type == "Conv" else 1 if len(shape) == 2 else None
    return Product(node, x, weight, tensor, axis if per_channel else None, bias)


def quantize_product(product: Product, inserter: DynamicInserter) -> None:
    """Replace the node."""
    node = product.node
    array, layout = _matrix(node, product.tensor)
    integers, scales = inserter.weight(
        product.weight, product.tensor, f"{layout} {product.axis}", array, product.axis
    )
    result, name = node.outputs[0], str(node.name)
    values, x_scale, zero_point = inserter.activation(node, product.x)
    rank = array.ndim if node.op_type == "Conv" else 0
    total = inserter.op(
        node,
        INTEGER_OPS[node.op_type],
        [values, integers, zero_point],
        ir.DataType.INT32,
        result.shape,
        f"{name}_{INTEGER_OPS[node.op_type]}",
        node.attributes if node.op_type == "Conv" else None,
    )
    floats = inserter.op(
        node,
        "Cast",
        [total],
        ir.DataType.FLOAT,
        result.shape,
        f"{name}_Cast",
        {"to": ir.DataType.FLOAT.value},
    )
    w_scale = inserter.constant(node, f"{name}_weight_scale", _per_channel(scales, rank))
    scale = inserter.op(
        node, "Mul", [x_scale, w_scale], ir.DataType.FLOAT, ir.Shape(w_scale.shape or ()), f"{name}_scales"
    )
    output = inserter.op(node, "Mul", [floats, scale], ir.DataType.FLOAT, result.shape, f"{name}_rescale")
    bias = _bias(product, inserter, rank)
    if bias is not None:
        output = inserter.op(node, "Add", [output, bias], ir.DataType.FLOAT, result.shape, f"{name}_bias")
    replace_output(node, output)
    inserter.drop(product.weight)
    if product.bias is not None and product.bias is not bias and constant_tensor(product.bias) is not None:
        inserter.drop(product.bias)


def _matrix(node: ir.Node, tensor: ir.TensorProtocol) -> tuple[Array, str]:
    """The weight as the integer operator reads it, and a name for what was done to it."""
    array = tensor.numpy()
    if node.op_type != "Gemm":
        return array, "as is"
    transposed, alpha = bool(attribute_int(node, "transB", 0)), _factor(node, "alpha")
    if transposed:
        array = np.ascontiguousarray(array.T)
    return array if alpha == 1.0 else array * np.float32(alpha), f"{transposed} {alpha!r}"


def _bias(product: Product, inserter: DynamicInserter, rank: int) -> ir.Value | None:
    """The bias in the shape and with the factor that an Add after the product needs."""
    bias = product.bias
    if bias is None:
        return None
    tensor, beta = constant_tensor(bias), _factor(product.node, "beta")
    name = f"{product.node.name}_bias"
    if tensor is None:
        if not rank:
            return bias
        shape = inserter.constant(
            product.node, f"{name}_shape", np.array([-1] + [1] * (rank - 2), dtype=np.int64)
        )
        return inserter.op(product.node, "Reshape", [bias, shape], ir.DataType.FLOAT, None, f"{name}_Reshape")
    array = tensor.numpy()
    if beta != 1.0:
        array = array * np.float32(beta)
    if rank:
        array = _per_channel(array, rank)
    elif array.ndim == 2 and array.shape[0] == 1:
        # The runtime only fuses a bias of rank 1.
        array = array.reshape(-1)
    return bias if array is tensor.numpy() else inserter.constant(product.node, name, array)


def _per_channel(values: Array, rank: int) -> Array:
    """One value per channel, broadcast along the first axis of a weight's spatial ones (Conv) or the last (0)."""
    return values if not rank or values.ndim == 0 else values.reshape(-1, *[1] * (rank - 2))


def _gemm_problem(node: ir.Node, bias: ir.Value | None) -> str | None:
    if attribute_int(node, "transA", 0):
        return "it transposes its activations"
    if bias is not None and constant_tensor(bias) is None and _factor(node, "beta") != 1.0:
        return "its bias is computed, and scaled by beta"
    return None


def _factor(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()
