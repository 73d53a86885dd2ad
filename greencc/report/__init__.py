"""Reports: the verdict, and its rendering as JSON, HTML, Markdown and terminal text."""

from greencc.report.html import render_html
from greencc.report.json_out import dump_report, load_report, parse_report, stored
from greencc.report.markdown import render_markdown
from greencc.report.text import candidates_table, figures_table, measurement_table, summary
from greencc.report.verdict import Verdict, judge, with_verdict

__all__ = [
    "Verdict",
    "candidates_table",
    "dump_report",
    "figures_table",
    "judge",
    "load_report",
    "measurement_table",
    "parse_report",
    "render_html",
    "render_markdown",
    "stored",
    "summary",
    "with_verdict",
]
