"""Job: greencc's own passes driven blindly, the way Olive's auto-optimiser searches: TPE over whole-model parameters.

Optuna's TPE (Bergstra et al., NIPS 2011) proposes the parameters of every pass and which layers are left out, each
proposal is built, judged on the planning split and timed, and the fastest that keeps the limit wins. It knows nothing
of layers: no error table, no cost table. It has the time that `greencc compile` took, and at most so many trials.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.job_tools import Clock, Result

if TYPE_CHECKING:
    import optuna

    from benchmarks.planner_bench import Layer, Step, Workbench

NONE = "none"
EXCESS = "loss beyond the limit"
MOST_LAYERS = 64
"""That may be left out one by one; a search of 200 trials learns nothing about more."""
_TABLES = {"name": "quantize-weights", "ops": ["Gather"], "min_elements": 1024}


class Proposes(Protocol):
    """What a search space asks of a trial; Optuna's has it."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, /) -> float: ...


def propose(trial: Proposes, layers: Sequence[Layer], *, products: bool, tables: bool) -> list[Step]:
    """Passes with their parameters, in the order in which `greencc compile` runs such passes.

    Args:
        trial: Proposes values.
        layers: Those that may be left out of a quantization.
        products: Whether there are Gemm and MatMul nodes, which dynamic INT8 and 4-bit blocks are for.
        tables: Whether there are lookup tables.
    """
    steps: list[Step] = []
    if trial.suggest_categorical("drop-blocks", (False, True)):
        steps.append({"name": "drop-blocks", "ratio": round(trial.suggest_float("drop ratio", 0.05, 0.5), 3)})
    if trial.suggest_categorical("prune", (False, True)):
        ratio = round(trial.suggest_float("prune ratio", 0.05, 0.6), 3)
        steps.append({"name": "prune", "ratio": ratio, "measured": False})
    method = trial.suggest_categorical("decompose", (NONE, "auto", "svd", "tucker"))
    if method != NONE:
        ratio = round(trial.suggest_float("decompose ratio", 0.05, 0.6), 3)
        steps.append(
            {"name": "decompose", "method": method, "rank": "ratio", "ratio": ratio, "measured": False}
        )
    kinds = (NONE, "int8", "weights", "bfloat16", *(("dynamic",) if products else ()))
    kind = trial.suggest_categorical("arithmetic", kinds)
    if kind == "int8":
        step = {
            "name": "quantize-int8",
            "method": trial.suggest_categorical("ranges", ("minmax", "percentile", "entropy", "mse")),
            "rounding": trial.suggest_categorical("rounding", ("nearest", "greedy")),
            "bias": trial.suggest_categorical("bias", ("none", "analytic", "empirical")),
        }
        steps.append({**step, **_left_out(trial, layers)})
        if tables and trial.suggest_categorical("tables", (False, True)):
            steps.append(_TABLES)
    elif kind == "dynamic":
        steps.append({"name": "quantize-dynamic", **_left_out(trial, layers)})
    elif kind == "weights":
        bits = trial.suggest_categorical("bits", (8, 4))
        block = trial.suggest_categorical("block", (0, 32)) if products else 0
        method = trial.suggest_categorical("weight method", ("nearest", "gptq"))
        if bits == 4:
            # 4-bit types exist since opset 21.
            steps.append({"name": "upgrade-opset", "target": 21, "below": 21})
        step = {"name": "quantize-weights", "bits": bits, "block_size": block, "method": method}
        ops = ["Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"]
        steps.append({**step, "ops": ops, "min_elements": 1024, **_left_out(trial, layers)})
    elif kind == "bfloat16":
        steps.append({"name": "convert-float16", "element": "bfloat16", **_left_out(trial, layers)})
    return steps


def _left_out(trial: Proposes, layers: Sequence[Layer]) -> Step:
    """Layers left in float; whether there are any is a parameter of its own, or half of them would always be."""
    if not trial.suggest_categorical("leave layers out", (False, True)):
        return {}
    names = [
        layer.name for layer in layers if trial.suggest_categorical(f"float {layer.name}", (False, True))
    ]
    return {"exclude": names} if names else {}


