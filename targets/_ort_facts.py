"""What the installed ONNX Runtime can run on the CPU, found by building tiny sessions once per process.

A list by version number would go stale; building a one-node session takes about a millisecond and is always right.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from greencc.targets._probes import (
    FLOAT16_PROBES,
    FUSED_PROBES,
    INTEGER_PROBES,
    Probe,
    identity,
    probe_feeds,
    probe_model,
)

MINIMUM_VERSION = (1, 20)
_NEWEST_OPSET_TRIED = 40
_NEWEST_IR_TRIED = 20


def runtime_versions() -> dict[str, str]:
    """Versions that results of ONNX Runtime depend on."""
    import onnxruntime

    return {
        "onnx": str(onnx.__version__),
        "onnxruntime": str(onnxruntime.__version__),
        "numpy": str(np.__version__),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class RuntimeFacts:
    """What the runtime accepts.

    Attributes:
        version: Of the onnxruntime package.
        max_opset: Newest default-domain opset that loads.
        max_ir_version: Newest ONNX IR version that loads.
        fused_ops: Fused and integer operators with a CPU kernel (or an inlined function body), "Domain::Op". A form
            of an operator that needs asking for separately has a suffix: "com.microsoft::MatMulNBits:8" (8-bit weights;
            without suffix 4-bit ones), "com.microsoft::GatherBlockQuantized:8", "ai.onnx::DequantizeLinear:int4"
            (blocks of INT4).
        float16_ops: Operators that run in FP16 without a cast to FP32 around them.
    """

    version: str
    max_opset: int
    max_ir_version: int
    fused_ops: frozenset[str]
    float16_ops: frozenset[str]


@cache
def runtime_facts() -> RuntimeFacts:
    """Probe the installed ONNX Runtime; the answer is kept for the life of the process."""
    import onnxruntime as ort

    max_opset = _newest(_NEWEST_OPSET_TRIED, lambda opset: identity(opset=opset, ir_version=8))
    max_ir = _newest(_NEWEST_IR_TRIED, lambda version: identity(opset=13, ir_version=version))
    probes = (probe for probe in (*FUSED_PROBES, *INTEGER_PROBES) if probe.opset <= max_opset)
    fused = frozenset(probe.qualified for probe in probes if runs(probe))
    half = frozenset(probe.op_type for probe in FLOAT16_PROBES if runs_in_float16(probe))
    return RuntimeFacts(ort.__version__, max_opset, max_ir, fused, half)


def runs(probe: Probe) -> bool:
    """Whether the runtime loads and runs the one-node model."""
    return outputs_of(probe) is not None


def outputs_of(probe: Probe) -> list[NDArray[Any]] | None:
    """What the runtime makes of the one-node model; None where it refuses it, or makes no finite numbers."""
    session = _session(probe_model(probe))
    if session is None:
        return None
    try:
        outputs = session.run(None, probe_feeds(probe))
    except Exception as error:
        if _from_runtime(error):
            return None
        raise
    return outputs if all(bool(np.isfinite(output).all()) for output in outputs) else None


def runs_in_float16(probe: Probe) -> bool:
    """Whether the one-node model keeps its type: where there is no FP16 kernel the runtime inserts casts to FP32."""
    import tempfile
    from pathlib import Path

    model = probe_model(probe, TensorProto.FLOAT16)
    with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
        written = Path(folder) / "optimized.onnx"
        if _session(model, optimized_path=str(written)) is None or not written.exists():
            return False
        return all(node.op_type != "Cast" for node in onnx.load(written).graph.node)


def _newest(highest: int, make: Any) -> int:
    """The highest number up to `highest` for which the model loads; acceptance is monotone, so bisect."""
    low = 7
    while low < highest:
        middle = (low + highest + 1) // 2
        if _session(make(middle)) is not None:
            low = middle
        else:
            highest = middle - 1
    return low


def _session(model: onnx.ModelProto, optimized_path: str = "") -> Any:
    """A session, or None where the runtime refuses the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path:
        options.optimized_model_filepath = optimized_path
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if _from_runtime(error):
            return None
        raise


def _from_runtime(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError)
