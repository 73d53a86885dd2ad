"""Run times that generate code: what a compile that nobody wants to wait for does without."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from greencc.compiler.options import Effort
from greencc.compiler.patience import not_waited_for
from greencc.targets import CpuTarget, OpenVinoTarget, TvmArmTarget, TvmCpuTarget

from .shared import conv_net


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(conv_net())


@pytest.mark.parametrize("target", [CpuTarget(), OpenVinoTarget()])
@pytest.mark.parametrize("effort", Effort)
def test_writing_a_file_takes_no_time(model: ir.Model, target: CpuTarget, effort: Effort) -> None:
    assert target.build_seconds(model) == 0.0
    assert not_waited_for(target, model, effort, 0.1) is None


@pytest.mark.parametrize("target", [TvmCpuTarget(), TvmArmTarget()])
def test_code_takes_longer_the_more_there_is(model: ir.Model, target: TvmCpuTarget) -> None:
    small = target.build_seconds(ir.Model(ir.Graph([], [], nodes=[]), ir_version=8))
    assert 0.0 < small < target.build_seconds(model)


def test_a_quick_compile_waits_for_no_code(model: ir.Model) -> None:
    said = not_waited_for(TvmCpuTarget(), model, Effort.QUICK)
    assert said is not None
    assert "--effort quick" in said
    assert "-t tvm-cpu" in said


@pytest.mark.parametrize("effort", [Effort.STANDARD, Effort.FULL])
def test_others_do_within_their_time(model: ir.Model, effort: Effort) -> None:
    target = TvmCpuTarget()
    needed = target.build_seconds(model)
    assert not_waited_for(target, model, effort) is None
    assert not_waited_for(target, model, effort, needed + 0.1) is None
    said = not_waited_for(target, model, effort, needed - 1.6)
    assert said is not None
    assert f"{needed:.0f} s" in said
    assert f"and {needed - 1.6:.0f} s of --time-budget are left" in said
    assert "and 0 s of" in (not_waited_for(target, model, effort, -3.0) or "")
