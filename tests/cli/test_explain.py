"""`greencc explain` on real bundles: one that a search made, and the same with a plan in its report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.bundle import load
from greencc.core.errors import ExitCode
from greencc.report import dump_report
from tests.report.conftest import full
from tests.report.planned import with_plan

from .conftest import Outcome

STEM = "/backbone/features/stage0/inverted_residual_block.0/depthwise_separable.0/Conv"


@pytest.fixture
def planned(bundle: Path) -> Path:
    """The bundle with another report, as its manifest lists it."""
    with load(bundle) as loaded:
        report = loaded.report
    text = dump_report(replace(report, plan=with_plan(full()).plan)).encode()
    (bundle / "report.json").write_bytes(text)
    manifest = bundle / "manifest.json"
    data = json.loads(manifest.read_text())
    data["files"]["report.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest.write_text(json.dumps(data))
    return bundle


def test_a_bundle_without_a_plan(bundle: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("explain", bundle)
    assert outcome.code == ExitCode.OK, outcome.err
    assert "This bundle was not made by a plan (it was compiled with --precision int8)" in " ".join(
        outcome.out.split()
    )
    outcome = greencc("explain", bundle, "hidden")
    assert outcome.code == ExitCode.OK, outcome.err
    assert outcome.out.startswith("hidden\n")
    assert "Measured times" in outcome.out
    data = json.loads(greencc("explain", bundle, "--json").out)
    assert (data["plan"], data["form"]) == (None, "int8")


def test_a_bundle_with_a_plan(planned: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("explain", planned)
    assert outcome.code == ExitCode.OK, outcome.err
    assert "Plan 7 was chosen out of 15 verified plans" in " ".join(outcome.out.split())
    outcome = greencc("explain", planned, STEM)
    assert outcome.code == ExitCode.OK, outcome.err
    assert "Arithmetic: float32. INT8 would add 0.00038 to the error" in " ".join(outcome.out.split())
    data = json.loads(greencc("explain", planned, STEM, "--json").out)
    assert (data["name"], data["planned"]) == (STEM, True)
    (unit,) = data["units"]
    assert unit["option"] == "float32"
    assert [option["name"] for option in unit["options"]] == ["float32", "int8", "int4-weights"]
    assert data["units_energy"] == "estimated, grade D, package (model)"
    whole = json.loads(greencc("explain", planned, "--json").out)
    assert len(whole["plan"]["choices"]) == 33
    assert "the last 3 plans" in " ".join(greencc("report", planned).out.split())
    page = greencc("report", planned, "--format", "html").out
    assert 'id="the-plan"' in page


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (
            ("digits.greencc", "hiden"),
            ExitCode.USAGE,
            "knows no layer or unit 'hiden'",
            "did you mean 'hidden'?",
        ),
        (("digits.greencc", "e"), ExitCode.USAGE, "have 'e' in their names", "hidden"),
        (("digits.greencc", "hidden", "--all"), ExitCode.USAGE, "--all goes without a LAYER", "--help"),
        (("none.greencc",), ExitCode.BAD_INPUT, "none.greencc is not a bundle folder", "NAME.greencc"),
        (("model.onnx",), ExitCode.BAD_INPUT, "model.onnx is a file, not a bundle", "NAME.greencc"),
        ((), ExitCode.USAGE, "Missing argument 'BUNDLE'", "--help"),
    ],
)
def test_wrong_calls(
    bundle: Path,
    refused: Callable[..., None],
    arguments: tuple[str, ...],
    code: ExitCode,
    message: str,
    hint: str,
) -> None:
    refused(("explain", *arguments), code, message, hint)


def test_a_report_that_was_changed_is_refused(planned: Path, refused: Callable[..., None]) -> None:
    report = planned / "report.json"
    content = report.read_bytes()
    report.write_bytes(content.replace(b'"plan 7"', b'"plan 8"'))
    refused(
        ("explain", "digits.greencc"), ExitCode.BAD_INPUT, "report.json does not match its SHA-256", "changed"
    )
