"""Which run times compete on the CPU."""

from __future__ import annotations

import pytest

from greencc.targets import CpuTarget, OpenVinoTarget, TvmCpuTarget
from greencc.targets._host import HostTarget
from greencc.targets._ort import Optimization
from greencc.targets.backends import backends
from greencc.targets.cpu import Backend

OTHERS: tuple[type[HostTarget], ...] = (OpenVinoTarget, TvmCpuTarget)

ONNX_RUNTIME = (
    CpuTarget(threads=2, backend=Backend.ONNXRUNTIME),
    CpuTarget(threads=2, optimization=Optimization.BASIC),
)

pytestmark = pytest.mark.usefixtures("competing")


def test_onnx_runtime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in OTHERS:
        monkeypatch.setattr(kind, "missing", lambda self: "it is not installed")
    assert backends(CpuTarget(threads=2)) == (CpuTarget(threads=2),)


@pytest.mark.parametrize("kind", OTHERS)
def test_one_more(monkeypatch: pytest.MonkeyPatch, kind: type[HostTarget]) -> None:
    for other in OTHERS:
        reason = None if other is kind else "it is not installed"
        monkeypatch.setattr(other, "missing", lambda self, reason=reason: reason)
    assert backends(CpuTarget(threads=2)) == (CpuTarget(threads=2), kind(threads=2))


def test_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in OTHERS:
        monkeypatch.setattr(kind, "missing", lambda self: None)
    assert backends(CpuTarget(threads=2)) == (CpuTarget(threads=2), *(kind(threads=2) for kind in OTHERS))


def test_what_is_asked_for_by_name_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in OTHERS:
        monkeypatch.setattr(kind, "missing", lambda self: None)
    for target in (*(kind(threads=2) for kind in OTHERS), *ONNX_RUNTIME):
        assert backends(target) == (target,)
