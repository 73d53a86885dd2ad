"""The summary of a test campaign as Markdown."""

from __future__ import annotations

from greencc.report import campaign_text as text
from greencc.report.campaign_summary import CampaignSummary
from greencc.report.markdown import bullets, escape, section, table


def render_campaign_markdown(summary: CampaignSummary) -> str:
    """Return the summary as GitHub-flavoured Markdown, ending in a newline. Names are escaped."""
    parts = [
        f"# Test campaign {escape(summary.name)}",
        f"**{escape(text.headline(summary))}**: {summary.cells_measured} of {summary.cells} measurements"
        f"{f', {summary.cells_partial} more in part' if summary.cells_partial else ''}, "
        f"{escape(summary.protocol)}, {escape(summary.load)}",
        bullets(text.findings(summary)),
        *section("Warnings", bullets(summary.warnings)),
    ]
    for model in dict.fromkeys(row.model for row in summary.rows):
        parts += section(model, _model(summary, model))
    parts += [
        *section(
            "Not measured, or in part", table(("Model", "Variant", "Device", "Why"), text.missing(summary))
        ),
        *section("Discarded blocks", _discarded(summary)),
        *section("Conditions", _facts(summary.conditions)),
        *section("Devices", _facts(summary.devices)),
        *section("How to repeat", _repeat(summary)),
        *section("Definitions", bullets(f"{name}: {what}" for name, what in text.EXPLANATIONS)),
    ]
    return "\n\n".join(parts) + "\n"


def _model(summary: CampaignSummary, model: str) -> str:
    rows = []
    for row in summary.rows:
        if row.model == model:
            found = text.row_text(row, summary.repetitions)
            rows.append(
                (
                    found.name, row.device, found.form, _joined(found.accuracy, found.accuracy_note),
                    _joined(found.latency, found.latency_note),
                    _joined(found.energy, found.energy_change, found.energy_note),
                    _joined(found.size, found.size_note), found.repetitions,
                )
            )  # fmt: skip
    return table(("Variant", "Device", "Form", "Accuracy", "Latency", "Energy", "Size", "Repetitions"), rows)


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _discarded(summary: CampaignSummary) -> str:
    rows = [(reason, f"{count:,}") for reason, count in summary.discarded.items()]
    return table(("Reason", "Blocks"), rows, right=(1,))


def _facts(facts: dict[str, dict[str, str]]) -> str:
    return bullets(
        f"{name}: " + "; ".join(f"{key} {value}" for key, value in values.items())
        for name, values in facts.items()
    )


def _repeat(summary: CampaignSummary) -> str:
    lines = [
        f"Command: {summary.command}",
        f"Campaign file: {summary.file}, sha256 {summary.sha256}",
        f"Order: seed {summary.seed}; confidence {summary.confidence:g}",
        "Inputs: " + "; ".join(f"{name} {digest}" for name, digest in summary.inputs.items()),
        "Versions: " + "; ".join(f"{name} {version}" for name, version in summary.versions.items()),
        f"Started {summary.started}, written {summary.created}",
    ]
    return bullets(lines)
