"""What every HTML page has: the templates, and how text gets into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from greencc.report.figures import printable

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment() -> Environment:
    """Templates that escape everything and refuse names they do not know."""
    # Imported here: everything else that needs reports starts without a template engine.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("greencc.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )


def _clean(value: object) -> object:
    """Strip what must not reach a page (control characters, bidirectional overrides) from plain text."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value
