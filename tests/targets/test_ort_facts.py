"""The probes of the installed runtime: what is claimed runs, and a wrong claim is not made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx import TensorProto

from greencc.targets import _ort_facts
from greencc.targets._ort_facts import FUSED_PROBES, INTEGER_PROBES, Probe, runs, runtime_facts

NAMES = {
    "com.microsoft::MatMulNBits",
    "com.microsoft::MatMulNBits:8",
    "com.microsoft::GatherBlockQuantized",
    "com.microsoft::GatherBlockQuantized:8",
    "com.microsoft::QGemm",
    "com.microsoft::DynamicQuantizeMatMul",
    "com.microsoft::MatMulIntegerToFloat",
    "com.microsoft::DynamicQuantizeLSTM",
    "ai.onnx::DequantizeLinear:int4",
    "ai.onnx::DynamicQuantizeLinear",
    "ai.onnx::MatMulInteger",
    "ai.onnx::ConvInteger",
    "ai.onnx::QLinearConv",
}
# In every ONNX Runtime that greencc accepts.
ALWAYS = {
    "com.microsoft::MatMulNBits",
    "com.microsoft::QGemm",
    "com.microsoft::DynamicQuantizeLSTM",
    "ai.onnx::DequantizeLinear:int4",
    "ai.onnx::MatMulInteger",
    "ai.onnx::QLinearConv",
}


def test_names() -> None:
    assert {probe.qualified for probe in INTEGER_PROBES} == NAMES
    assert len({probe.qualified for probe in (*FUSED_PROBES, *INTEGER_PROBES)}) == len(FUSED_PROBES) + len(
        NAMES
    )


def test_the_installed_runtime_has_the_integer_operators() -> None:
    assert runtime_facts().fused_ops >= ALWAYS


@pytest.mark.parametrize("probe", INTEGER_PROBES, ids=lambda probe: probe.qualified)
def test_a_runtime_without_the_operator_is_not_claimed_to_have_it(probe: Probe) -> None:
    assert not runs(replace(probe, op_type=f"{probe.op_type}OfTomorrow"))


def test_a_form_the_kernel_refuses_is_not_claimed() -> None:
    product = next(probe for probe in INTEGER_PROBES if probe.op_type == "MatMulNBits")
    odd = tuple((name, 24 if name == "block_size" else value) for name, value in product.attributes)
    assert not runs(replace(product, attributes=odd))
    lstm = next(probe for probe in INTEGER_PROBES if probe.op_type == "DynamicQuantizeLSTM")
    assert not runs(replace(lstm, types=(TensorProto.FLOAT, *[TensorProto.FLOAT] * 11)))


def test_failures_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def run(self, outputs: object, feeds: object) -> None:
            raise KeyError("ours")

    monkeypatch.setattr(_ort_facts, "_session", lambda model, optimized_path="": Broken())
    with pytest.raises(KeyError):
        runs(INTEGER_PROBES[0])


def test_a_kernel_that_fails_when_it_runs_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def run(self, outputs: object, feeds: object) -> None:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(_ort_facts, "_session", lambda model, optimized_path="": Failing())
    assert not runs(INTEGER_PROBES[0])
