"""What goes out with an artifact that is built to the end on its device: samples, and what they must give there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from greencc.compiler.data import Splits, whole_batches
from greencc.compiler.session import Session
from greencc.core.data import Array, Feeds
from greencc.core.engine import Shipment, Target
from greencc.core.report import BuildInfo

MOST_SAMPLES = 4
MOST_BYTES = 1_000_000


def ship(
    session: Session,
    target: Target,
    artifact: Path,
    splits: Splits,
    name: str,
    conditions: Mapping[str, Any],
) -> BuildInfo | None:
    """Let a target complete the artifact's folder, and say where the artifact was built to the end.

    Args:
        session: Of the compile.
        target: What the artifact was built for.
        artifact: Its main file, where it stays.
        splits: Inputs of the planning split go out: the compile has used them, so they certify nothing later.
        name: Of the model.
        conditions: Of the figures: their power mode, where they have one.
    """
    # Most targets add nothing, and their engines need not run for it.
    if type(target).ship is not Target.ship:
        with session.phase("shipping"):
            feeds, outputs = _samples(target, artifact, splits)
            target.ship(artifact, Shipment(name, feeds, outputs, _power_mode(session, conditions)))
    info = target.build_info(artifact)
    # A power mode of an engine that has run is the one that it has run in.
    if info is None or info.built or info.power_mode is not None:
        return info
    return replace(info, power_mode=_power_mode(session, conditions))


def _samples(
    target: Target, artifact: Path, splits: Splits
) -> tuple[Sequence[Feeds], Sequence[Mapping[str, Array]]]:
    """As many samples as may go out, at least one."""
    engine = target.open(artifact)
    try:
        sizes = {spec.batch for spec in engine.inputs if spec.batch is not None}
        feeds: list[Feeds] = []
        outputs: list[Mapping[str, Array]] = []
        spent = 0
        for each in whole_batches(splits.planning, max(sizes, default=1), MOST_SAMPLES):
            given = engine.run(each)
            spent += sum(array.nbytes for array in (*each.values(), *given.values()))
            if feeds and spent > MOST_BYTES:
                break
            feeds.append(each)
            outputs.append(given)
    finally:
        engine.close()
    return feeds, outputs


def _power_mode(session: Session, conditions: Mapping[str, Any]) -> str | None:
    """The mode that the figures are for, where the device has several."""
    if (planned := conditions.get("power_mode")) is not None:
        return str(planned)
    estimator = session.estimator
    if estimator is None or len(estimator.profile.modes) < 2:
        return None
    return estimator.profile.mode(None).name
