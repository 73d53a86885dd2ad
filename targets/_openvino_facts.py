"""What the installed OpenVINO can run on the CPU, found by compiling one-node models once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import GreenccError
from greencc.targets._openvino import DEVICE, core, properties, translated
from greencc.targets._ort_facts import outputs_of, runtime_facts
from greencc.targets._probes import FUSED_PROBES, INTEGER_PROBES, Probe, probe_feeds, probe_model

# Kernels sum in another order; a probe that runs as something else is off by more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PluginFacts:
    """What the CPU plugin accepts.

    Attributes:
        version: Of the openvino package.
        integers: Whether it has integer kernels for this CPU.
        fused_ops: As `RuntimeFacts.fused_ops`: those that ONNX Runtime runs as well, with the same results.
    """

    version: str
    integers: bool
    fused_ops: frozenset[str]


@cache
def plugin_facts() -> PluginFacts:
    """Probe the installed OpenVINO; the answer is kept for the life of the process."""
    import openvino

    known = runtime_facts()
    probes = (probe for probe in (*FUSED_PROBES, *INTEGER_PROBES) if probe.qualified in known.fused_ops)
    return PluginFacts(
        version=str(openvino.__version__).partition("-")[0],
        integers="INT8" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"),
        fused_ops=frozenset(probe.qualified for probe in probes if runs(probe)),
    )


def runs(probe: Probe) -> bool:
    """Whether OpenVINO runs the one-node model and gets what ONNX Runtime gets."""
    expected = outputs_of(probe)
    try:
        found = _outputs(probe)
    except GreenccError:
        return False
    return expected is not None and all(
        first.shape == second.shape and np.allclose(first, second, rtol=_TOLERANCE, atol=_TOLERANCE)
        for first, second in zip(expected, found, strict=True)
    )


def _outputs(probe: Probe) -> list[Array]:
    try:
        loaded = core().read_model(probe_model(probe).SerializeToString())
        request = core().compile_model(loaded, DEVICE, properties(1)).create_infer_request()
        return list(request.infer(probe_feeds(probe)).values())
    except Exception as error:
        raise translated(error, f"probing {probe.qualified}", None) from error
