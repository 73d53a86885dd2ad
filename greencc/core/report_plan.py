"""What the report tells of a plan: the points that were verified, what was chosen for every unit, and how good the
tables were. Plain data; part of `report.json` under ``plan``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LimitVerdict:
    """One limit of the budget and what was found.

    Attributes:
        limit: As it was asked for, such as ``5W`` or ``33ms p95``.
        quantity: ``power``, ``energy``, ``latency``, ``size`` or ``macs``.
        unit: Of `allowed` and `found`: W, mJ, ms, bytes, MACs.
        allowed: The most that is allowed.
        found: Of the artifact; None: not known.
        low: Of the interval of `found`; None where there is none (sizes, counts).
        high: As `low`.
        grade: Of an energy or power figure.
        met: Whether `found` keeps the limit; None: only a measurement on the device tells.
        sure: Whether the whole interval does.
        note: What the figure rests on, such as a rate or a power mode.
        estimated: `found` is an estimate of a device that nothing ran on. It refuses a limit (`met` is False) where
            even the best end of its interval breaks it, and shows none to be met.
    """

    limit: str
    quantity: str
    unit: str
    allowed: float
    found: float | None
    low: float | None
    high: float | None
    grade: str | None
    met: bool | None
    sure: bool
    note: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class PlanPoint:
    """A plan that was built, judged on the planning split and timed (`verified`), or only predicted.

    Where a plan was estimated (`PlanInfo.estimated_on`), latencies and energies of the verified points are estimates.

    Attributes:
        name: For people, such as ``int8`` or ``plan 7``.
        summary: What it does, in a line.
        backend: The target that runs it.
        latency_ms: Median; `latency_p95_ms` likewise.
        energy_mj: With its `grade`.
        drop: Lost on the planning split: the drop in accuracy, or the share of decisions that changed.
        error: Divergence of the outputs from the original's; `predicted_*` is what the tables said before.
        recipe: The passes, as a recipe file.
        origin: ``form`` (a whole-model precision), ``plan`` (the solver's), ``cache`` (verified by an earlier compile).
        front: No other verified point is better in latency, energy, size and drop at once.
        place: Why it was chosen, or was not.
        predicted_drop: Of one that was not verified, where the tables tell it.
        mode: The power mode that it is for, by its name on the device; empty: the one that the device is in.
        watts: Average power at the plan's rate, or flat out, where it was estimated; None also where the device does
            not keep up with the rate.
    """

    name: str
    summary: str
    backend: str
    latency_ms: float | None
    latency_p95_ms: float | None
    energy_mj: float | None
    size_bytes: int | None
    macs: float | None
    drop: float | None
    error: float | None
    verified: bool
    chosen: bool
    front: bool
    origin: str
    place: str
    recipe: str
    predicted_latency_ms: float | None = None
    predicted_energy_mj: float | None = None
    predicted_size_bytes: float | None = None
    predicted_error: float | None = None
    predicted_drop: float | None = None
    mode: str = ""
    watts: float | None = None


@dataclass(frozen=True)
class PlanOption:
    """One option that a unit had: what it was predicted to add to the outputs' error, and to cost, alone.

    `source` says where the error comes from: ``measured``, ``predicted`` or ``not measured in time``; `note`, where the
    times do.
    """

    name: str
    error: float | None
    saved_us: float | None
    saved_mj: float | None
    saved_bytes: float | None
    source: str
    note: str = ""


@dataclass(frozen=True)
class PlanChoice:
    """What was decided for a unit.

    Attributes:
        unit: The name of the layer, group or block.
        kind: ``arithmetic``, ``channels``, ``rank`` or ``block``.
        nodes: Names of the nodes of the source model that it touches.
        option: What was chosen.
        reason: Why, in a sentence.
        options: All that there were, the one that leaves the unit as it is first.
    """

    unit: str
    kind: str
    nodes: tuple[str, ...]
    option: str
    reason: str
    options: tuple[PlanOption, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """How a table did for one verified plan: `predicted` before and `measured` after, in `unit`."""

    point: str
    quantity: str
    unit: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class SolverInfo:
    """The solver's work: sizes, the seconds of all solutions together and the largest relative gap of any."""

    units: int
    options: int
    pairs: int
    solutions: int
    seconds: float
    gap: float


@dataclass(frozen=True)
class PlanInfo:
    """The whole of it.

    Attributes:
        objective: What was minimised: ``energy``, ``latency``, ``size`` or ``error``.
        rate: Requests per second that the power is for; None: flat out.
        limits: The budget and what came of it.
        points: Verified and predicted ones.
        choices: For every unit of the chosen plan.
        predictions: Of all plans that were verified.
        solver: None where nothing was solved.
        rounds: Plans that were built and verified by this compile.
        ended: Why the search ended, in words.
        energy_grade: Of all the points' energies; `energy_boundary` is what they hold, such as ``CPU package``.
        power_mode: The mode of the device that was chosen, by its name there; empty: none was chosen.
        estimated_on: The device profile that all times and energies are estimated from; empty: they were measured.
    """

    objective: str
    rate: float | None
    limits: tuple[LimitVerdict, ...]
    points: tuple[PlanPoint, ...]
    choices: tuple[PlanChoice, ...]
    predictions: tuple[Prediction, ...]
    solver: SolverInfo | None
    rounds: int
    ended: str
    energy_grade: str = "D"
    energy_boundary: str = ""
    notes: tuple[str, ...] = ()
    power_mode: str = ""
    estimated_on: str = ""
