"""Budgets that nothing can keep: refused with the bound before a search that cannot find anything."""

from __future__ import annotations

from greencc.compiler.planning.budget import Asked
from greencc.core.data import Feeds
from greencc.core.engine import Device
from greencc.core.errors import LimitError
from greencc.meters.device_store import calibrated_profile
from greencc.planner.budget import Kind
from greencc.planner.front import reachable
from greencc.planner.limits import lower_bounds, plan_floors, require_reachable
from greencc.planner.physics import idle_floor, physics_floors
from greencc.planner.problem import Limit, Problem, Quantity

_SECONDS = 5.0


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
    """How far the tables hold every limit to be out of reach, in words; empty where none is."""
    told = []
    for reach in reachable(problem, asked.rows(), seconds=_SECONDS):
        least, limit = reach.alone, reach.limit
        if least is None or limit.bound <= 0.0 or least.bound <= limit.bound:
            continue
        times = least.bound / limit.bound
        told.append(f"{limit.name} is out of reach: by the tables, any plan takes {times:.3g} times as much")
    powers = [limit for limit in asked.budget if limit.kind is Kind.POWER and asked.rate is None]
    floors = plan_floors(problem, powers, idle_watts=asked.idle_watts, tails=asked.tails)
    try:
        # Power flat out is a quotient, which no single row has the least of.
        require_reachable(powers, floors, None)
    except LimitError as error:
        told.append(error.message)
    return "; ".join(told)
