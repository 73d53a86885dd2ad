"""Names are found, or it is said which there are; what is printed is all that the report knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from greencc.core.errors import UsageError
from greencc.core.report import Report
from greencc.report.explain import Explanation, explain, find_name, known_names
from greencc.report.explain_text import explanation_text, overview_text
from greencc.report.json_out import from_plain, to_plain

STEM = "/backbone/features/stage0/inverted_residual_block.0/depthwise_separable.0/Conv"
CHANNELS = "stage2 hidden channels (128)"


def _printed(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def _flat(renderable: RenderableType) -> str:
    return " ".join(_printed(renderable, 160).split())


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (STEM, STEM),
        ("stage2 hidden", CHANNELS),
        ("STAGE2 HIDDEN", CHANNELS),
        ("block 14", "block 14"),
        ("head/fc", "/head/fc"),
        # Of several with this part only one ends in it.
        ("block.1/depthwise_separable.0/Conv", STEM.replace("block.0", "block.1")),
        ("Mul_1", "/head/act/Mul_1"),
    ],
)
def test_a_name_or_a_part_of_it(planned_report: Report, part: str, name: str) -> None:
    assert find_name(planned_report, part) == name


@pytest.mark.parametrize(
    ("part", "message", "hint"),
    [
        (
            "nothing like it",
            "knows no layer or unit 'nothing like it'",
            "without a name, 'greencc explain' lists them",
        ),
        ("", "knows no layer or unit ''", "lists them"),
        (STEM.replace("block.0", "blok.0"), "knows no layer or unit", f"did you mean '{STEM}'?"),
        ("stage2/inverted_residual_block.8", "4 layers or units have", "separable.1/Conv"),
        ("/Conv", "30 layers or units have '/Conv' in their names", "and 18 more"),
        ("\x1b[31m", "knows no layer or unit '\ufffd[31m'", ""),
    ],
)
def test_names_that_are_none_or_several(planned_report: Report, part: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        explain(planned_report, part)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_the_last_row_of_the_energies_is_no_layer(planned_report: Report) -> None:
    assert not [name for name in known_names(planned_report) if name.startswith("(between")]


def test_a_layer_has_all_units_that_touch_it(planned_report: Report) -> None:
    report = planned_report
    assert report.plan is not None
    node = next(item for item in report.plan.choices if item.unit == CHANNELS).nodes[0]
    found = explain(report, node)
    assert [unit.kind for unit in found.units] == ["arithmetic", "channels"]
    assert found.nodes == (node,)
    assert [row.name for row in found.layers] == [node]
    assert [row.name for row in found.layer_errors] == [node]
    assert found.layer_energy is not None
    assert (found.layer_energy.grade, found.layer_energy.boundary) == ("D", "package (model)")
    text = _flat(explanation_text(report, found))
    for words in (
        "Arithmetic: int8. Saves most of all options that the error left room for.",
        "Channels: 96 of 128. Three aligned steps are kept",
        "* int8",
        "interpolated; from layers of equal shape",
        "energy per inference: estimated, grade D, package (model)",
        "attributed by model (totals estimated, grade D, package (model))",
        "Measured times",
        " dB",
    ):
        assert words in text


def test_a_unit_has_the_figures_of_its_nodes(planned_report: Report) -> None:
    found = explain(planned_report, CHANNELS)
    assert [unit.unit for unit in found.units] == [CHANNELS]
    assert len(found.nodes) == len(found.layers) == 3
    assert CHANNELS not in found.nodes


def test_what_passes_said_and_decided_of_a_layer(planned_report: Report) -> None:
    report = replace(
        planned_report,
        passes=(
            *planned_report.passes[:3],
            replace(planned_report.passes[3], chosen={"skip": ("/head/act/Mul_1", STEM)}),
        ),
    )
    found = explain(report, "/head/act/Mul_1")
    assert [(item.name, item.finding.kind) for item in found.findings] == [("fuse-hard-swish", "rolled-back")]
    assert [(item.name, item.option) for item in found.decisions] == [("quantize-int8", "skip")]
    text = _flat(explanation_text(report, found))
    assert "The plan had nothing to decide on it" in text
    assert "quantize-int8 has /head/act/Mul_1 among its skip" in text
    assert "fuse-hard-swish, rolled-back: " in text


def test_without_a_plan_it_says_so(full_report: Report) -> None:
    found = explain(full_report, "/stem")
    assert (found.planned, found.units, found.units_energy) == (False, (), None)
    text = _flat(explanation_text(full_report, found))
    assert "was not made by a plan (it was compiled with --precision auto)" in text
    assert "Float was chosen for /stem: measured slower as INT8 (52 us) than in float (40 us)." in text
    assert "INT8 costs 12.0 µs." in text
    # Millijoules without a grade are not told.
    assert "mJ" not in text
    text = _flat(overview_text(full_report, everything=False))
    assert "it costs more accuracy than it saves energy" in text
    assert "quantize-int8, left-in-float: Softmax has no integer kernel" in text


def test_without_anything_it_says_that_too(minimal_report: Report) -> None:
    assert "No layers were weighed against each other." in _flat(
        overview_text(minimal_report, everything=False)
    )


def test_the_overview_lists_the_exceptions_first_and_all_if_asked(planned_report: Report) -> None:
    plan = planned_report.plan
    assert plan is not None
    many = tuple(replace(plan.choices[1], unit=f"unit {index}") for index in range(50))
    report = replace(planned_report, plan=replace(plan, choices=(*many, plan.choices[0])))
    text = _printed(overview_text(report, everything=False), 160)
    assert "... and 11 more units (--all lists them)" in text
    assert text.index("stage0") < text.index("unit 0")
    assert "unit 49" not in text
    text = _printed(overview_text(report, everything=True), 160)
    assert "more units" not in text
    assert "unit 49" in text


def test_names_cannot_style_the_terminal(planned_report: Report) -> None:
    plan = planned_report.plan
    assert plan is not None
    evil = "[red]x[/red]\x1b[31m"
    unit = replace(plan.choices[0], unit=evil, kind=evil, option=evil, reason=evil, nodes=(evil, STEM))
    unit = replace(
        unit, options=tuple(replace(item, name=evil, note=evil, source=evil) for item in unit.options)
    )
    report = replace(planned_report, plan=replace(plan, choices=(unit,), ended=evil))
    text = _printed(explanation_text(report, explain(report, evil))) + _printed(
        overview_text(report, everything=True)
    )
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


@pytest.mark.parametrize("name", [STEM, CHANNELS, "block 14", "bn_2"])
def test_it_fits_80_columns_and_goes_through_json(planned_report: Report, name: str) -> None:
    found = explain(planned_report, name)
    text = _printed(explanation_text(planned_report, found))
    assert max(map(len, text.splitlines())) <= 80
    again = from_plain(to_plain(found, "explanation"), Explanation, "explanation")
    assert again == found
