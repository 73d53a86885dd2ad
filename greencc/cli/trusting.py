"""The option of commands that run what is in a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def trust_option(function: F) -> F:
    """Add ``--trust``; `given` makes one text of it."""
    return click.option(
        "--trust",
        metavar="SHA256",
        multiple=True,
        help="Run the compiled code of a bundle whose manifest has this hash (see 'greencc trust').",
    )(function)


def given(trust: tuple[str, ...]) -> bool | str:
    """What `greencc.bundle.load` takes."""
    return ",".join(trust) if trust else False
