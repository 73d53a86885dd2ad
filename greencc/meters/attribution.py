"""Which part of an inference's energy belongs to which layer, by the model of grade D.

    e_i = P(load) * t_i  +  sum over datatypes of e_mac * macs_i  +  e_byte * bytes_i        share_i = e_i / sum of e

A share needs no calibration of the whole: what all coefficients have in common cancels. Where the total is net of the
idle power, so is P. Every share has a range over the corners of the coefficients, all layers at the *same* corner.
Shares are attributed, never measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from greencc.core.errors import UsageError
from greencc.core.report import Energy, Interval, LayerShare
from greencc.meters.model import DevicePower, Draw, Workload, over_coefficients


def layer_shares(
    parts: Sequence[Workload], power: DevicePower, load: float, *, net: bool = False
) -> tuple[Interval, ...]:
    """The share of each part, between 0 and 1; the values sum to 1.

    Args:
        parts: What each layer executes and its seconds; either may be 0.
        power: From `device_power`.
        load: From `load_of`.
        net: Whether the total that is shared out is net of the idle power.

    Raises:
        UsageError: A time or count is negative or not finite, or no part takes anything.
    """
    numbers = [
        number
        for part in parts
        for number in (part.seconds, part.counts.bytes_moved, *part.counts.macs_by_dtype.values())
    ]
    if not all(math.isfinite(number) and number >= 0.0 for number in numbers) or not any(numbers):
        raise UsageError(
            "energy is shared out by non-negative times and counts, and not all of them may be 0"
        )

    def shares(draw: Draw) -> list[float]:
        energies = [draw.millijoules(part, load, net=net) for part in parts]
        total = math.fsum(energies)
        return [energy / total for energy in energies]

    central, corners = over_coefficients(power, shares)
    return tuple(
        Interval(value, min(value, *ends), max(value, *ends))
        for value, ends in zip(central, zip(*corners, strict=True), strict=True)
    )


def share_out(total: Energy, shares: Sequence[Interval]) -> tuple[LayerShare, ...]:
    """Share a positive total out, in millijoules. The values sum to it: the largest takes what rounding leaves.

    The interval of a part is that of its share times that of the total, which may reach below 0.
    """
    values = [total.value * share.value for share in shares]
    largest = max(range(len(shares)), key=lambda index: shares[index].value)
    values[largest] = total.value - math.fsum(values[:largest] + values[largest + 1 :])
    found = []
    for value, share in zip(values, shares, strict=True):
        ends = [share_end * end for share_end in (share.low, share.high) for end in (total.low, total.high)]
        found.append(LayerShare(share, Interval(value, min(value, *ends), max(value, *ends))))
    return tuple(found)
