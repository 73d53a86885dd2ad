"""Checks of paths that several commands share."""

from __future__ import annotations

from pathlib import Path

from greencc.core.errors import UsageError


def refuse_inside(output: Path, bundle: Path) -> None:
    """Refuse to write into a bundle: it would no longer match its manifest.

    Raises:
        UsageError: `output` lies in the folder `bundle`.
    """
    if output.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"{output} lies inside the bundle, which would no longer match its hashes",
            hint="write it elsewhere",
        )
