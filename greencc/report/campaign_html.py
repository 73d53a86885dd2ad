"""The summary of a test campaign as one self-contained HTML page: no network, no fonts, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from greencc.report import campaign_text as text
from greencc.report import figures as show
from greencc.report.campaign_plot import GainPlot, gain_plot
from greencc.report.campaign_summary import CampaignSummary, Row
from greencc.report.campaign_text import RowText
from greencc.report.html import Tile
from greencc.report.page import page_environment


@dataclass(frozen=True)
class _Line:
    """A line of a model's table; `report` is where the bundle's own report is, where that is beside the page."""

    row: Row
    text: RowText
    report: str | None


@dataclass(frozen=True)
class _Section:
    """A model."""

    model: str
    lines: tuple[_Line, ...]
    plot: GainPlot | None
    several: bool


def render_campaign(summary: CampaignSummary) -> str:
    """Return the page. Every text is escaped, in HTML as in SVG."""
    environment = page_environment()
    environment.filters.update(
        capitalized=show.capitalized,
        unbroken=show.unbroken,
        digest=lambda digest: digest[:12],
        share=show.round_share,
    )
    several = len({row.device for row in summary.rows}) > 1
    models = dict.fromkeys(row.model for row in summary.rows)
    sections = [
        _section(name, [row for row in summary.rows if row.model == name], summary.repetitions, several)
        for name in models
    ]
    return environment.get_template("campaign.html.j2").render(
        summary=summary,
        headline=text.headline(summary),
        findings=text.findings(summary),
        tiles=_tiles(summary),
        sections=sections,
        missing=text.missing(summary),
        kinds=text.energy_kinds(summary),
        explanations=text.EXPLANATIONS,
        missing_sign=show.MISSING,
    )


def _section(model: str, rows: Sequence[Row], repetitions: int, several: bool) -> _Section:
    lines = tuple(_Line(row, text.row_text(row, repetitions), _report(row)) for row in rows)
    return _Section(model, lines, gain_plot(rows), several)


def _report(row: Row) -> str | None:
    """Only bundles in the campaign's own folder are linked: elsewhere the page may not be."""
    if row.bundle is None:
        return None
    path = PurePosixPath(row.bundle)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != ("bundles",):
        return None
    return quote(f"{row.bundle}/report.html")


def _tiles(summary: CampaignSummary) -> list[Tile]:
    discarded = sum(summary.discarded.values())
    measured = f"{summary.cells_measured} of {summary.cells}"
    compiled = [row for row in summary.rows if row.seen and not row.original]
    certified = sum(row.accuracy is not None and row.accuracy.certified for row in compiled)
    disturbed = sum(row.disturbed for row in summary.rows)
    tiles = [
        Tile(
            "Measurements",
            measured,
            "",
            "; ".join(
                [f"{disturbed} while other processes were busy" if disturbed else "none was disturbed"]
                + [f"{summary.cells_partial} more in part: the meter failed"] * bool(summary.cells_partial)
            ),
            "complete" if summary.complete else "incomplete",
            "good" if summary.complete and not disturbed else "bad",
            sure=summary.complete,
        ),
        Tile(
            "Blocks",
            f"{summary.blocks:,}",
            "that count",
            f"{discarded:,} discarded; {summary.protocol}, {summary.load}",
            "clears gates" if summary.clears_gate else "clears no gate",
            "plain",
            sure=summary.clears_gate,
        ),
        Tile(
            "Certified",
            f"{certified} of {len(compiled)}",
            "variants",
            "accuracy within its limit, on held-out samples",
            show.round_share(summary.confidence),
            "good" if compiled and certified == len(compiled) else "plain",
            sure=bool(compiled) and certified == len(compiled),
        ),
    ]
    grades = sorted({row.energy.grade for row in summary.rows if row.energy is not None})
    if grades:
        word = text.word(grades[-1])
        kinds = "; ".join(
            dict.fromkeys(row.energy.boundary for row in summary.rows if row.energy is not None)
        )
        tiles.append(
            Tile("Energy", word, "", kinds, f"grade {', '.join(grades)}", "plain", sure=word == "measured")
        )
    return tiles
