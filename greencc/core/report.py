"""The report as plain data. Field names are the stable keys of `report.json`.

Figures that were not measured are None, never 0. Energy never stands without its grade, boundary and interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from greencc.core.passes import Finding
from greencc.core.report_plan import PlanInfo

SCHEMA = "greencc.report/1"


@dataclass(frozen=True)
class Interval:
    """A figure with its two-sided confidence interval (or plausible range, for grade C and D energy)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Energy:
    """Energy per inference in millijoules (where a name says so, of something else in joules).

    A figure with a `gross` beside it, and that one's interval, is net of the idle power; one without is gross itself:
    every estimate (C and D), and a measurement (A and B) where idle is not known or explains all. `method` says so in
    words.
    """

    value: float
    low: float
    high: float
    grade: str
    boundary: str
    method: str
    gross: float | None = None
    gross_low: float | None = None
    gross_high: float | None = None

    @property
    def net(self) -> bool:
        """Whether the idle power is not in it."""
        return self.gross is not None

    def interval(self) -> Interval:
        """Net or gross, as it is."""
        return Interval(self.value, self.low, self.high)

    def gross_interval(self) -> Interval:
        """Gross. Where it has no ends of its own (older reports): the net ones, moved by the idle share."""
        if self.gross is None:
            return self.interval()
        idle = self.gross - self.value
        return Interval(
            self.gross,
            self.low + idle if self.gross_low is None else self.gross_low,
            self.high + idle if self.gross_high is None else self.gross_high,
        )


@dataclass(frozen=True)
class GridIntensity:
    """Grams of CO2 equivalent per kWh, of which grid, in which year (None: as the user gave it), and who says so."""

    grams_per_kwh: float
    place: str
    year: int | None
    source: str


@dataclass(frozen=True)
class Embodied:
    """Emissions of making the device, in kg of CO2 equivalent, and the years that it serves."""

    kg: float
    lifetime_years: float


@dataclass(frozen=True)
class Carbon:
    """SCI (ISO/IEC 21031:2024) in micrograms of CO2 equivalent per inference, of the gross energy.

    The intervals are those of the energy, whose `grade` and `boundary` it has. `embodied` None: not included.
    """

    baseline_ug: Interval
    artifact_ug: Interval
    grid: GridIntensity
    embodied: Embodied | None
    grade: str
    boundary: str


@dataclass(frozen=True)
class Latency:
    """Milliseconds per inference; `samples` are the single runs, thinned for plotting.

    Nothing was run where there is a `method`: `median` is then an estimate, `low` and `high` its plausible range, and
    percentiles are not known.
    """

    median: float
    p95: float | None
    p99: float | None
    runs: int
    samples: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    method: str | None = None

    @property
    def estimated(self) -> bool:
        """Whether nobody has measured it."""
        return self.method is not None

    @property
    def percentiles(self) -> dict[int, float]:
        """Milliseconds by percentile; of an estimate the median alone."""
        found = {50: self.median, 95: self.p95, 99: self.p99}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Figures:
    """Measured figures of one variant. `accuracy` is None without labels.

    `params` and `macs` are weights and multiply-accumulates per inference at a batch of 1, as `ModelInfo` has them of
    the source; None: not counted.
    """

    latency_ms: Latency
    energy_mj: Energy | None
    size_bytes: int
    peak_memory_mb: float | None
    accuracy: float | None
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Ratio:
    """baseline / artifact: above 1 the artifact is better. None: not available."""

    latency: Interval
    energy: Interval | None
    size: Interval


