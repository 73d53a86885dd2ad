"""The run time as one more decision: the best plans built for every other one of the same device class, and measured.

A plan is made with the times of the compile's own target. The other run times get its best plans, and the cleaned-up
model: what each of them makes of it is measured beside the same baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from greencc.compiler.patience import not_waited_for
from greencc.compiler.planning.points import Point
from greencc.compiler.planning.verifier import CannotBuildError, Verifier
from greencc.compiler.session import Deadline, Session
from greencc.core.engine import Target
from greencc.core.errors import GreenccError
from greencc.targets import format_spec
from greencc.targets.backends import backends

# Plans that every other run time gets.
_TRIED = 2


def try_backends(
    session: Session, verifier: Verifier, best: Sequence[Point], deadline: Deadline
) -> list[Point]:
    """Points of other run times; one that cannot run a plan is left out with a warning."""
    found: list[Point] = []
    forms = [point.form for point in best if point.form is not None]
    others = backends(session.target)[1:]
    plain = [point for point in best if point.name in ("fp32", "original")]
    wanted = {id(point): point for point in (*best[:_TRIED], *plain[:1])}
    for target in others:
        for point in wanted.values():
            if deadline.over:
                return found
            form, effort = point.form or forms[0], session.options.effort
            if reason := not_waited_for(target, form.model, effort, deadline.left):
                session.warn(f"{format_spec(target)} was not tried: {reason}")
                break
            try:
                found.append(_on(verifier, point, target))
            except (GreenccError, CannotBuildError) as error:
                session.warn(f"{point.name} was not tried on {format_spec(target)}: {error}")
    return found


def _on(verifier: Verifier, point: Point, target: Target) -> Point:
    """A point's model on another run time."""
    spec = format_spec(target)
    name = f"{point.name} on {target.name}"
    if point.steps is not None:
        known = verifier.store.get(point.steps, spec, verifier.reference_ms[50])
        if known is not None:
            return replace(
                point, name=name, figures=known, backend=target, contender=None, origin="cache", place=""
            )
    source = point.form
    if source is None:
        assert point.steps is not None
        source = verifier.build(point.name, point.steps)
    form = verifier.on(source, target, name)
    item = verifier.judged(form, target)
    figures = verifier.figures(item)
    if point.steps is not None:
        verifier.store.put(point.steps, spec, point.summary, figures, point.chosen)
    item.engine.close()
    return Point(name, point.summary, figures, target, point.steps, point.chosen, item, {}, point.origin)
