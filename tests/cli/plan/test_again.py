"""Another budget for a model that was planned before; the plan's recipe and its explanation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from greencc.bundle import load
from greencc.compiler import CompileOptions, Effort
from greencc.compiler.data import open_splits
from greencc.compiler.forms import FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.planning.space import PlanSteps
from greencc.compiler.session import Session
from greencc.core.describe import input_specs
from greencc.core.errors import ExitCode
from greencc.core.files import sha256_file
from greencc.core.graph import ensure_names
from greencc.core.model import load_model
from greencc.core.recipe import dump_recipe
from greencc.passes.decompose import Decompose
from greencc.passes.drop_blocks import DropBlocks
from greencc.passes.prune import Prune
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights, WeightMethod
from greencc.passes.upgrade_opset import UpgradeOpset
from greencc.targets import CpuTarget
from tests.cli.conftest import Outcome

from .conftest import COMPILE, Plan, entries


@pytest.mark.full
def test_verified_plans_come_from_the_cache(blocks: Path, known: Path, plan: Plan) -> None:
    assert entries(known, "plan-point")
    _, found = plan("--budget", "60us p50")
    cached = [point for point in found.points if point.origin == "cache"]
    assert cached
    assert all(point.recipe and point.verified for point in cached)
    _, again = plan("--budget", "60us p50")
    # Next to nothing is left to build.
    assert again.rounds <= 1
    shipped = [next(point.latency_ms for point in each.points if point.chosen) for each in (found, again)]
    assert shipped[0] is not None
    assert shipped[1] is not None
    assert shipped[1] <= 1.02 * shipped[0]


@pytest.mark.full
def test_more_budget_is_never_worse(blocks: Path, known: Path, plan: Plan) -> None:
    """From tight to loose and back, on one cache."""
    sizes = {}
    for limit in (8, 30, 12):
        report, found = plan("--budget", f"{limit}KB", "--minimize", "error")
        assert all(verdict.met for verdict in found.limits)
        (error,) = [point.error for point in found.points if point.chosen]
        sizes[limit] = error
    assert sizes[30] <= sizes[12]
    latencies = []
    for limit in ("30KB", "100KB"):
        report, _ = plan("--budget", limit, "--minimize", "latency")
        latencies.append(report.artifact.latency_ms.median)
    # What is not worth 2 % is not shipped.
    assert latencies[1] <= 1.02 * latencies[0]


@pytest.mark.full
def test_the_recipe_gives_the_same_artifact(
    blocks: Path, known: Path, plan: Plan, greencc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (("--minimize", "latency"), ("--budget", "30KB", "--minimize", "error")):
        report, _ = plan(*arguments)
        first = sha256_file(Path("out.greencc/artifact/model.onnx"))
        recipe = Path("out.greencc/recipe.toml").read_text()
        assert any(f'name = "{record.name}"' in recipe for record in report.passes)
        Path("plan.toml").write_text(recipe)
        # Nothing of what the plan was made with helps here.
        monkeypatch.setenv("GREENCC_CACHE", "")
        outcome = greencc(*COMPILE, "--force", "--recipe", "plan.toml")
        assert outcome.code == ExitCode.OK, outcome.err
        assert sha256_file(Path("out.greencc/artifact/model.onnx")) == first
        assert Path("out.greencc/recipe.toml").read_text() == recipe
        monkeypatch.setenv("GREENCC_CACHE", str(known))


_EXCLUDE_HEAD = ("head",)
FORCED = {
    "channels": PlanSteps((Prune(measured=False, channels=("stem=16",)),)),
    "channels in integers": PlanSteps(
        (Prune(measured=False, channels=("stem=16",)),), QuantizeInt8(exclude=_EXCLUDE_HEAD)
    ),
    "ranks": PlanSteps((Decompose(ranks=("head=svd:8",), min_elements=0, measured=False),)),
    "blocks": PlanSteps((DropBlocks(blocks=("add1",)),)),
    "everything": PlanSteps(
        (
            DropBlocks(blocks=("add1",)),
            Prune(measured=False, channels=("stem=16",)),
            Decompose(ranks=("head=svd:8",), min_elements=0, measured=False),
        ),
        QuantizeInt8(exclude=("stem",)),
    ),
    "dynamic": PlanSteps(extra=(QuantizeDynamic(min_elements=0),)),
    "integers, and dynamic": PlanSteps(
        (),
        QuantizeInt8(exclude=_EXCLUDE_HEAD),
        (QuantizeDynamic(min_elements=0, exclude=("stem", "first0", "first1")),),
    ),
    "weights": PlanSteps(
        extra=(
            UpgradeOpset(target=21, below=21),
            QuantizeWeights(
                bits=4,
                min_elements=1024,
                method=WeightMethod.GPTQ,
                ops=("Gemm", "MatMul"),
                block_size=32,
            ),
            QuantizeWeights(
                bits=4, min_elements=1024, method=WeightMethod.GPTQ, ops=("Conv",), symmetric=False
            ),
        )
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", FORCED)
def test_every_kind_of_plan_is_replayed_by_its_recipe(
    kind: str, blocks: Path, greencc: Callable[..., Outcome]
) -> None:
    steps = FORCED[kind]
    scratch = blocks / "scratch"
    scratch.mkdir()
    options = CompileOptions(
        target="cpu:threads=1",
        calibration=blocks / "calibration.npz",
        evaluation=blocks / "eval.npz",
        effort=Effort.QUICK,
    )
    source = load_model(blocks / "model.onnx")
    ensure_names(source)
    session = Session(options, CpuTarget(threads=1), scratch)
    splits = open_splits(session, input_specs(source))
    baseline = MemoEngine(session.target.open(blocks / "model.onnx"))
    builder = FormBuilder(session, source, splits, splits.samples(baseline, None))
    form = builder.planned("plan", steps.prepare, steps.quantize, steps.extra)
    baseline.close()
    session.close()
    assert any(record.changed for step, record in zip(form.passes, form.records, strict=True) if step.lossy)
    Path("plan.toml").write_text(dump_recipe(form.passes))
    outcome = greencc(*COMPILE, "--recipe", "plan.toml", "--max-drop", "99%")
    assert outcome.code == ExitCode.OK, outcome.err
    assert sha256_file(Path("out.greencc/artifact/model.onnx")) == sha256_file(form.artifact)


@pytest.fixture
def planned(blocks: Path, known: Path, plan: Plan) -> Path:
    plan("--budget", "60us p50,20KB")
    return Path("out.greencc")


@pytest.mark.full
def test_a_planned_bundle_is_explained(planned: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("explain", planned)
    assert outcome.code == ExitCode.OK, outcome.err
    text = " ".join(outcome.out.split())
    assert "was chosen out of" in text
    assert "60us p50" in text
    with load(planned) as bundle:
        report = bundle.report
    assert report.plan is not None
    layers = [choice for choice in report.plan.choices if choice.kind == "arithmetic"]
    for choice in layers:
        data = json.loads(greencc("explain", planned, choice.unit, "--json").out)
        units = {(unit["kind"], unit["unit"]): unit for unit in data["units"]}
        assert units["arithmetic", choice.unit]["option"] == choice.option
        assert units["arithmetic", choice.unit]["reason"]
    for choice in report.plan.choices:
        outcome = greencc("explain", planned, choice.unit)
        assert outcome.code == ExitCode.OK, outcome.err
        assert choice.unit in outcome.out
    outcome = greencc("explain", planned, "no such layer")
    assert outcome.code == ExitCode.USAGE


@pytest.mark.full
def test_a_planned_bundle_is_verified_and_shown(planned: Path, greencc: Callable[..., Outcome]) -> None:
    assert greencc("verify", planned).code == ExitCode.OK
    outcome = greencc("report", planned)
    assert outcome.code == ExitCode.OK, outcome.err
    assert "Budget:" in outcome.out
    assert 'id="the-plan"' in greencc("report", planned, "--format", "html").out


@pytest.mark.full
def test_json_is_all_that_is_printed(blocks: Path, known: Path) -> None:
    """Down to what compiled code prints."""
    import subprocess

    from .conftest import environment

    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.plan.steady", *COMPILE, "--minimize", "size", "--json"],
        env=environment(known),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["plan"]["objective"] == "size"


@pytest.mark.full
def test_the_artifact_is_a_valid_model(planned: Path) -> None:
    onnx.checker.check_model(str(planned / "artifact" / "model.onnx"), full_check=True)
