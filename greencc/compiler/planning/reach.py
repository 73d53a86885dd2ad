"""Budgets that nothing can keep: refused with the bound before a search that cannot find anything."""

from __future__ import annotations

from greencc.compiler.planning.budget import Asked
from greencc.core.data import Feeds
from greencc.core.engine import Device
from greencc.core.errors import LimitError
from greencc.meters.device_store import calibrated_profile
from greencc.planner.budget import Kind
from greencc.planner.limits import lower_bounds, plan_floors, require_reachable
from greencc.planner.physics import idle_floor, physics_floors
from greencc.planner.problem import Limit, Problem, Quantity


def require_above_idle(asked: Asked) -> None:
    """Refuse watts below what the device draws without any work.

    Raises:
        LimitError: With the bound.
    """
    if any(limit.kind is Kind.POWER for limit in asked.budget):
        require_reachable(asked.budget, [idle_floor(asked.idle_watts, "estimated, grade D")], asked.rate)


def require_possible(asked: Asked, device: Device, problem: Problem, feeds: Feeds) -> None:
    """Refuse what the device's peak figures exclude, where it was calibrated (`greencc lab calibrate`).

    Raises:
        LimitError: With the bound.
    """
    profile = calibrated_profile(device.fingerprint)
    if profile is None or not asked.budget:
        return
    macs, size = lower_bounds(
        problem,
        [Limit("macs", {Quantity.MACS: 1.0}, 0.0), Limit("size", {Quantity.SIZE: 1.0}, 0.0)],
    )
    moved = max(size, 0.0) + sum(array.nbytes for array in feeds.values())
    floors = physics_floors(profile, profile.mode(None), macs=max(macs, 0.0), bytes_moved=moved)
    require_reachable(asked.budget, floors, asked.rate)


def tables_bound(asked: Asked, problem: Problem) -> str:
    """The least that the tables hold possible of every limit that is below it, in words; empty where none is."""
    floors = plan_floors(
        problem, asked.budget, rate=asked.rate, idle_watts=asked.idle_watts, tails=asked.tails
    )
    try:
        require_reachable(asked.budget, floors, asked.rate)
    except LimitError as error:
        return error.message
    return ""
