"""Engines on ONNX Runtime's CPU execution provider.

Session options, and why:

* Threads are set explicitly, so ONNX Runtime sets no thread affinity: two engines measured in turns would
  otherwise be pinned onto each other's cores.
* Idle threads spin *within* a run, as by default, for that is what a deployment does; they stop spinning when the
  run ends (`session.force_spinning_stop`). Spinning on after a run burns energy between requests and would steal the
  core from the other engine of an A B B A comparison.
* `use_deterministic_compute` asks for kernels that give the same bits each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from greencc.core.checked_engine import CheckedEngine
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import GreenccError, InputError
from greencc.targets._ort_errors import translate

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDERS = ["CPUExecutionProvider"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "string": np.dtype(object),
}


class Optimization(Enum):
    """How far ONNX Runtime rewrites the graph when it loads it."""

    NONE = "none"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


@dataclass(frozen=True)
class SessionConfig:
    """What differs between the sessions greencc opens.

    Attributes:
        threads: Within an operator.
        optimization: Of the graph, when it is loaded.
        profile_prefix: Where to write a profile; None does not.
        prepack: Keep a rearranged copy of each weight: faster, at twice the memory.
        arena: Keep freed memory for the next run: faster, at the price of the peak staying allocated.
        spin: Threads that have nothing to do wait actively within a run: faster, unless other processes want the
            processors.
        pattern: Lay out what a run needs in one block once its shapes have been seen; the arena then holds that block
            beside what the first run of these shapes took.
        qdq_fusions: Q/DQ pairs become integer kernels. Without it what is between them is computed in float, as
            TensorRT's definition of Q/DQ has it: rounded half to even, accumulated without saturation.
    """

    threads: int
    optimization: Optimization
    profile_prefix: Path | None = None
    prepack: bool = True
    arena: bool = True
    pattern: bool = True
    spin: bool = True
    qdq_fusions: bool = True


def session_options(config: SessionConfig) -> ort.SessionOptions:
    """ONNX Runtime's options for a configuration (see the module's docstring for the reasons)."""
    import onnxruntime as ort

    levels = {
        Optimization.NONE: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        Optimization.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        Optimization.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        Optimization.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    options = ort.SessionOptions()
    options.graph_optimization_level = levels[config.optimization]
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    if config.optimization is Optimization.NONE:
        # Runs a node only when its result is wanted. The default order dequantizes all weights first, which holds a
        # whole weight-only INT8 model in memory as floats.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = config.arena
    options.enable_mem_pattern = config.pattern
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not config.spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not config.qdq_fusions:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not config.prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Problems reach the user as exceptions; a log line beside them would only break `--json` and progress bars.
    options.log_severity_level = 4
    if config.profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(config.profile_prefix)
    return options


class OrtEngine(CheckedEngine):
    """A model loaded in ONNX Runtime; implements `greencc.core.engine.Engine`.

    Args:
        source: Path of a model file, or the serialised model.
        config: Threads, optimisation and profiling.
        name: How messages call the model.
        options: Session options prepared by `session_options`, with what was added to them.
        keep: Objects the session points into (weights shared with it).
        inner: Outputs that are inner values of the model, exempt from the check of the batch axis.

    Raises:
        InputError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self,
        source: Path | bytes,
        config: SessionConfig,
        *,
        name: str,
        options: ort.SessionOptions | None = None,
        keep: Sequence[object] = (),
        inner: frozenset[str] = frozenset(),
    ) -> None:
        import onnxruntime as ort

        self._keep = tuple(keep)
        what = str(source) if isinstance(source, Path) else source
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                what, options or session_options(config), providers=PROVIDERS
            )
        except Exception as error:
            raise _translated(error, f"loading {name}") from error
        inputs = [_spec(value, "input") for value in self._session.get_inputs()]
        outputs = [_spec(value, "output") for value in self._session.get_outputs()]
        super().__init__(name, inputs, outputs, inner)

    def close(self) -> None:
        """Free the session and what it points into."""
        self._session = None
        self._keep = ()

    def end_profiling(self) -> Path:
        """Stop profiling and return the file the runtime wrote."""
        return Path(self._open().end_profiling())

    def _open(self) -> ort.InferenceSession:
        if self._session is None:
            raise RuntimeError(f"the engine of {self._name} was closed")
        return self._session

    def _run(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        session = self._open()
        try:
            values = session.run(outputs, dict(feeds))
        except Exception as error:
            raise _translated(error, f"running {self._name}") from error
        return dict(zip(outputs, values, strict=True))


def _translated(error: Exception, doing: str) -> GreenccError:
    """ONNX Runtime's exceptions share no base class; they are told by their module."""
    if isinstance(error, GreenccError):
        return error
    if type(error).__module__.startswith("onnxruntime") or isinstance(
        error, RuntimeError | ValueError | TypeError
    ):
        return translate(error, doing)
    raise error


def _spec(value: Any, role: str) -> TensorSpec:
    kind = str(value.type)
    if not kind.startswith("tensor(") or kind[7:-1] not in _DTYPES:
        raise InputError(
            f"{role} {value.name!r} has type {kind}",
            hint="greencc handles models whose inputs and outputs are dense tensors of the usual types",
        )
    # The runtime reports [] for a scalar and for an unknown rank alike; it checks such inputs itself.
    shape = tuple(dim if isinstance(dim, int | str) else None for dim in value.shape) or None
    return TensorSpec(value.name, _DTYPES[kind[7:-1]], shape)
