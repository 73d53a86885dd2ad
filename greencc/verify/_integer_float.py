"""One node in float: with the ONNX reference implementation, where that is right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import label
from greencc.verify._integer_pools import POOLS, pool

_IR_VERSION = 10
_BATCH_NORM = 15


def compute(
    node: ir.Node,
    inputs: Sequence[Array | None],
    opset: int,
    *,
    without: Sequence[str] = (),
    captured: Mapping[str, Array] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> list[Array]:
    """The outputs of a node.

    Args:
        node: Any operator of the default domain, control flow included, or a call of a model's function.
        inputs: Its operands; may be fewer than it has, the others are then left out.
        opset: Of the default domain.
        without: Attributes to drop.
        captured: Values that its bodies read from outside, by name.
        functions: Functions that it may call.
        domains: Versions of the domains of those.

    Raises:
        InputError: The reference has no such operator or refuses the operands.
    """
    if node.op_type in POOLS and len(node.outputs) == 1 and inputs[0] is not None:
        return [pool(node, inputs[0])]
    feeds: dict[str, Array] = dict(captured or {})
    names: list[str] = []
    for index, array in enumerate(inputs):
        name = "" if array is None else f"operand_{index}"
        names.append(name)
        if array is not None:
            feeds[name] = array
    copy = ir.to_proto(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(names)
    results = [f"result_{index}" if value.name else "" for index, value in enumerate(node.outputs)]
    copy.output.extend(results)
    kept = [attribute for attribute in copy.attribute if attribute.name not in without]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    if node.op_type == "BatchNormalization" and len(results) == 1:
        # The reference normalizes by the batch before opset 14, as in training.
        opset = max(opset, _BATCH_NORM)
    anything = onnx.TypeProto()
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [copy],
            "node",
            [onnx.helper.make_value_info(name, anything) for name in feeds],
            [onnx.helper.make_value_info(name, anything) for name in results if name],
        ),
        opset_imports=[
            onnx.helper.make_opsetid(domain, version)
            for domain, version in {**(domains or {}), "": opset}.items()
        ],
        ir_version=_IR_VERSION,
        functions=list(functions),
    )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # the reference raises anything for what it does not implement
        raise InputError(f"{label(node)} cannot be computed: {error}") from error
    arrays = iter(np.asarray(array) for array in found)
    return [next(arrays) if name else np.zeros(0, np.float32) for name in results]