@dataclass(frozen=True)
class OutputError:
    """How far one output of the artifact is from the baseline's, over all held-out samples.

    Float outputs have `sqnr_db` (None when the outputs are identical or the signal is zero), `cosine` and
    `max_abs`; integer, boolean and string outputs have `differing`, the share of elements that differ.
    `broken` counts samples whose shape changed or where finite values became non-finite; they are left out
    of the other figures.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    differing: float | None = None
    broken: int = 0


@dataclass(frozen=True)
class Accuracy:
    """The task metric on the certification split.

    `drop` is baseline - artifact with its paired interval [low, high] at `confidence`; without labels it is
    None. `agreement` is the share of samples with the same decision (top-1, or all outputs within tolerance).
    `certified` says that with probability `confidence` the true drop is at most `epsilon`; `failures` of `n`
    samples counted against it; `n_needed` is how many samples would certify when `n` is too small (None when
    no number would at the failure rate seen). `improved` counts the samples that the artifact alone got right.
    `broken` counts samples for which the artifact gave a wrong shape or non-finite values; they are failures.
    """

    metric: str
    baseline: float | None
    artifact: float | None
    drop: float | None
    low: float | None
    high: float | None
    agreement: float | None
    n: int
    certified: bool
    epsilon: float
    confidence: float
    failures: int | None
    p_value: float | None
    n_needed: int | None
    reason: str
    outputs: tuple[OutputError, ...] = ()
    improved: int | None = None
    broken: int = 0


@dataclass(frozen=True)
class PassRecord:
    """One pass as it ran.

    Attributes:
        error: The relative output error it introduced, None when it was not checked.
        chosen: Options that make it do the same again; empty where it has decided nothing of that kind.
    """

    name: str
    options: dict[str, Any]
    changed: int
    error: float | None
    rolled_back: bool
    findings: tuple[Finding, ...]
    seconds: float
    chosen: dict[str, tuple[str, ...]] = field(default_factory=dict)


NOTHING_CONVERTED = "nothing could be converted"
"""What the reason of a candidate begins with that came out as the model it was made from."""


@dataclass(frozen=True)
class Candidate:
    """A form the compile considered: its planning-split accuracy drop and quick latency, and why it was (not) kept.

    One in which `NOTHING_CONVERTED` has neither.
    """

    name: str
    latency_ms: float | None
    drop: float | None
    chosen: bool
    reason: str


@dataclass(frozen=True)
class BackendTrial:
    """A form on one of the run times that competed (`backend`: the spec), timed side by side with the others.

    `ratio` is the latency of the first one, the best form on the compile's own target, divided by this one's, with its
    interval; None, as `latency_ms` and `drop`: not known. `reason` says why it was chosen, or was not. `busy`: other
    processes were busy while it was timed.
    """

    backend: str
    form: str
    latency_ms: float | None
    ratio: Interval | None
    drop: float | None
    chosen: bool
    reason: str
    busy: bool = False


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer before and after, matched by its origin in the source model; None where it is fused away."""

    name: str
    op_type: str
    baseline_us: float | None
    artifact_us: float | None


@dataclass(frozen=True)
class LayerShare:
    """A layer's part of the energy of one inference, as a model attributes it; nobody has measured the layer.

    `share` is of the total, over the corners of the model's coefficients. `mj` is that share of the total energy; its
    interval also has the total's own uncertainty in it.
    """

    share: Interval
    mj: Interval


@dataclass(frozen=True)
class LayerEnergy:
    """One layer before and after; None where it is not there: fused away, or added by the compile."""

    name: str
    op_type: str
    baseline: LayerShare | None
    artifact: LayerShare | None


@dataclass(frozen=True)
class LayerEnergies:
    """Energy by layer, attributed by model. The values of all `rows` sum to those of the totals, in millijoules.

    The last row is what no layer explains (`REST`): the runtime's own work, and waiting.
    """

    baseline_mj: Interval
    artifact_mj: Interval
    grade: str
    boundary: str
    method: str
    rows: tuple[LayerEnergy, ...]


REST = "(between the layers, by the runtime)"


@dataclass(frozen=True)
class LayerError:
    """SQNR in dB of one activation of the artifact against the float model, clipped to [-50, 150]."""

    name: str
    op_type: str
    sqnr_db: float


