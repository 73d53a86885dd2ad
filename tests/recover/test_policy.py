"""The example of policy shrinking: train, prune, recover, and compare the returns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from greencc.compiler import CompileOptions, Effort, compile_model
from greencc.core.describe import describe
from greencc.core.model import load_model
from greencc.passes import PASSES
from greencc.recover import RecoverJob, RecoverOptions, recover_bundle

pytest.importorskip("torch", reason="needs greencc[finetune]")
pytest.importorskip("gymnasium", reason="needs greencc[gym]")
if "prune" not in {kind.name for kind in PASSES}:
    pytest.skip("there is no pass 'prune'", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"policy_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


@pytest.mark.full
def test_a_pruned_policy_recovers_its_return(tmp_path: Path) -> None:
    train = module("train")
    seen, torques = train.states(60, seed=0)
    policy = tmp_path / "policy.onnx"
    onnx.save(train.to_onnx(train.distil(seen, torques, epochs=30)), policy)
    np.savez(tmp_path / "train.npz", observation=seen)
    np.savez(tmp_path / "eval.npz", observation=train.states(10, seed=9_000)[0])
    options = CompileOptions(
        target="cpu:threads=1",
        calibration=tmp_path / "train.npz",
        evaluation=tmp_path / "eval.npz",
        recipe=EXAMPLE / "prune.toml",
        max_drop=0.99,
        effort=Effort.QUICK,
        cache=False,
    )
    pruned = compile_model(policy, options, output=tmp_path / "pruned.greencc")
    job = RecoverJob(
        bundle=pruned.path,
        model=policy,
        data=tmp_path / "train.npz",
        evaluation=tmp_path / "eval.npz",
        evaluator=f"{EXAMPLE / 'returns.py'}:episode_return",
        max_drop=0.5,
        effort=Effort.QUICK,
        cache=False,
        options=RecoverOptions(epochs=15, batch=128, lr=3e-3),
    )
    bundle = recover_bundle(job, output=tmp_path / "recovered.greencc")
    assert describe(load_model(bundle.artifact)).params < 0.5 * describe(load_model(policy)).params
    notes = [finding.message for finding in bundle.report.passes[-1].findings]
    assert any(note.startswith("the evaluator gives") for note in notes)
