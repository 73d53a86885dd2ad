"""Points: plans that were built, judged and timed, kept for later compiles.

A point's latency is the baseline's, measured once, divided by the ratio that both showed side by side, so that points
measured minutes apart compare. What was verified is kept under everything it depends on but the budget: a second
compile of the same model with another budget finds all points of the first, and so does one that was interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from greencc.compiler.contender import Contender
from greencc.compiler.forms import Form
from greencc.compiler.planning.space import PlanSteps
from greencc.core.cache import Cache, cache_key
from greencc.core.engine import Target
from greencc.core.errors import GreenccError
from greencc.core.passes import Pass
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.core.report import Interval
from greencc.passes import PASSES
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.planner.problem import Amounts, Assignment, Quantity, weigh

_POINT = "plan-point"
_VERSION = 1
# Of the latency, in every point.
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Figures:
    """What was found of a plan.

    Attributes:
        loss: On the planning split, as `--max-drop` counts it.
        error: Divergence of the outputs.
        ratio: Latency of the baseline divided by its own.
        latency_ms: By percentile: 50, 95, 99.
        energy_mj: Estimated, gross.
        size_bytes: Of the artifact.
        macs: Of one inference; None: not counted.
    """

    loss: float | None
    error: float
    ratio: Interval
    latency_ms: Mapping[int, float]
    energy_mj: float | None
    size_bytes: int
    macs: float | None

    @property
    def lost(self) -> float:
        """The loss; 0 where nothing could be judged."""
        return self.loss or 0.0

    def value(self, weights: Amounts) -> float:
        """What an objective makes of it; infinite where something is not known."""
        found = self.amounts()
        if any(found[quantity] is None for quantity in weights):
            return math.inf
        return weigh(weights, {key: value or 0.0 for key, value in found.items()})

    def amounts(self) -> dict[Quantity, float | None]:
        """As the planner counts."""
        return {
            Quantity.LATENCY: self.latency_ms[50],
            Quantity.ENERGY: self.energy_mj,
            Quantity.SIZE: float(self.size_bytes),
            Quantity.MACS: self.macs,
            Quantity.ERROR: self.error,
        }


@dataclass
class Point:
    """A verified plan.

    Attributes:
        name: For people.
        summary: What it does.
        figures: What was found.
        steps: Its passes; None for forms of the whole model, which have their own.
        chosen: The assignment; None for forms and for what earlier compiles left.
        contender: The form with its engine, where it is there.
        backend: What runs it.
        predicted: What the tables said.
        origin: ``form``, ``plan`` or ``cache``.
        place: Why it was chosen, or was not.
        passes: All of them from the original model.
    """

    name: str
    summary: str
    figures: Figures
    backend: Target
    steps: PlanSteps | None = None
    chosen: Assignment | None = None
    contender: Contender | None = None
    predicted: Mapping[Quantity, float] = field(default_factory=dict)
    origin: str = "plan"
    place: str = ""
    passes: tuple[Pass, ...] = ()

    @property
    def form(self) -> Form | None:
        return None if self.contender is None else self.contender.form

    @property
    def recipe(self) -> str:
        """All passes from the original model."""
        return dump_recipe(self.passes if self.form is None else self.form.passes)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether amounts are nowhere larger than others, and somewhere smaller."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Kept:
    """A point as it is kept; `chosen` is the whole assignment, None for a form of the whole model."""

    steps: PlanSteps
    backend: str
    summary: str
    figures: Figures
    chosen: Assignment | None


@dataclass(frozen=True)
class PointStore:
    """Points under `context`: digests of model, data, target and everything else that they depend on."""

    cache: Cache
    context: str

    def get(self, steps: PlanSteps, backend: str, baseline_ms: float) -> Figures | None:
        """What an earlier run found of these very steps, its times relative to what the baseline takes now."""
        found = self.cache.get(self.kind, self._key(steps, backend))
        kept = None if found is None else _kept(found, baseline_ms)
        return None if kept is None else kept.figures

    def put(
        self, steps: PlanSteps, backend: str, summary: str, figures: Figures, chosen: Assignment | None
    ) -> None:
        """Keep a point."""
        entry: dict[str, Any] = {
            "version": _VERSION,
            "backend": backend,
            "summary": summary,
            "chosen": None if chosen is None else dict(chosen),
            "prepare": dump_recipe(steps.prepare),
            "quantize": "" if steps.quantize is None else dump_recipe((steps.quantize,)),
            "extra": dump_recipe(steps.extra),
            "loss": figures.loss,
            "error": figures.error,
            "ratio": [figures.ratio.value, figures.ratio.low, figures.ratio.high],
            "latency_ms": {str(key): value for key, value in figures.latency_ms.items()},
            "energy_mj": figures.energy_mj,
            "size_bytes": figures.size_bytes,
            "macs": figures.macs,
        }
        text = json.dumps(entry, sort_keys=True)
        self.cache.put(self.kind, self._key(steps, backend), {"point": np.array(text)}, label=summary)

    def all(self, baseline_ms: float) -> Iterable[Kept]:
        """Every point kept, in a fixed order, likewise."""
        for key in self.cache.keys(self.kind):
            found = self.cache.get(self.kind, key) if key.startswith(self._prefix) else None
            kept = None if found is None else _kept(found, baseline_ms)
            if kept is not None:
                yield kept

    @property
    def kind(self) -> str:
        """Under which the cache has them."""
        return _POINT

    @property
    def _prefix(self) -> str:
        """Of the keys of one context."""
        return self.context[:24]

    def _key(self, steps: PlanSteps, backend: str) -> str:
        return self._prefix + cache_key(_VERSION, self.context, backend, str(steps))[24:]


def _passes(text: str) -> tuple[Pass, ...]:
    return parse_recipe(text, PASSES, "cached plan")


def _kept(found: Mapping[str, Any], baseline_ms: float) -> Kept | None:
    """What an entry holds; None where it was written by another version, or by nobody."""
    try:
        entry = json.loads(str(found["point"]))
        if entry["version"] != _VERSION:
            return None
        ratio = Interval(*(_amount(value) for value in entry["ratio"]))
        taken = {percentile: _amount(entry["latency_ms"][str(percentile)]) for percentile in _PERCENTILES}
        # A baseline that was measured while others kept the machine busy must not stay for ever.
        faster = baseline_ms / ratio.value / taken[50]
        figures = Figures(
            # What is more accurate than the original loses less than nothing.
            loss=None if entry["loss"] is None else _amount(entry["loss"], least=-math.inf),
            error=_amount(entry["error"]),
            ratio=ratio,
            latency_ms={key: _amount(value * faster) for key, value in taken.items()},
            energy_mj=None if entry["energy_mj"] is None else _amount(_amount(entry["energy_mj"]) * faster),
            size_bytes=int(_amount(entry["size_bytes"])),
            macs=None if entry["macs"] is None else _amount(entry["macs"]),
        )
        quantize = _passes(entry["quantize"]) if entry["quantize"] else ()
        step = next((item for item in quantize if isinstance(item, QuantizeInt8)), None)
        steps = PlanSteps(_passes(entry["prepare"]), step, _passes(entry["extra"]))
        chosen = None if entry["chosen"] is None else {str(k): str(v) for k, v in entry["chosen"].items()}
        return Kept(steps, str(entry["backend"]), str(entry["summary"]), figures, chosen)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        GreenccError,
    ):
        return None


def _amount(value: float, least: float = 0.0) -> float:
    """A finite number of an entry, no smaller than `least`.

    Raises:
        ValueError: It is not.
        OverflowError: It is too large for a float.
    """
    number = float(value)
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{value} is no figure of a plan")
    return number