@dataclass(frozen=True)
class LayerChoice:
    """The precision that was chosen for one layer of a statically quantized form.

    `error` is what quantizing it adds to the outputs (KL divergence of the class probabilities, or noise over signal
    power), `saved_us` and `saved_mj` what it saves per inference; None: not looked at. Millijoules are estimates, with
    their plausible range, `grade` and `boundary` beside them. `reason` says why a layer stays in float.
    """

    name: str
    op_type: str
    precision: str
    reason: str
    error: float | None
    saved_us: float | None
    saved_mj: float | None
    saved_mj_low: float | None = None
    saved_mj_high: float | None = None
    grade: str | None = None
    boundary: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    name: str
    sha256: str
    params: int
    macs: int | None
    opset: int
    nodes: int


@dataclass(frozen=True)
class CalibrationInfo:
    source: str
    digest: str
    n: int
    synthetic: bool


@dataclass(frozen=True)
class Budget:
    """What was asked (`--max-drop`, `--precision`, ...) and whether the artifact meets it; None: not known."""

    asked: dict[str, Any]
    met: bool | None


@dataclass(frozen=True)
class BreakEven:
    """After how many inferences the energy that they save equals that of the compile; None: no saving shown."""

    inferences: Interval | None
    reason: str


@dataclass(frozen=True)
class ModelTuning:
    """How the kernels of one model were tuned, in this run.

    `complete` of its `kernels` have no schedule left to try, `faster` have one that is faster than without tuning, from
    this run or an earlier one. `default_us` and `tuned_us` are the sums of the kernels' times, measured alone.
    """

    name: str
    seconds: float
    kernels: int
    trials: int
    complete: int
    faster: int
    default_us: float
    tuned_us: float


@dataclass(frozen=True)
class CompileInfo:
    """What the compile took. `energy_j` is in joules, gross, of this run alone: what a cache brought is not in it.

    `tuning` has the models whose kernels were tuned, in the order that they were built.
    """

    seconds: float
    peak_rss_mb: float | None
    phases: dict[str, float] = field(default_factory=dict)
    energy_j: Energy | None = None
    break_even: BreakEven | None = None
    tuning: tuple[ModelTuning, ...] = ()


@dataclass(frozen=True)
class BuildCheck:
    """One check of an artifact. `passed` None: it could not be made; `note` says why, or what it proves."""

    name: str
    passed: bool | None
    note: str


@dataclass(frozen=True)
class BuildInfo:
    """Where an artifact was built to the end for its device.

    Attributes:
        status: Such as ``not built on the device`` or ``built on ssh://user@orin``.
        built: Whether there is an engine that has run on the device.
        power_mode: The mode that the figures are for, by its name on the device; None: the one it is in.
        checks: What was checked.
        steps: What is left to do there: commands.
        facts: Versions and other facts about device and builder.
    """

    status: str
    built: bool
    power_mode: str | None = None
    checks: tuple[BuildCheck, ...] = ()
    steps: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything `report.json` holds."""

    greencc: str
    created: str
    verdict: str
    precision: str
    model: ModelInfo
    target: str
    device: dict[str, Any]
    conditions: dict[str, Any]
    versions: dict[str, str]
    baseline: Figures
    artifact: Figures
    ratio: Ratio
    accuracy: Accuracy
    budget: Budget
    candidates: tuple[Candidate, ...]
    passes: tuple[PassRecord, ...]
    calibration: CalibrationInfo | None
    layers: tuple[LayerTime, ...]
    layer_errors: tuple[LayerError, ...]
    warnings: tuple[str, ...]
    compile: CompileInfo
    layer_choices: tuple[LayerChoice, ...] = ()
    layer_energy: LayerEnergies | None = None
    carbon: Carbon | None = None
    plan: PlanInfo | None = None
    backends: tuple[BackendTrial, ...] = ()
    build: BuildInfo | None = None
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers."""
        return asdict(self)