STARTS: tuple[dict[str, Any], ...] = (
    {"drop-blocks": False, "prune": False, "decompose": NONE, "arithmetic": NONE},
    {
        "drop-blocks": False,
        "prune": False,
        "decompose": NONE,
        "arithmetic": "int8",
        "ranges": "minmax",
        "rounding": "nearest",
        "bias": "none",
        "leave layers out": False,
    },
)
"""What a user would try first: nothing but the clean-up, and plain INT8."""


def search_plan(
    model: str,
    calibration: str,
    samples: int,
    planning: str,
    metric: str | None,
    folder: str,
    max_drop: float,
    trials: int,
    seconds: float,
    seed: int = 0,
) -> Result:
    """Search for the fastest variant whose loss on the planning split is at most `max_drop`.

    Args:
        seconds: After which no trial is begun, and what one still finds does not count; from the start of the job.

    Returns:
        The artifact (the original where no trial keeps the limit), and `notes` on the trials.
    """
    import optuna
    from optuna.samplers import TPESampler

    from benchmarks.planner_bench import Workbench

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clock, started = Clock(), time.perf_counter()
    bench = Workbench(Path(model), Path(calibration), samples, Path(planning), metric, Path(folder).resolve())
    try:
        search = _Search(bench, max_drop, started + seconds)
        study = optuna.create_study(sampler=TPESampler(seed=seed))
        for values in STARTS:
            study.enqueue_trial(values)
        left = max(started + seconds - time.perf_counter(), 0.0)
        study.optimize(search.objective, n_trials=trials, timeout=left)
    finally:
        bench.close()
    built = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    durations = {
        trial.number: trial.duration.total_seconds() for trial in study.trials if trial.duration is not None
    }
    slowest = max(durations, key=lambda number: durations[number], default=None)
    notes = {
        "trials": len(study.trials),
        "built": len(built),
        "late": search.late,
        "kept_limit": sum(trial.constraints[EXCESS] <= 0.0 for trial in built),
        "seconds": time.perf_counter() - started,
        "slowest_seconds": None if slowest is None else durations[slowest],
        "slowest": None if slowest is None else study.trials[slowest].params,
        "best_trial": search.best_trial,
        "steps": search.best_steps,
    }
    return clock.result(search.best or Path(model), notes=notes)


class _Search:
    """The objective, and the best that it has seen."""

    def __init__(self, bench: Workbench, max_drop: float, deadline: float) -> None:
        self.bench, self.max_drop, self.deadline = bench, max_drop, deadline
        self.layers = bench.layers()[:MOST_LAYERS]
        self.products, self.tables = bench.has("Gemm", "MatMul"), bench.has("Gather")
        self.seen: dict[str, tuple[float, float]] = {}
        self.late = 0
        self.best: Path | None = None
        self.best_value, self.best_trial = float("inf"), -1
        self.best_steps: list[Step] = []

    def objective(self, trial: optuna.trial.Trial) -> float:
        """The latency relative to the original's; TPE prefers trials whose constraint is not above 0."""
        import optuna

        from benchmarks.planner_bench import REFUSALS

        steps = propose(trial, self.layers, products=self.products, tables=self.tables)
        key = repr(steps)
        if key not in self.seen:
            try:
                self.seen[key] = self._judge(steps, trial.number)
            except REFUSALS as refusal:
                # What does not get as far as being judged keeps no limit.
                trial.set_constraint(EXCESS, 1.0)
                raise optuna.TrialPruned(str(refusal)) from refusal
        value, loss = self.seen[key]
        trial.set_constraint(EXCESS, loss - self.max_drop)
        return value

    def _judge(self, steps: list[Step], number: int) -> tuple[float, float]:
        """Latency relative to the original's, and loss; the artifact of the best is kept."""
        from benchmarks.planner_bench import passes_of

        artifact = self.bench.build(passes_of(steps))
        loss = self.bench.loss(artifact)
        value = self.bench.slowness(artifact)
        # A trial cannot be stopped in the middle, but what it found after the end does not count.
        late = time.perf_counter() > self.deadline
        self.late += late
        if not late and loss <= self.max_drop and value < self.best_value:
            if self.best is not None:
                self.bench.discard(self.best)
            self.best, self.best_value, self.best_trial, self.best_steps = artifact, value, number, steps
        else:
            self.bench.discard(artifact)
        return value, loss
