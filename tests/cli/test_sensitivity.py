"""`greencc inspect --sensitivity` as a user runs it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greencc.cli.types import FORMATS, TABLE_PRECISIONS
from greencc.compiler.inspect import TABLE_PRECISIONS as OFFERED
from greencc.compiler.options import QuantizedFormat
from greencc.core.errors import ExitCode
from greencc.report.sensitivity import sensitivity_svg

Call = Callable[..., Any]


DATA = ["--calibration", "calibration.npz", "--eval", "eval.npz"]


def test_the_choices_of_the_command_line_are_those_of_the_library() -> None:
    assert tuple(item.value for item in OFFERED) == TABLE_PRECISIONS
    assert tuple(item.value for item in QuantizedFormat) == FORMATS


def test_a_table_in_json_and_as_a_picture(digits: Path, greencc: Call) -> None:
    done = greencc("inspect", "model.onnx", "--sensitivity", *DATA, "--json", "--plot", "plot.svg")
    assert done.code == ExitCode.OK, done.err
    table = json.loads(done.out)
    assert [row["name"] for row in table["rows"]] == ["hidden", "head"]
    assert table["precisions"] == ["int8", "int4-weights"]
    hidden = table["rows"][0]
    assert 0 < hidden["errors"]["int8"] < hidden["errors"]["int4-weights"]
    assert hidden["among"]
    assert hidden["saved_us"] is not None
    assert hidden["saved_mj_low"] < hidden["saved_mj"] < hidden["saved_mj_high"]
    assert table["energy"]["grade"] == "D"
    assert table["energy"]["boundary"] == "CPU package + DRAM (estimated)"
    assert table["energy"]["method"].startswith("estimated, gross")
    root = ElementTree.fromstring((digits / "plot.svg").read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"hidden", "head", "int8", "int4-weights"} <= set(texts)
    assert root.get("viewBox")


def test_the_printed_table_names_the_layers(digits: Path, greencc: Call) -> None:
    done = greencc("inspect", "model.onnx", "--sensitivity", *DATA, "--precision", "int8")
    assert done.code == ExitCode.OK, done.err
    assert "hidden" in done.out
    assert "int8 alone" in done.out
    text = " ".join(done.out.split())
    assert "held-out samples" in text
    assert "Energy: grade D, CPU package + DRAM (estimated), per inference; estimated, gross" in text
    assert re.search(r"-?\d[\d.]* \[-?\d\S*, -?\d\S*\]", text)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--sensitivity"], ExitCode.USAGE, "--calibration"),
        (["--plot", "x.svg"], ExitCode.USAGE, "--sensitivity"),
        ([*DATA], ExitCode.USAGE, "--sensitivity"),
        (["--sensitivity", *DATA, "--search-time", "soon"], ExitCode.USAGE, "90s"),
        (["--sensitivity", *DATA, "--search-time", "0"], ExitCode.UNAVAILABLE, "--search-time"),
        (["--sensitivity", "--calibration", "missing.npz"], ExitCode.BAD_INPUT, "missing.npz"),
        (["--sensitivity", *DATA, "--metric", "nonsense"], ExitCode.USAGE, "metric"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    digits: Path, greencc: Call, arguments: list[str], code: ExitCode, words: str
) -> None:
    done = greencc("inspect", "model.onnx", *arguments)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (digits / "x.svg").exists()


def test_a_plot_that_cannot_be_written_leaves_nothing(digits: Path, greencc: Call) -> None:
    (digits / "file").write_text("in the way")
    done = greencc(
        "inspect", "model.onnx", "--sensitivity", *DATA, "--precision", "int8", "--plot", "file/plot.svg"
    )
    assert done.code == ExitCode.BAD_INPUT
    assert "file/plot.svg" in done.err


def test_names_cannot_break_out_of_the_picture() -> None:
    drawn = sensitivity_svg(
        ["</svg><script>x</script>", "zero"], ["int8"], [{"int8": 0.5}, {"int8": 0.0}], "<t>"
    )
    root = ElementTree.fromstring(drawn)
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert ElementTree.fromstring(sensitivity_svg([], ["int8"], [], "empty")).tag.endswith("svg")
