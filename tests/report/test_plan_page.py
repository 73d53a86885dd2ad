"""The plan's section of the page: whole, safe, honest about what is known, and complete without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.report import Report
from greencc.core.report_plan import LimitVerdict, PlanInfo, PlanPoint, Prediction
from greencc.report import render_html
from greencc.report.front_plot import front_views
from greencc.report.plan import limit_rows, prediction_accuracy, solver_text
from greencc.report.plan_page import plan_page, plan_script
from greencc.report.prediction_plot import prediction_plot

from .conftest import full
from .planned import with_plan
from .test_html import check

EVIL = "\"><script>alert(1)</script><svg onload='x'>&amp;\x1b[31m\u202e</style>"


def _plan(report: Report) -> PlanInfo:
    assert report.plan is not None
    return report.plan


def _with(report: Report, **changes: Any) -> Report:
    return replace(report, plan=replace(_plan(report), **changes))


def _text(page: str) -> str:
    return re.sub(r"\s+", " ", "".join(check(page).text)).replace("\xa0", " ")


def test_the_only_script_is_the_one_whose_hash_the_policy_names(planned_report: Report) -> None:
    page = render_html(planned_report)
    found = check(page)
    assert found.tags.count("script") == 1
    assert not [key for _, key, _ in found.attributes if key.startswith("on")]
    assert "http:" not in page
    assert "https:" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == plan_script()
    assert "innerHTML" not in script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        value for tag, key, value in found.attributes if key == "content" and "default-src" in str(value)
    ]
    assert policy is not None
    assert policy.endswith(f"; script-src 'sha256-{digest}'")


def test_a_page_without_a_plan_has_no_script(full_report: Report) -> None:
    page = render_html(full_report)
    assert "script-src" not in page
    assert "the-plan" not in page
    assert plan_page(full_report) is None


def _hostile(value: Any) -> Any:
    """The same with hostile text in every field that is text, but for what the loader restricts."""
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: _hostile(getattr(value, item.name))
            for item in fields(value)
            if item.name not in ("grade", "energy_grade")
        }
        return replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(_hostile(item) for item in value)
    return f"{EVIL}{value}" if isinstance(value, str) else value


def test_hostile_plans_are_text(planned_report: Report) -> None:
    page = render_html(replace(planned_report, plan=_hostile(planned_report.plan)))
    found = check(page)
    assert found.tags.count("script") == 1
    assert not [key for _, key, _ in found.attributes if key.startswith("on")]
    assert page.count("</style>") == 1
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "".join(found.text).count("<script>alert(1)</script>") > 200


def test_every_mark_has_a_card_and_can_be_reached(planned_report: Report) -> None:
    page = render_html(planned_report)
    cards = re.findall(r'data-card="(\d+)"', page)
    marks = re.findall(r'tabindex="0" role="img" aria-label="([^"]+)" data-point="(\d+)"', page)
    assert sorted(cards, key=int) == [str(index) for index in range(16)]
    assert {point for _, point in marks} == set(cards)
    assert len(marks) == page.count("data-point=") == 3 * 16
    # The chosen one's card is there without the script.
    assert len(re.findall(r'data-card="\d+" hidden', page)) == 15
    assert sum("chosen" in label for label, _ in marks) == 3
    assert (
        sum("predicted, not verified" in label for label, _ in marks) == page.count("mark plan hollow") == 3
    )


def test_energy_and_power_never_stand_alone(planned_report: Report) -> None:
    basis = "estimated, grade D, package (model)"
    page = plan_page(planned_report)
    assert page is not None
    views = {view.key: view.svg for view in page.views}
    assert views["energy"].count(basis) > 16
    for label in re.findall(r'aria-label="([^"]+ mJ[^"]+)"', views["energy"]):
        assert basis in label
    assert " mJ" not in views["latency"] + views["size"]
    for card in page.cards:
        assert next(row for row in card.rows if row.label.startswith("Energy")).label == f"Energy ({basis})"
    power = next(row for row in page.limits if row.limit == "8W")
    assert power.known == f"{basis}; at 30 requests/s"
    # A plan that does not tell has the artifact's boundary; a report that has none says that.
    untold = _with(planned_report, energy_boundary="")
    assert limit_rows(untold)[0].known == power.known
    bare = replace(untold, artifact=replace(untold.artifact, energy_mj=None))
    assert limit_rows(bare)[0].known == "estimated, grade D, boundary not told; at 30 requests/s"


@pytest.mark.parametrize(
    ("change", "verdict", "kept"),
    [
        ({}, "met, though not by the whole interval", True),
        ({"sure": True}, "met", True),
        ({"met": False}, "not met, though the interval reaches it", False),
        ({"met": False, "low": 8.1}, "not met", False),
        ({"met": False, "low": None, "high": None}, "not met", False),
        ({"met": False, "found": None}, "not known", None),
    ],
)
def test_limits_are_judged_in_words(
    planned_report: Report, change: dict[str, Any], verdict: str, kept: bool | None
) -> None:
    limit = replace(_plan(planned_report).limits[0], **change)
    row = limit_rows(_with(planned_report, limits=(limit,)))[0]
    assert (row.verdict, row.kept) == (verdict, kept)


def test_the_accuracy_is_a_limit_too(planned_report: Report) -> None:
    row = limit_rows(planned_report)[-1]
    assert (row.limit, row.allowed, row.found) == ("Drop in accuracy", "1 %", "0.13 points [−0.11, 0.38]")
    assert row.verdict == "certified"
    unsure = replace(planned_report, accuracy=replace(planned_report.accuracy, certified=False))
    assert (limit_rows(unsure)[-1].verdict, limit_rows(unsure)[-1].kept) == ("not certified", None)


def test_limits_are_lines_where_they_are_near(planned_report: Report) -> None:
    views = {view.key: view for view in front_views(planned_report)}
    assert "limit 7ms" in views["latency"].svg
    assert "limit 2.5MB" in views["size"].svg
    assert "limit" not in views["energy"].svg.replace("limit 1 %", "")
    assert all("limit 1 %" in view.svg for view in views.values())
    far = LimitVerdict("3s", "latency", "ms", 3000.0, 6.8, None, None, None, True, True)
    view = front_views(_with(planned_report, limits=(far,)))[0]
    assert "limit 3s" not in view.svg
    assert "Far right of the plot: the limit 3s." in view.note


def test_a_limit_on_the_95th_percentile_is_compared_with_it(planned_report: Report) -> None:
    limit = replace(_plan(planned_report).limits[1], limit="7ms p95")
    view = front_views(_with(planned_report, limits=(limit,)))[0]
    assert "Latency per inference, 95th percentile" in view.svg
    assert "plan 7: 4.42 ms" in view.svg
    worst = replace(limit, limit="7ms p99")
    view = front_views(_with(planned_report, limits=(worst,)))[0]
    assert "Latency per inference, median" in view.svg
    assert "limit is one of the 99th percentile" in view.note


def test_what_is_not_known_is_not_drawn(planned_report: Report) -> None:
    points = _plan(planned_report).points
    mute = tuple(replace(point, energy_mj=None, predicted_energy_mj=None) for point in points)
    report = _with(planned_report, points=mute)
    assert [view.key for view in front_views(report)] == ["latency", "size"]
    assert "Energy" not in _text(render_html(report)).split("The front")[1].split("Verified plans")[0]
    # Nothing says what the predicted plan loses: it is left out, and that is said.
    unknown = tuple(replace(point, predicted_drop=None) for point in points)
    assert "1 of the plans is not drawn" in front_views(_with(planned_report, points=unknown))[0].note
    # Without any drop the outputs' error stands for it.
    no_drop = tuple(replace(point, drop=None, predicted_drop=None) for point in points)
    view = front_views(_with(planned_report, points=no_drop))[0]
    assert "Output error against latency" in view.svg
    assert view.svg.count("data-point=") == 16
    empty = _with(planned_report, points=(), choices=(), predictions=(), solver=None, limits=())
    text = _text(render_html(empty))
    assert "No plan was chosen out of 0 verified plans" in text
    assert "The front" not in text


def _figure() -> st.SearchStrategy[float]:
    return st.floats(min_value=1e-6, max_value=1e12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_figure(), st.floats(min_value=-0.5, max_value=1.0)), min_size=1, max_size=12),
    st.data(),
)
def test_the_plot_keeps_every_mark_inside_and_its_line_below_all(
    values: list[tuple[float, float]], data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(values) - 1))
    template = next(point for point in _plan(_planned()).points if point.chosen)
    points: tuple[PlanPoint, ...] = tuple(
        replace(template, name=f"p{index}", latency_ms=x, latency_p95_ms=x, drop=y, chosen=index == chosen)
        for index, (x, y) in enumerate(values)
    )
    view = front_views(_with(_planned(), points=points))[0]
    check(f"<html>{view.svg}</html>")
    places = re.findall(r'x="([-\d.]+)%" y="([-\d.]+)" overflow="visible"', view.svg)
    assert all(9.0 <= float(x) <= 98.0 for x, _ in places)
    assert all(38.0 <= float(y) <= 334.0 for _, y in places)
    assert len(places) == len(values)
    line = re.search(r'd="M([\d.]+) [-\d.]+((?:H[\d.]+V[-\d.]+)+)H1000"', view.svg)
    assert line is not None
    stairs = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([-\d.]+)", line[2])]
    xs, ys = zip(*stairs, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # Downwards on the page: less is lost.
    for x, y in places:
        # No mark lies below the line: left of a step and lower than it.
        floor = max((step_y for step_x, step_y in stairs if step_x <= 10 * float(x) + 0.06), default=0.0)
        assert float(y) <= floor + 0.06


@pytest.mark.parametrize(
    "latencies", [(1e12, 1e12), (1e100, 1e100 * (1 + 1e-15)), (0.0, 0.0), (1e-100, 1e100)]
)
def test_the_plot_survives_odd_figures(latencies: tuple[float, float]) -> None:
    template = next(point for point in _plan(_planned()).points if point.chosen)
    points = tuple(replace(template, latency_ms=value, chosen=value != latencies[0]) for value in latencies)
    limit = LimitVerdict("0ms", "latency", "ms", 0.0, None, None, None, None, False, False)
    view = front_views(_with(_planned(), points=points, limits=(limit,)))[0]
    check(f"<html>{view.svg}</html>")
    places = re.findall(r'x="([-\d.]+)%" y="[-\d.]+" overflow="visible"', view.svg)
    assert len(places) == 2
    assert all(9.0 <= float(x) <= 98.0 for x in places)


def _planned() -> Report:
    return with_plan(full())


def test_points_that_would_squeeze_the_plot_stand_at_its_edge(planned_report: Report) -> None:
    view = front_views(planned_report)[0]
    assert view.svg.count('class="mark up') == 1  # int4-weights loses 31 points
    assert view.svg.count('class="mark right') == 1  # int8-dynamic takes 31 ms
    assert "2 plans lie beyond the edge" in view.note
    assert "int8-dynamic: 31.0 ms, 0.18 points lost" in view.svg


def test_without_labels_the_loss_is_of_decisions(planned_report: Report) -> None:
    accuracy = replace(planned_report.accuracy, baseline=None, artifact=None, drop=None, low=None, high=None)
    report = replace(planned_report, accuracy=accuracy)
    text = _text(render_html(report))
    assert "Decisions changed, %" in text
    assert "Accuracy lost" not in text
    assert "plan 7: 4.17 ms, 0.79 % of decisions changed, chosen" in text
    row = limit_rows(report)[-1]
    assert (row.limit, row.found) == ("Changed decisions", "0.98 %")


def test_units_are_grouped_and_the_exceptions_come_first(planned_report: Report) -> None:
    page = plan_page(planned_report)
    assert page is not None
    groups = {group.kind: group for group in page.groups}
    assert list(groups) == ["arithmetic", "channels", "rank", "block"]
    arithmetic = groups["arithmetic"]
    assert [line.choice.option for line in arithmetic.first[:3]] == ["float32", "float32", "int8"]
    assert (len(arithmetic.first), len(arithmetic.rest), arithmetic.changed) == (12, 18, 28)
    text = _text(render_html(planned_report))
    assert "INT8 would add 0.00038 to the error" in text
    assert "interpolated; from layers of equal shape" in text


def test_a_page_of_many_units_stays_short_and_says_so(planned_report: Report) -> None:
    choice = _plan(planned_report).choices[0]
    many = tuple(replace(choice, unit=f"unit {index}", options=choice.options * 10) for index in range(300))
    report = _with(planned_report, choices=many)
    page = plan_page(report)
    assert page is not None
    lines = [line for group in page.groups for line in (*group.first, *group.rest)]
    assert len(lines) == 300
    assert sum(len(line.options) for line in lines) == 3000
    assert sum(line.left_out for line in lines) == 6000
    assert "30 options: greencc explain prints them." in _text(render_html(report))


def test_predictions_are_compared_by_quantity() -> None:
    pairs = [
        Prediction(f"p{index}", "latency", "ms", 1.0, measured)
        for index, measured in enumerate((1.0, 2.0, 0.5))
    ]
    pairs.append(Prediction("p0", "error", "", 0.1, 0.0))
    latency, error = prediction_accuracy(pairs)
    assert (latency.median, latency.worst) == (0.5, 1.0)
    # An error of 0 has no relative error.
    assert (error.median, error.worst) == (None, None)
    for found in (latency, error):
        svg = prediction_plot(found)
        check(f"<html>{svg}</html>")
        for x, y in re.findall(r'cx="([-\d.]+)%" cy="([-\d.]+)"', svg):
            assert 0 <= float(x) <= 100
            assert 0 <= float(y) <= 150


def test_the_search_is_told(planned_report: Report) -> None:
    text = _text(render_html(planned_report))
    for words in (
        "The last 3 plans were no better than the one before",
        "33 units with 104 options and 12 pairs, solved 9 times in 0.84 s together, proved optimal",
        "30 requests/s",
        "15 plans, 1 of them by earlier compiles",
        "Median error 3.4 %",
    ):
        assert words in text
    solver = _plan(planned_report).solver
    assert solver is not None
    loose = replace(solver, gap=0.012, solutions=1)
    assert "solved once in 0.84 s together, largest gap to the optimum 1.2 %" in solver_text(
        replace(_plan(planned_report), solver=loose)
    )


def test_the_recipe_keeps_its_lines(planned_report: Report) -> None:
    page = render_html(planned_report)
    (recipe,) = re.findall(r'<pre class="recipe" tabindex="0">(.*?)</pre>', page, re.DOTALL)
    assert recipe.splitlines()[:3] == ["[[pass]]", "name = &#34;prune&#34;", "ratio = 0.3"]
