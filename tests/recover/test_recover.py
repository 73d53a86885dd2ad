"""`greencc recover` from bundle to bundle: float, INT8, group-sparse, with labels, interrupted, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greencc.bundle import load
from greencc.cli.main import _run
from greencc.compiler import Effort
from greencc.core.cache import VARIABLE
from greencc.core.describe import describe
from greencc.core.errors import ExitCode, InputError, LimitError, UsageError
from greencc.core.model import load_model
from greencc.core.pipeline import output_error, run_samples
from greencc.recover import RecoverJob, RecoverOptions, recover_bundle
from greencc.recover._empty import cut_empty
from greencc.recover._float_graph import is_quantized
from greencc.targets import CpuTarget
from greencc.torch_graph.parameters import write_back

torch = pytest.importorskip("torch", reason="needs greencc[finetune]")

from greencc.recover._lasso import GroupLasso  # noqa: E402
from greencc.torch_graph.graph import TorchGraph  # noqa: E402


def job(folder: Path, **options: object) -> RecoverJob:
    chosen = {"epochs": 6, "batch": 32, "lr": 5e-3} | options
    return RecoverJob(
        bundle=folder / "damaged.greencc",
        model=folder / "model.onnx",
        data=folder / "train.npz",
        evaluation=folder / "eval.npz",
        max_drop=0.6,
        effort=Effort.QUICK,
        cache=False,
        options=RecoverOptions(**chosen),  # type: ignore[arg-type]
    )


def noise_ratio(path: Path) -> float:
    """SQNR in dB of a bundle's logits."""
    found = load(path).report.accuracy.outputs[0].sqnr_db
    assert found is not None
    return found


