"""The options for carbon figures, which commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from greencc.core.errors import UsageError

if TYPE_CHECKING:
    from greencc.measure.carbon import CarbonOptions

F = TypeVar("F", bound=Callable[..., Any])


class Intensity(click.ParamType[float]):
    """A grid intensity such as ``56g``, in grams of CO2e per kWh."""

    name = "g/kWh"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from greencc.measure.carbon import parse_intensity

        try:
            return parse_intensity(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


def carbon_options(command: F) -> F:
    """Add ``--grid-intensity``, ``--country``, ``--embodied`` and ``--lifetime`` to a command."""
    for option in (
        click.option("--lifetime", type=float, metavar="YEARS", help="How long the device serves."),
        click.option(
            "--embodied",
            type=float,
            metavar="KG",
            help="Emissions of making the device, kg CO2e [default: not included].",
        ),
        click.option("--country", metavar="CODE", help="Grid by ISO code, e.g. FR [default: world average]."),
        click.option(
            "--grid-intensity",
            type=Intensity(),
            help="Grams of CO2e per kWh, e.g. 56g, instead of --country.",
        ),
    ):
        command = option(command)
    return command


def chosen(
    grid_intensity: float | None, country: str | None, embodied: float | None, lifetime: float | None
) -> CarbonOptions:
    """The options as one."""
    from greencc.measure.carbon import CarbonOptions

    return CarbonOptions(grid_intensity, country, embodied, lifetime)
