"""Whether an artifact may keep a limit, by an estimate of a device that it has not run on.

An estimate never shows that a limit is met. It refuses one only where even the best end of its interval breaks it;
where the interval reaches the limit, only a measurement tells.
"""

from __future__ import annotations

from greencc.core.report import Interval
from greencc.core.report_plan import LimitVerdict
from greencc.meters.roofline import Estimate
from greencc.planner.budget import BudgetLimit, Kind


def assess_estimate(
    limit: BudgetLimit, found: Estimate, *, size_bytes: int, macs: float | None, meaning: str
) -> LimitVerdict:
    """The verdict on one limit. Sizes and MACs are counted, so theirs are facts.

    Args:
        limit: What was asked.
        found: Of the artifact in the power mode that it is for, at the request rate that was asked.
        size_bytes: Of the artifact.
        macs: Likewise; None: not counted.
        meaning: What watts are, in words.
    """
    if limit.kind in (Kind.SIZE, Kind.MACS):
        value = float(size_bytes) if limit.kind is Kind.SIZE else macs
        return _counted(limit, value)
    possible, sure = True, True
    grade, note = None, ""
    interval: Interval
    if limit.kind is Kind.LATENCY:
        interval = found.latency_ms
        if limit.percentile != 50:
            note = f"the median, for an estimate has no p{limit.percentile}"
            sure = False
    elif limit.kind is Kind.ENERGY:
        interval, grade = found.energy.interval(), found.energy.grade
        note = "gross: the idle power is in it"
    else:
        interval, grade, note = found.watts, found.watts.grade, meaning
        paced = found.at_rate
        if paced is not None:
            interval = paced.watts or found.watts
            sure = paced.reachable == "yes"
            possible = paced.reachable != "no"
            if paced.reachable != "yes":
                can = "cannot keep" if paced.reachable == "no" else "may not keep"
                note += f"; it {can} up with {paced.rate:g}/s, which takes {1e3 / paced.rate:.4g} ms"
    possible = possible and interval.low <= limit.value
    return LimitVerdict(
        limit=limit.shown,
        quantity=limit.kind.value,
        unit=limit.kind.unit,
        allowed=limit.value,
        found=interval.value,
        low=interval.low,
        high=interval.high,
        grade=grade,
        met=None if possible else False,
        sure=possible and sure and interval.high <= limit.value,
        note=note,
        estimated=True,
    )


def _counted(limit: BudgetLimit, value: float | None) -> LimitVerdict:
    met = value is not None and value <= limit.value
    note = "not counted" if value is None else ""
    return LimitVerdict(
        limit.shown, limit.kind.value, limit.kind.unit, limit.value, value, None, None, None, met, met, note
    )
