"""The options of commands that can do their work on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def device_option(what: str) -> Callable[[_Command], _Command]:
    """``--device``; `what` is done there."""

    def decorate(function: _Command) -> _Command:
        return click.option(
            "--device",
            default="",
            metavar="DEVICE",
            help=f"{what} there: ssh://user@host, or a name of 'greencc devices add'.",
        )(function)

    return decorate


def power_mode_option(function: _Command) -> _Command:
    """``--set-power-mode [NAME]``: without it the device's power mode is never changed."""
    return click.option(
        "--set-power-mode",
        is_flag=False,
        flag_value="",
        default=None,
        metavar="[NAME]",
        help="The device's power mode may be changed meanwhile, to NAME where one is given; it is put back.",
    )(function)
