"""Facts."""

from __future__ import annotations

import os
from dataclasses import replace

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.machine import CpuInfo
from greencc.targets._cpu_capabilities import cpu_capabilities
from greencc.targets._openvino_facts import PluginFacts
from greencc.targets._ort_facts import RuntimeFacts

MOVE = frozenset({"DepthToSpace","Flatten","MaxPool","ReduceMax","ReduceMin","Reshape","Resize","Slice","Squeeze","Transpose","Unsqueeze"})
def openvino_capabilities(cpu, plugin, runtime):
    caps = cpu_capabilities(cpu, runtime)
    i = caps.int8
    v = os.environ.get("OVV", "A")
    comp = {"Conv","Gemm","MatMul","Concat","AveragePool","GlobalAveragePool"}
    if v[0] == "A":
        i = replace(i, ops=frozenset(comp | MOVE | ({"Add"} if "d" in v else set())), float_output=frozenset({"Gemm","MatMul"} | ({"Conv"} if "c" in v else set())), follow_only=frozenset())
    elif v[0] == "B":
        i = replace(i, ops=frozenset(comp | MOVE | {"Add"}), quantize_outputs=False, quantize_skips=True, input_ops=frozenset({"MaxPool","AveragePool","GlobalAveragePool","Concat"}), float_output=frozenset(), follow_only=frozenset(),
            bias=ElementType.FLOAT if "f" in v else ElementType.INT32, activation=ElementType.INT8 if "s" in v else ElementType.UINT8, symmetric_activations="y" in v)
    return replace(caps, int8=i, fused_ops=plugin.fused_ops)
