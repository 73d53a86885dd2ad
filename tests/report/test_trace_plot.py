"""The plot of power against time."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from greencc.report.trace_plot import Span, trace_plot

SVG = "{http://www.w3.org/2000/svg}"


def draw(
    seconds: object, watts: object, spans: tuple[Span, ...] = (), title: str = "Power"
) -> ElementTree.Element:
    return ElementTree.fromstring(
        trace_plot(
            np.asarray(seconds, float), np.asarray(watts, float), spans, title=title, subtitle="grade B"
        )
    )


def lines(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    found = []
    for line in svg.iter(f"{SVG}polyline"):
        points = (point.split(",") for point in (line.get("points") or "").split())
        found.append([(float(x), float(y)) for x, y in points])
    return found


def test_higher_power_is_drawn_higher_and_later_to_the_right() -> None:
    (line,) = lines(draw([0.0, 10.0, 20.0], [5.0, 10.0, 20.0]))
    xs, ys = [x for x, _ in line], [y for _, y in line]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    # The axis begins at 0 W: twice the power is twice as high above it.
    bottom = 292.0
    assert abs((bottom - ys[2]) / (bottom - ys[1]) - 2.0) < 0.01


def test_a_gap_breaks_the_line() -> None:
    svg = draw([0.0, 10.0, 20.0, 30.0, 40.0], [5.0, 6.0, np.nan, 6.0, 5.0])
    assert [len(line) for line in lines(svg)] == [2, 2]


def test_many_readings_become_a_line_and_a_band() -> None:
    seconds = np.linspace(0.0, 600.0, 60_000)
    watts = 10.0 + np.sin(seconds * 50.0)
    svg = draw(seconds, watts)
    (line,) = lines(svg)
    assert len(line) <= 880
    (band,) = svg.iter(f"{SVG}polygon")
    assert len((band.get("points") or "").split()) == 2 * len(line)


def test_discarded_blocks_are_hatched_and_described() -> None:
    spans = (Span("idle", 0.0, 5.0), Span("baseline", 5.0, 9.0, discarded=True))
    svg = draw([0.0, 10.0], [5.0, 6.0], spans)
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert "baseline, 5.00 to 9.00 s, discarded" in titles
    hatched = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("fill") == "url(#hatch)"]
    # The block, and the legend.
    assert len(hatched) == 2


def test_a_trace_without_power_and_names_that_try_to_break_out() -> None:
    svg = draw([0.0], [np.nan], title="<script>\u202e&")
    assert lines(svg) == []
    assert not list(svg.iter(f"{SVG}script"))
