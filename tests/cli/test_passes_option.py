"""`greencc compile --passes`: a list of passes in, a bundle that says what they did out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

import greencc as api
from greencc import passes
from greencc.compiler import CompileOptions, Precision, checks, final, forms
from greencc.compiler.measurement import Measurement
from greencc.compiler.options import QuantizedFormat
from greencc.compiler.session import Session
from greencc.core.errors import ExitCode, UsageError
from greencc.core.groups import analyse, cut
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.core.recipe import load_recipe
from greencc.core.report import Figures, Interval, Latency, Ratio
from greencc.passes import PASSES
from greencc.report import parse_report, render_html, render_markdown
from greencc.targets import CpuTarget

from .conftest import Outcome as Result

Call = Callable[..., Result]
DATA = ("-c", "calibration.npz", "--eval", "eval.npz")
COMPILE = ("compile", "model.onnx", "--effort", "quick", "-t", "cpu:threads=1", "--no-cache")


@dataclass(frozen=True)
class Narrow(Pass):
    """Cuts the first channels of every group."""

    name: ClassVar[str] = "narrow"
    summary: ClassVar[str] = "for tests"
    lossy: ClassVar[bool] = True
    primary: ClassVar[str | None] = "channels"

    channels: int = 1

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        structure = analyse(model)
        if not self.channels:
            return Outcome(0, [Finding("note", "looked"), Finding("refused", "declined: 0.98x is no gain")])
        groups = [group for group in structure.prunable if ctx.rewrites.allow("narrow", group.name)]
        cut(model, structure, {group.name: range(self.channels) for group in groups})
        return Outcome(len(groups), [Finding("note", f"cut {self.channels} channels", node="hidden")])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checks, forms):
        monkeypatch.setattr(module, "PASSES", (*PASSES, Narrow))


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_narrower_model_is_built_after_the_clean_up(
    digits: Path, greencc: Call, brief: None, narrow: None
) -> None:
    outcome = greencc(
        *COMPILE, *DATA, "--passes", "narrow:4,quantize", "--max-drop", "20%", "-o", "x.greencc"
    )
    assert outcome.code == ExitCode.OK, outcome.err
    report = api.load("x.greencc").report
    assert report.precision == "int8"
    assert report.budget.asked["passes"] == "narrow:4,quantize"
    assert [record.name for record in report.passes][-2:] == ["narrow", "quantize-int8"]
    assert report.passes[0].name == "inline-functions"
    assert report.passes[-2].options == {"channels": 4}
    # Each hidden channel holds a row, a bias and a column.
    assert report.baseline.params == report.model.params == 3610
    assert report.artifact.params == 3610 - 4 * 75
    assert (report.baseline.macs, report.artifact.macs) == (3552, 3552 - 4 * 74)
    assert report.calibration is not None
    # Noise is told by layer, against the narrower model in float.
    assert [layer.name for layer in report.layer_errors] == ["relu"]
    steps = load_recipe(Path("x.greencc/recipe.toml"), (*PASSES, Narrow))
    assert Narrow(4) in steps
    assert report.verdict.startswith("Narrow + quantize: ")
    table = flat(outcome.out)
    assert re.search(r"Parameters 3.61 k 3.31 k 1.09× fewer", table)
    assert re.search(r"MACs 3.55 k 3.26 k 1.09× fewer", table)
    for page in (render_html(report), render_markdown(report)):
        for text in ("1.09× fewer", "3.61 k", "3.31 k", "cut 4 channels", "MACs"):
            assert text in page


def test_a_pass_that_gives_up_says_why(digits: Path, greencc: Call, brief: None, narrow: None) -> None:
    outcome = greencc(*COMPILE, *DATA, "--passes", "narrow:0", "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert "narrow changed nothing: declined: 0.98x is no gain" in report.warnings
    assert report.artifact.params == report.baseline.params
    assert "Narrow: " in report.verdict
    assert "FP32 was kept" not in report.verdict


def test_too_much_of_a_loss_ends_with_the_limit(
    digits: Path, greencc: Call, brief: None, narrow: None
) -> None:
    outcome = greencc(*COMPILE, *DATA, "--passes", "narrow:47", "-o", "x.greencc")
    assert outcome.code == ExitCode.LIMIT
    assert re.search(r"accuracy drops by \d+\.\d+% of the 523 certification samples", outcome.err)
    said = flat(outcome.err)
    # What the pass did is told, and the way out.
    assert re.search(r"largest change of an output, of its range: narrow \d", said)
    for way in ("ask less of the passes", "--max-drop", "greencc recover"):
        assert way in said
    assert not Path("x.greencc").exists()


def test_what_is_slower_is_kept_and_said_to_be_so(
    digits: Path, greencc: Call, brief: None, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = final.measure_variants

    def measured(*arguments: Any, **named: Any) -> Any:
        found = genuine(*arguments, **named)
        ratio = replace(found.ratio, latency=Interval(0.8, 0.75, 0.85), energy=None)
        return replace(found, ratio=ratio, conditions={**found.conditions, "clean": True})

    monkeypatch.setattr(final, "measure_variants", measured)
    outcome = greencc(*COMPILE, *DATA, "--passes", "narrow:10", "--max-drop", "50%", "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert (
        "the passes that were asked for did not make the model faster here: 1.25× slower [1.18, 1.33]"
        in report.warnings
    )
    assert re.match(r"Narrow: .*, but 1.25× slower;", report.verdict)
    assert report.artifact.params == 3610 - 10 * 75


@pytest.mark.parametrize(
    ("ratio", "clean", "warned"),
    [
        (Interval(1.01, 0.97, 1.05), True, "no speed-up shown [0.97, 1.05]"),
        (Interval(1.01, 1.0, 1.05), True, "no speed-up shown [1.00, 1.05]"),
        (Interval(1.3, 1.2, 1.4), True, None),
        # Nothing is said of a busy machine but that it was busy.
        (Interval(0.8, 0.75, 0.85), False, None),
    ],
)
def test_a_warning_says_what_did_not_pay(ratio: Interval, clean: bool, warned: str | None) -> None:
    session = Session(CompileOptions(passes="prune"), CpuTarget(), Path())
    size = Interval(1.3, 1.3, 1.3)
    figures = Figures(Latency(1.0, 1.1, 1.2, 10), None, 3, None, None)
    final._warn_without_gain(
        session, Measurement(figures, figures, Ratio(ratio, None, size), {"clean": clean})
    )
    assert len(session.warnings) == (warned is not None)
    assert all(text.endswith(f": {warned}") for text in session.warnings)


def test_made_up_data_certify_nothing(digits: Path, greencc: Call, brief: None, narrow: None) -> None:
    """What was fitted to noise gets no seal, in whatever precision."""
    arguments = (
        "-c",
        "synthetic",
        "--eval",
        "eval.npz",
        "--passes",
        "narrow:1",
        "--max-drop",
        "20%",
        "--json",
    )
    outcome = greencc(*COMPILE, *arguments)
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert not report.accuracy.certified
    assert report.accuracy.reason == "not certified: it was fitted to synthetic data"
    assert report.calibration is not None
    assert report.calibration.synthetic


def test_without_data_passes_that_need_none_run(digits: Path, greencc: Call, brief: None) -> None:
    outcome = greencc(*COMPILE, "--passes", "quantize-dynamic", "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert report.precision == "int8-dynamic"
    assert report.calibration is None


_PASSES = (*COMPILE, *DATA, "--passes")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((*_PASSES, ""), "passes: the list is empty", "pass[:value]"),
        ((*_PASSES, "nosuch"), "passes: unknown pass 'nosuch'", "known: "),
        ((*_PASSES, "quantise"), "passes: unknown pass 'quantise'", "did you mean 'quantize'?"),
        ((*_PASSES, "quantize:percentle=99"), "has no option 'percentle'", "did you mean 'percentile'?"),
        ((*_PASSES, "quantize:percentile=400"), "percentile is 400", "(50, 100]"),
        ((*_PASSES, "quantize:mse"), "takes no value of its own", "write option=value"),
        ((*_PASSES, "quantize", "--recipe", "r.toml"), "exclude each other", "after the clean-up"),
        ((*_PASSES, "quantize", "--precision", "int8"), "contradict each other", "decides the precision"),
        ((*_PASSES, "quantize", "--format", "qoperator"), "contradict each other", "convert-qoperator"),
        (
            (*COMPILE, "--passes", "quantize-dynamic,quantize"),
            "precision int8 needs calibration data and none was given",
            "pass --calibration DATA",
        ),
        (
            (*COMPILE, "--eval", "eval.npz", "--passes", "quantize"),
            "precision int8 needs calibration data and none was given",
            "pass --calibration DATA",
        ),
    ],
)
def test_mistakes_are_refused_in_a_line(
    refused: Callable[..., None], arguments: tuple[str, ...], message: str, hint: str
) -> None:
    refused(arguments, ExitCode.USAGE, message, hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune:ratio=2", "ratio is 2"),
        ("prune:rato=0.3", "has no option 'rato'"),
        ("decompose:tucker:svd", "'svd' says no option of decompose"),
    ],
)
def test_mistakes_in_pruning_and_decomposition(refused: Callable[..., None], text: str, message: str) -> None:
    if text.split(":")[0] not in {kind.name for kind in PASSES}:
        pytest.skip("the pass is not in this build")
    refused((*_PASSES, text), ExitCode.USAGE, message)


def test_options_of_the_library() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        CompileOptions(recipe=Path("r.toml"), passes="quantize")
    with pytest.raises(UsageError, match="a list of passes and a precision"):
        CompileOptions(passes="quantize", precision=Precision.FP32)
    with pytest.raises(UsageError, match="a list of passes and a format"):
        CompileOptions(passes="quantize", format=QuantizedFormat.QOPERATOR)
    assert CompileOptions(passes="quantize").asked()["passes"] == "quantize"
    assert CompileOptions(recipe=Path("a/r.toml")).asked()["recipe"] == "r.toml"
    assert not {"passes", "recipe"} & set(CompileOptions().asked())


def test_passes_are_shown_as_they_are_written(greencc: Call) -> None:
    outcome = greencc("passes", "quantize")
    assert outcome.code == ExitCode.OK
    for text in ("quantize-int8:", "Short name: quantize", "--passes quantize-int8:method=minmax"):
        assert text in outcome.out
    outcome = greencc("passes", "fold-batch-norm")
    assert "--passes fold-batch-norm" in outcome.out


def test_the_primary_option_is_marked(greencc: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PASSES", (*PASSES, Narrow))
    outcome = greencc("passes", "narrow")
    assert outcome.code == ExitCode.OK, outcome.err
    assert re.search(r"channels +int +1 +primary", outcome.out)
    assert "--passes narrow:1" in outcome.out
    assert "--passes narrow:channels=1" in outcome.out
