"""What every way to plan hands to the rest of a compile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from greencc.compiler.contender import Contender
from greencc.compiler.measurement import Measurement
from greencc.core.errors import LimitError
from greencc.core.report import LayerChoice
from greencc.core.report_plan import PlanInfo
from greencc.meters.device import PowerMode


class Plan(ABC):
    """Contenders in order of preference, and what is known of all others."""

    @property
    @abstractmethod
    def ranked(self) -> Sequence[Contender]:
        """The preferred one first."""

    @abstractmethod
    def left(self) -> Sequence[Contender]:
        """Forms that were judged on the way and are not ranked."""

    @abstractmethod
    def others(self, held: Contender | None) -> Iterator[Contender]:
        """Contenders beside the ranked ones that are better than one that held, the best first; any where none did."""

    @abstractmethod
    def keeps(self, measured: Measurement) -> bool:
        """Whether what was found in the end keeps the budget."""

    @abstractmethod
    def objection(self, measured: Measurement) -> str | None:
        """Why what was found in the end is not shipped, or None."""

    @abstractmethod
    def out_of_reach(self, found: str = "") -> LimitError:
        """The error for a budget that nothing keeps, with the nearest points."""

    @abstractmethod
    def info(self, shipped: Contender, measured: Measurement) -> PlanInfo:
        """The plan part of the report."""

    def mode_of(self, item: Contender) -> PowerMode | None:
        """The power mode that a contender is for; None: whatever the device is in."""
        return None

    def layers_of(self, item: Contender) -> tuple[LayerChoice, ...]:
        """What a sensitivity search decided for the layers of a contender; empty: nothing."""
        return ()
