"""Terminal and Markdown renderings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from greencc.core.report import Report
from greencc.report import candidates_table, render_markdown, summary
from greencc.report.figures import capitalized
from greencc.report.markdown import escape

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["full", "minimal", "planned"])
def test_markdown_snapshot(reports: dict[str, Report], name: str) -> None:
    assert render_markdown(reports[name]) == (GOLDEN / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["full", "minimal", "planned"])
def test_terminal_snapshot_without_colour(reports: dict[str, Report], name: str) -> None:
    console = Console(width=80, color_system=None, force_terminal=False, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(summary(reports[name]))
        console.print(candidates_table(reports[name]))
    text = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_names_cannot_style_the_terminal(full_report: Report) -> None:
    report = replace(full_report, warnings=("[red]loud[/red] \x1b[31mescape",))
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(summary(report))
    assert "[red]loud[/red]" in captured.get()
    evil = "\x1b[31mescape"
    carbon, layers, energy = report.carbon, report.layer_energy, report.compile.energy_j
    assert carbon is not None
    assert layers is not None
    assert energy is not None
    report = replace(
        report,
        carbon=replace(carbon, boundary=evil, grid=replace(carbon.grid, place=evil, source=evil)),
        layer_energy=replace(
            layers,
            boundary=evil,
            rows=(*(replace(row, name=evil) for row in layers.rows[:-1]), layers.rows[-1]),
        ),
        compile=replace(report.compile, energy_j=replace(energy, boundary=evil, method=evil)),
    )
    with console.capture() as captured:
        console.print(summary(report))
    assert "\x1b" not in captured.get()


def test_markdown_escapes() -> None:
    assert escape("a|b\n<i>*x*</i> `y` [z](w)") == r"a\|b \<i\>\*x\*\</i\> \`y\` \[z\](w)"


def test_the_address_of_a_device_is_not_capitalised() -> None:
    assert (
        capitalized("ssh://root@orin: its clocks are not fixed")
        == "ssh://root@orin: its clocks are not fixed"
    )
    assert capitalized("energy was not measured") == "Energy was not measured"
