"""The page is whole, self-contained, and safe against the names in a model."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from greencc.core.report import (
    REST,
    Budget,
    Interval,
    Latency,
    LayerEnergies,
    LayerEnergy,
    LayerError,
    LayerShare,
    Report,
)
from greencc.report import judge, render_html
from greencc.report.flame import flame_map
from greencc.report.svg import latency_plot, sqnr_plot, ticks

_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Checks nesting, collects tags, attributes and the text outside of style."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text.append(data)


def check(page: str) -> Checker:
    parser = Checker()
    parser.feed(page)
    parser.close()
    assert parser.stack == []
    return parser


@pytest.mark.parametrize("name", ["full", "minimal"])
def test_well_formed_and_self_contained(reports: dict[str, Report], name: str) -> None:
    page = render_html(reports[name])
    found = check(page)
    assert page.startswith("<!doctype html>")
    assert "http:" not in page
    assert "https:" not in page
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert not [key for _, key, _ in found.attributes if key.startswith("on")]
    sources = {(tag, value) for tag, key, value in found.attributes if key in ("src", "href")}
    assert sources == {("link", "data:,")}
    assert "url(" not in page
    assert "default-src 'none'" in page
    text = "".join(found.text)
    assert judge(reports[name]).headline in text
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", text.lower())


def test_hostile_names_are_text(full_report: Report) -> None:
    evil = "\"><script>alert(1)</script><svg onload='x'>&amp;\x1b[31m\u202e"
    report = replace(
        full_report,
        model=replace(full_report.model, name=evil),
        target=evil,
        device={evil: evil},
        versions={evil: evil},
        layers=tuple(replace(layer, name=evil, op_type=evil) for layer in full_report.layers),
        layer_errors=tuple(replace(layer, name=evil, op_type=evil) for layer in full_report.layer_errors),
        layer_energy=replace(
            full_report.layer_energy,  # type: ignore[type-var]
            boundary=evil,
            method=evil,
            rows=tuple(
                replace(row, name=row.name if row.name == REST else f"{evil}/{index}", op_type=evil)
                for index, row in enumerate(full_report.layer_energy.rows)  # type: ignore[union-attr]
            ),
        ),
        carbon=replace(
            full_report.carbon,  # type: ignore[type-var]
            boundary=evil,
            grid=replace(full_report.carbon.grid, place=evil, source=evil),  # type: ignore[union-attr]
        ),
        candidates=tuple(replace(item, name=evil, reason=evil) for item in full_report.candidates),
        passes=tuple(
            replace(
                item,
                name=evil,
                options={evil: [evil]},
                findings=tuple(replace(finding, message=evil, node=evil + "n") for finding in item.findings),
            )
            for item in full_report.passes
        ),
        warnings=(evil,),
        accuracy=replace(
            full_report.accuracy,
            metric=evil,
            reason=evil,
            outputs=tuple(replace(item, name=evil) for item in full_report.accuracy.outputs),
        ),
    )
    page = render_html(report)
    found = check(page)
    assert "script" not in found.tags
    assert not [key for _, key, _ in found.attributes if key.startswith("on")]
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "".join(found.text).count("<script>alert(1)</script>") > 60


def test_plots_have_titles_and_tables_have_captions(full_report: Report) -> None:
    page = render_html(full_report)
    plots = re.findall(r'<svg class="plot"[^>]*><title>[^<]+</title><desc>[^<]+</desc>', page)
    assert len(plots) == page.count('class="plot"') == 3
    for plot in plots:
        assert 'role="img"' in plot
        assert 'aria-label="' in plot
    assert page.count("<table") == page.count("<caption") == 7


def test_verdict_comes_first(full_report: Report) -> None:
    text = re.sub(r"\s+", " ", "".join(check(render_html(full_report)).text))
    assert text.index("less energy (estimated)") < text.index("estimated, grade D") < text.index("Figures")


def test_rolled_back_pass_is_open_and_refusals_are_listed(full_report: Report) -> None:
    page = render_html(full_report)
    assert page.count("<details open>") == 1
    assert "rolled back" in page
    assert "BatchNormalization has two consumers of its input" in page
    assert "percentile = 99.99999" in page


def test_uncertain_figures_are_not_claimed(full_report: Report) -> None:
    report = replace(
        full_report,
        ratio=replace(full_report.ratio, latency=Interval(1.1, 0.95, 1.3), energy=Interval(1.2, 0.9, 1.5)),
    )
    page = render_html(report)
    assert "no speed-up shown" in page
    assert "no saving shown" in page
    assert "less energy" not in page
    assert "1.10× faster" not in page
    # No large figure that could be read as a claim; the values stand below.
    large = [
        " ".join(re.sub("<[^>]*>", "", each).split())
        for each in re.findall(r'<dd class="big">(.*?)</dd>', page)
    ]
    assert large[:2] == ["– no speed-up shown", "– no saving shown"]
    assert ", 1.10× [0.95,\N{NO-BREAK SPACE}1.30]</dd>" in page
    assert "saving 17 [−11,\N{NO-BREAK SPACE}33] %" in page


def test_latency_plot_survives_odd_samples() -> None:
    one = Latency(1.0, 1.0, 1.0, 1, (1.0,))
    assert latency_plot(one, Latency(1.0, 1.0, 1.0, 0)) is None
    plot = latency_plot(Latency(1.0, 1.2, 1.3, 5, (0.9, 1.0, 1.0, 1.2, 40.0)), one)
    assert plot is not None
    assert plot.beyond == 1
    zero = Latency(0.0, 0.0, 0.0, 2, (0.0, 0.0))
    assert latency_plot(zero, zero) is not None


@pytest.mark.parametrize("values", [[15.0], [-50.0, 150.0], [20.0] * 300, [-3.2, 4.4]])
def test_sqnr_plot_keeps_points_inside(values: list[float]) -> None:
    plot = sqnr_plot([LayerError(f"l{i}", "Conv", value) for i, value in enumerate(values)])
    assert plot is not None
    height = float(re.search(r'height="([\d.]+)"', plot)[1])  # type: ignore[index]
    ys = [float(y) for y in re.findall(r'cy="([-\d.]+)"', plot)]
    assert len(ys) == len(values)
    assert all(0 <= y <= height for y in ys)
    assert sqnr_plot([]) is None


@pytest.mark.parametrize("end", [0.013, 1.0, 7.3, 99.9, 12345.0])
def test_ticks_are_round_and_few(end: float) -> None:
    found: Any = ticks(end, 5)
    assert 2 <= len(found) <= 6
    assert found[0] == 0
    assert found[-1] <= end * (1 + 1e-9)


def test_findings_of_passes_that_were_asked_for_are_open(full_report: Report) -> None:
    def opened(text: str) -> list[str]:
        page = render_html(replace(full_report, budget=Budget({"passes": text}, met=True)))
        return re.findall(r'<details open>\s*<summary><span class="pass">([^<]*)</span>', page)

    # What was rolled back is always open.
    assert opened("fold-constants,quantize") == ["fuse-hard-swish", "quantize-int8"]
    assert opened("fold-batch-norm") == ["fold-batch-norm", "fuse-hard-swish"]
    assert opened("broken\\") == ["fuse-hard-swish"]
    many = replace(full_report.passes[3], findings=full_report.passes[3].findings * 20)
    crowded = replace(full_report, passes=(many,), budget=Budget({"passes": "quantize"}, met=True))
    assert "<details open>" not in render_html(crowded)


def _map(*rows: tuple[str, float, float], rest: tuple[float, float] = (0.0, 0.0)) -> str:
    """A flame map of layers with these shares before and after, of 100 and of 25 mJ."""

    def part(share: float, total: float) -> LayerShare:
        known = [share, 0.9 * share, 1.1 * share]
        return LayerShare(Interval(*known), Interval(*(total * each for each in known)))

    layers = [
        LayerEnergy(name, "Conv", part(old, 100.0), part(new, 25.0))
        for name, old, new in (*rows, (REST, *rest))
    ]
    totals = [Interval(total, 0.5 * total, 2 * total) for total in (100.0, 25.0)]
    return str(
        flame_map(LayerEnergies(totals[0], totals[1], "D", "package", "attributed by model", tuple(layers)))
    )


def _cells(svg: str) -> list[tuple[float, float, float, str]]:
    """Left edge and width in percent, top, and title of each cell."""
    found = re.findall(r'<svg x="([\d.]+)%" y="(\d+)" width="([\d.]+)%"[^>]*><title>([^<]*)', _reordered(svg))
    return [(float(x), float(width), float(y), title) for x, y, width, title in found]


def _reordered(svg: str) -> str:
    """Attributes in the order in which `_cells` looks for them."""
    return re.sub(
        r'<svg x="([^"]*)" y="([^"]*)" width="([^"]*)" height="[^"]*" overflow="hidden">',
        r'<svg x="\1" y="\2" width="\3">',
        svg,
    )


def test_flame_map_fills_the_width_and_groups_by_scope() -> None:
    svg = _map(("/a/b/conv1", 0.2, 0.3), ("/a/b/conv2", 0.2, 0.1), ("/c", 0.4, 0.4), rest=(0.2, 0.2))
    cells = _cells(svg)
    rows = sorted({top for _, _, top, _ in cells})
    assert len(rows) == 4  # Two levels of each variant.
    for top, widths in ((rows[0], [50.0, 50.0]), (rows[1], [25.0, 25.0]), (rows[3], [37.5, 12.5])):
        assert [width for _, width, y, _ in cells if y == top] == pytest.approx(widths)
    # "a" has a single child: one cell for both.
    assert cells[0][3] == (
        "a/b: 40.0 mJ [36.0 mJ, 44.0 mJ], 40 % [36, 44] of the baseline, 2 layers, attributed by model"
    )
    assert "/a/b/conv1 (Conv): 20.0 mJ" in cells[1][3]
    assert "attributed by model" in cells[1][3]
    # The bars are on one scale: 80 % of 100 mJ, and 80 % of 25 mJ.
    assert 'width="80.00%"' in svg
    assert 'width="20.00%"' in svg
    assert "100 mJ [50.0 mJ, 200 mJ], estimated (D)" in svg


@pytest.mark.parametrize(
    "names",
    [
        ["conv"],
        ["/", "//", ""],
        ["/a", "/a/b", "/a/b/c"],
        ["/" + "/".join("abcdefghij") + "/x", "/a/b/c/d/e/f/y", "/a/z"],
        ["(Cast, by the runtime)", "(Reorder, by the runtime)", "plain"],
        [f"/scope{index % 7}/layer_{index}/Conv" for index in range(300)],
    ],
)
def test_flame_map_keeps_every_layer_inside(names: list[str]) -> None:
    each = 1.0 / len(names)
    svg = _map(*((name, each, 0.5 * each) for name in names), rest=(0.0, 0.5))
    check(f"<html>{svg}</html>")
    cells = _cells(svg)
    assert all(left >= 0.0 and left + width <= 100.01 for left, width, _, _ in cells)
    for name in names:
        assert sum(f"{name} (Conv):" in title for _, _, _, title in cells) >= 2
    height = float(re.search(r'<svg class="plot"[^>]* height="(\d+)"', svg)[1])  # type: ignore[index]
    assert all(top + 23 <= height for _, _, top, _ in cells)


def test_flame_map_of_nothing_but_the_rest() -> None:
    svg = _map(("a", 0.0, 0.0), rest=(1.0, 1.0))
    assert _cells(svg) == []
    assert svg.count('class="rest') == 2


def test_small_layers_are_left_out_of_the_map_and_counted_in_the_table(full_report: Report) -> None:
    page = render_html(full_report)
    assert "other layers" in page
    assert "Energy by layer" in page
    assert page.count("attributed by model") > 50


def test_break_even_is_only_claimed_where_it_is_shown(full_report: Report) -> None:
    assert "pays for itself after 2.7 thousand inferences [2.0, 4.1]" in re.sub(
        r"\xa0", " ", render_html(full_report)
    )
    info = replace(
        full_report.compile,
        break_even=replace(full_report.compile.break_even, inferences=None, reason="no saving shown"),  # type: ignore[type-var]
    )
    page = render_html(replace(full_report, compile=info))
    assert "pays for itself" not in page
    assert "Break-even</strong>: no saving shown" in page


def test_carbon_names_its_grid_year_and_source(full_report: Report) -> None:
    page = render_html(full_report)
    for word in (
        "56 g CO2e/kWh",
        "France (FR), 2023",
        "Our World in Data",
        "120 kg CO2e embodied",
        "grade D",
    ):
        assert word in page
    bare = replace(full_report, carbon=replace(full_report.carbon, embodied=None))  # type: ignore[type-var]
    assert "embodied emissions not included" in render_html(bare)