def test_a_damaged_network_recovers(float_files: Path, tmp_path: Path) -> None:
    before = noise_ratio(float_files / "damaged.greencc")
    bundle = recover_bundle(job(float_files), output=tmp_path / "out.greencc")
    assert noise_ratio(bundle.path) > before + 3.0
    report = bundle.report
    assert report.passes[-1].name == "recover"
    text = " ".join(finding.message for finding in report.passes[-1].findings)
    assert "J estimated" in text or "J measured" in text
    assert "grade" in text
    old = load_model(float_files / "damaged.greencc" / "artifact" / "model.onnx")
    new = load_model(bundle.artifact)
    assert describe(new).params == describe(old).params
    assert list(new.graph.initializers) == list(old.graph.initializers)
    # Its own samples, and those of the compile, certify nothing later.
    assert load(float_files / "damaged.greencc").seen <= bundle.seen
    assert "fine-tuned" in bundle.recipe.read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_weights(float_files: Path, tmp_path: Path) -> None:
    paths = [
        recover_bundle(job(float_files, epochs=3), output=tmp_path / name).artifact for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_int8_network_stays_int8(int8_files: Path, tmp_path: Path) -> None:
    before = noise_ratio(int8_files / "damaged.greencc")
    bundle = recover_bundle(job(int8_files), output=tmp_path / "out.greencc")
    assert noise_ratio(bundle.path) > before + 3.0
    assert is_quantized(load_model(bundle.artifact))


def test_a_group_lasso_empties_channels_that_are_cut(float_files: Path) -> None:
    model = load_model(float_files / "model.onnx")
    graph = TorchGraph(model)
    lasso = GroupLasso(model, graph.parameters)
    sizes = [sum(float(value.detach().square().sum()) for value in graph.parameters.values())]
    # The weakest channels reach zero first; stop while some are left.
    for _ in range(200):
        lasso.shrink(graph.parameters, 0.02)
        sizes.append(sum(float(value.detach().square().sum()) for value in graph.parameters.values()))
        if int((graph.parameters["w0"].reshape(16, -1) == 0).all(dim=1).sum()) >= 3:
            break
    assert sizes == sorted(sizes, reverse=True)
    write_back(model, graph.arrays())
    x = {"x": np.load(float_files / "eval.npz")["x"][:4]}
    target = CpuTarget(threads=1)
    before, params = run_samples(target.reference, model, [x]), describe(model).params
    assert cut_empty(model) >= 3
    assert describe(model).params < params
    assert output_error(before, run_samples(target.reference, model, [x]), 1e-9) < 1e-5


def test_labels_teach_as_well(float_files: Path, tmp_path: Path) -> None:
    data = dict(np.load(float_files / "train.npz"))
    np.savez(tmp_path / "labelled.npz", labels=np.arange(1000) % 4, **data)
    wanted = replace(job(float_files, labels=True, alpha=0.9, epochs=4), data=tmp_path / "labelled.npz")
    recover_bundle(wanted, output=tmp_path / "out.greencc")
    with pytest.raises(InputError, match="no labels"):
        recover_bundle(job(float_files, labels=True), output=tmp_path / "none.greencc")
    np.savez(tmp_path / "labelled.npz", labels=np.full(1000, 9), **data)
    with pytest.raises(InputError, match="not one class of 4"):
        recover_bundle(wanted, output=tmp_path / "none.greencc")
    assert not (tmp_path / "none.greencc").exists()


def test_an_interrupted_run_goes_on(
    float_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    wanted = replace(job(float_files, epochs=4), cache=True)
    straight = recover_bundle(replace(wanted, cache=False), output=tmp_path / "straight").artifact

    def stop(items, *, label: str, total: int | None = None):  # type: ignore[no-untyped-def]
        if label.startswith("Epoch 3"):
            raise KeyboardInterrupt
        yield from items

    with pytest.raises(KeyboardInterrupt):
        recover_bundle(wanted, output=tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    bundle = recover_bundle(wanted, output=tmp_path / "out")
    notes = [finding.message for finding in bundle.report.passes[-1].findings]
    assert any("2 epochs come from an earlier run" in note for note in notes)
    assert bundle.artifact.read_bytes() == straight.read_bytes()


def test_training_that_diverges_is_an_error(float_files: Path, tmp_path: Path) -> None:
    with pytest.raises((InputError, LimitError), match=r"loss became|did not help|disagree"):
        recover_bundle(job(float_files, lr=1e30, epochs=2), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_no_better_is_not_written(float_files: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("calls = []\ndef worse(net):\n    calls.append(net)\n    return -float(len(calls))\n")
    with pytest.raises(LimitError, match="did not help"):
        recover_bundle(
            replace(job(float_files, epochs=1), evaluator=f"{judge}:worse"), output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_an_evaluator_does_not_replace_the_certificate(float_files: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def same(net):\n    return 1.0\n")
    wanted = replace(
        job(float_files, epochs=1), evaluator=f"{judge}:same", max_drop=1e-6, require_certified=True
    )
    with pytest.raises(LimitError, match="could not be certified"):
        recover_bundle(wanted, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recover_bundle(replace(wanted, require_certified=False), output=tmp_path / "out")


def test_another_model_cannot_teach(float_files: Path, int8_files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    shutil.copy(float_files / "damaged.greencc" / "artifact" / "model.onnx", other)
    with pytest.raises(InputError, match="not the model"):
        recover_bundle(replace(job(float_files), model=other), output=tmp_path / "out")
    with pytest.raises(InputError, match="is the bundle itself"):
        recover_bundle(job(float_files), output=float_files / "damaged.greencc", force=True)
    with pytest.raises(UsageError, match="no module"):
        recover_bundle(replace(job(float_files), evaluator="nowhere_at_all:f"), output=tmp_path / "out")


def test_the_command_line(
    float_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["recover", str(float_files / "damaged.greencc"), "--model", str(float_files / "model.onnx")]
    base += ["--data", str(float_files / "train.npz"), "--eval", str(float_files / "eval.npz")]
    base += ["--epochs", "4", "--batch", "32", "--lr", "5e-3", "--effort", "quick", "--no-cache"]
    assert _run([*base, "--max-drop", "60%", "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["passes"][-1]["options"]["epochs"] == 4
    assert (tmp_path / "model-recovered.greencc").is_dir()
    assert _run([*base, "--max-drop", "0.01%", "-o", "strict.greencc"]) == ExitCode.LIMIT
    assert not (tmp_path / "strict.greencc").exists()
    assert _run([*base, "--max-drop", "60%"]) == ExitCode.BAD_INPUT
