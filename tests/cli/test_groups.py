"""`greencc inspect --groups` as a user runs it, and the picture it draws."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greencc.cli.console import stdout
from greencc.cli.groups import _print
from greencc.compiler.inspect_groups import GroupRow, GroupTable
from greencc.core.errors import ExitCode
from greencc.report.groups import Arc, GroupBar, groups_svg

Call = Callable[..., Any]
_SVG = "{http://www.w3.org/2000/svg}"


def test_groups_in_json_and_as_a_picture(digits: Path, greencc: Call) -> None:
    done = greencc("inspect", "model.onnx", "--groups", "--json", "--plot", "plot.svg", "-t", "cpu:threads=1")
    assert done.code == ExitCode.OK, done.err
    table = json.loads(done.out)
    hidden, head = table["groups"]
    assert (hidden["name"], hidden["channels"], hidden["width"], hidden["reason"]) == ("hidden", 48, 1, None)
    # A row of the first weight, a bias, a column of the second weight.
    assert (hidden["params"], hidden["macs"], hidden["tensors"]) == (64 + 1 + 10, 64 + 10, 3)
    assert hidden["params_share"] == pytest.approx((3610 - 10) / 3610)
    assert hidden["macs_share"] == pytest.approx(1.0)
    assert "output" in head["reason"]
    assert table["links"] == [{"reads": "hidden", "writes": "head", "layer": "head"}]
    assert (table["params"], table["macs"], table["unknown"]) == (3610, 64 * 48 + 48 * 10, {})
    root = ElementTree.fromstring((digits / "plot.svg").read_text())
    texts = " ".join("".join(element.itertext()) for element in root.iter(f"{_SVG}text"))
    for word in ("hidden", "48 channels", "head", "stays: it is an output", "parameters"):
        assert word in texts
    assert root.get("viewBox")


def test_the_printed_table_says_what_must_stay(digits: Path, greencc: Call) -> None:
    done = greencc("inspect", "model.onnx", "--groups", "--plot", "plot.svg")
    assert done.code == ExitCode.OK, done.err
    for text in (
        "hidden",
        "48 channels",
        "75",
        "74",
        "2 groups, 1 of them",
        "head must stay: it is an output",
    ):
        assert text in done.out
    assert done.out.endswith("Plot: plot.svg\n")


def row(number: int, reason: str | None = None) -> GroupRow:
    return GroupRow(f"g{number}", "heads", 4, 8, 3, 100, None, 0.5 / (number + 1), None, reason)


def test_only_the_heaviest_are_listed_and_what_is_unknown_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    groups = tuple(row(number, "it is [bold]odd[/bold]" if number == 39 else None) for number in range(40))
    table = GroupTable(1000, None, groups, (), {"Odd": [f"n{number}" for number in range(7)]})
    _print(stdout(), table, everything=False)
    out = capsys.readouterr().out
    assert "g24" in out
    assert "g25" not in out
    assert "... and 15 more groups" in out
    assert "4 heads of 8" in out
    assert "No rule is known for Odd, where groups end: n0, n1, n2, n3, n4 and 2 more" in out
    _print(stdout(), table, everything=True)
    assert "g39 must stay: it is [bold]odd[/bold]" in capsys.readouterr().out
    _print(stdout(), GroupTable(0, 0, (), (), {}), everything=False)
    assert capsys.readouterr().out.startswith("0 groups")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["model.onnx", "--groups", "--sensitivity"], ExitCode.USAGE, "exclude each other"),
        (["model.onnx", "--groups", "--profile"], ExitCode.USAGE, "exclude each other"),
        (["model.onnx", "--groups", "-c", "calibration.npz"], ExitCode.USAGE, "--sensitivity"),
        (["model.onnx", "--plot", "x.svg"], ExitCode.USAGE, "--sensitivity or --groups"),
        (["none.onnx", "--groups"], ExitCode.BAD_INPUT, "none.onnx"),
        (["model.onnx", "--groups", "-t", "cqu"], ExitCode.USAGE, "cpu"),
        ([".", "--groups"], ExitCode.USAGE, "not with a bundle"),
        (["calibration.npz", "--groups", "--plot", "x.svg"], ExitCode.BAD_INPUT, "calibration.npz"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    digits: Path, greencc: Call, arguments: list[str], code: ExitCode, words: str
) -> None:
    done = greencc("inspect", *arguments)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (digits / "x.svg").exists()


def test_names_cannot_break_out_of_the_picture() -> None:
    evil = "</svg><script>x</script>\x1b\u202e"
    bars = [GroupBar(evil, evil, 0.5, 0.2, None), GroupBar("zero", "1 channel", 0.0, None, evil)]
    root = ElementTree.fromstring(groups_svg(bars, [Arc(0, 1, evil), Arc(1, 1, evil)], evil))
    assert not list(root.iter(f"{_SVG}script"))
    assert "\x1b" not in "".join(root.itertext())
    assert ElementTree.fromstring(groups_svg([], [], "empty")).tag == f"{_SVG}svg"


def test_the_picture_draws_every_group_and_every_pair_of_groups_once() -> None:
    bars = [GroupBar(f"g{number}", "8 channels", 0.01 * number, 3.0, None) for number in range(60)]
    arcs = [Arc(0, 1, "a"), Arc(0, 1, "b"), Arc(1, 0, "c"), Arc(2, 2, "d"), Arc(0, 59, "e")]
    root = ElementTree.fromstring(groups_svg(bars, arcs, "many"))
    rects = [element for element in root.iter(f"{_SVG}rect") if element.find(f"{_SVG}title") is not None]
    assert len(rects) == 120
    assert all(0.0 <= float(element.get("width", "")) <= 300.0 for element in rects)
    titles = [
        title.text for path in root.iter(f"{_SVG}path") if (title := path.find(f"{_SVG}title")) is not None
    ]
    assert sorted(set(titles)) == ["a, b", "c", "d", "e"]
