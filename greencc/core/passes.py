"""The pass interface: frozen dataclasses whose fields are their options.

A pass edits the clone it is given and returns an `Outcome`: how many rewrites it applied and what it found
or refused. Every rewrite is announced to `Context.rewrites` first, which is what lets the pipeline bisect a
pass that changes the outputs down to one rewrite and one node (the idea of LLVM's ``-opt-bisect-limit``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from greencc.core.cache import Cache
from greencc.core.capabilities import Arithmetic, Capabilities
from greencc.core.data import DataSource, Feeds
from greencc.core.engine import EngineBuilder, Timer
from greencc.core.gradients import Differentiate
from greencc.core.progress import Progress, silent
from greencc.core.shards import ShardObserver

if TYPE_CHECKING:
    import onnx_ir as ir

FindingKind = Literal["refused", "rolled-back", "left-in-float", "note", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something a pass saw or refused, for the report."""

    kind: FindingKind
    message: str
    node: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class Rewrite:
    """One applied change: the rule and the name of the node it started from."""

    rule: str
    node: str


@dataclass
class RewriteLog:
    """Counts rewrites and, when bisecting, stops allowing them after `limit`."""

    limit: int | None = None
    applied: list[Rewrite] = field(default_factory=list)

    def allow(self, rule: str, node: str) -> bool:
        """Announce a rewrite; the caller must not apply it when this returns False."""
        if self.limit is not None and len(self.applied) >= self.limit:
            return False
        self.applied.append(Rewrite(rule, node))
        return True


@dataclass
class Outcome:
    """What a pass did.

    Attributes:
        changed: Counts applied rewrites.
        findings: What it saw or refused.
        chosen: Options that make the pass do the same again without deciding anew.
    """

    changed: int = 0
    findings: list[Finding] = field(default_factory=list)
    chosen: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What passes may use besides the model.

    Attributes:
        capabilities: Facts about the target.
        build: Makes a reference engine of a model, to see activations with.
        samples: A few feeds, each one batch, for passes that probe the model.
        calibration: The calibration split, or None when there is none.
        rewrites: The log every rewrite is announced to.
        progress: Where long passes report how far they are.
        observe: Makes an engine that sees activations over many samples: the runtime's own fusions may be on
            as long as the outputs asked for are right. None: `build`.
        observe_shards: Runs shards of the calibration data in other processes. None: all runs are in this one.
        cache: Keeps what is dear to compute between passes and runs.
        time: Measures models on the target, for passes that keep a change only where it pays. None: they cannot tell,
            and say so.
        time_inside: Measures parts of a model by what they cost inside it: `time`, without what conversions at
            their ends cost that the rest of the model spares them. None: `time`.
        arithmetic: What the models that are timed compute in: that of the passes to come (`core.rehearsal`). They may
            yet leave all of a model in float: `core.rehearsal.settled` tells.
        rehearse: What a model, fed so, computes in after the passes to come. None: `arithmetic`.
        spared: Names of nodes that those passes leave as they are.
        gradients: Differentiates models. None: no one here can.
    """

    capabilities: Capabilities
    build: EngineBuilder
    samples: Sequence[Feeds]
    calibration: DataSource | None = None
    rewrites: RewriteLog = field(default_factory=RewriteLog)
    progress: Progress = silent
    observe: EngineBuilder | None = None
    observe_shards: ShardObserver | None = None
    cache: Cache = field(default_factory=Cache)
    time: Timer | None = None
    time_inside: Timer | None = None
    arithmetic: Arithmetic = Arithmetic.FLOAT
    rehearse: Callable[[ir.Model, Sequence[Feeds]], Arithmetic] | None = None
    spared: frozenset[str] = frozenset()
    gradients: Differentiate | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A step of a recipe. Subclass fields must have defaults and be str, bool, int, float, Enum or a tuple of str.

    Attributes:
        name: In recipes and on the command line.
        summary: One line for `greencc passes`.
        lossy: Whether it changes the function: it is judged by its output error instead of held to equality.
        primary: The option that a bare value sets in a list of passes (`core.pass_list`).
        arithmetic: What a model computes in after it; None: what it computed in before.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    lossy: ClassVar[bool] = False
    primary: ClassVar[str | None] = None
    arithmetic: ClassVar[Arithmetic | None] = None

    @property
    def spares(self) -> frozenset[str]:
        """Names of nodes that the pass was told to leave as they are."""
        return frozenset()

    @abstractmethod
    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Edit `model` in place.

        Raises:
            GreenccError: The pass cannot run at all (e.g. it needs calibration data and there is none).
        """

    def rehearsal(self, capabilities: Capabilities) -> Pass | None:
        """The quickest pass after which a model takes as long as after this one, whatever becomes of its outputs.

        Passes before this one measure with it what their changes bring (`core.rehearsal`). None: the pass is no reason
        to measure differently.
        """
        return None
