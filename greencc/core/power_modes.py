"""Targets that run on a device whose power mode is known, and may be changed for a while."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from greencc.core.engine import Target


@runtime_checkable
class OnDevice(Protocol):
    """A target whose engines run on a device that is attached: there they are timed and metered."""

    @property
    def base(self) -> Target:
        """The same target without the device: its times are estimated."""

    @property
    def may_change_mode(self) -> bool:
        """Whether the user allows the power mode to be changed."""

    def power_modes(self) -> tuple[tuple[str, float | None], ...]:
        """The device's modes with their caps in watts, where they have one; empty: it has none."""

    def power_mode(self) -> str | None:
        """The mode that it is in."""

    def with_power_mode(self, name: str) -> AbstractContextManager[None]:
        """The device in another mode for a while; it is put back, also after a crash.

        Raises:
            UnavailableError: It may not be changed, or cannot be now.
        """
