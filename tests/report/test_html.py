"""The page is whole, self-contained, and safe against the names in a model."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from greencc.core.report import Budget, Interval, Latency, LayerError, Report
from greencc.report import judge, render_html
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
    assert len(plots) == page.count('class="plot"') == 2
    for plot in plots:
        assert 'role="img"' in plot
        assert 'aria-label="' in plot
    assert page.count("<table") == page.count("<caption") == 5


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
