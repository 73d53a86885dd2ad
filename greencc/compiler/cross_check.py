"""One artifact file under the arithmetic of other machines: what is fine here may be worse there.

A Q/DQ file says what is quantized, not how sums are made. Machines differ in that: exact 32-bit sums, pairs of products
that saturate in 16 bits (x86 without VNNI), or floats between the pairs. Each is computed here, exactly, by a
reference, on the same held-out samples, and compared with the original model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import onnx_ir as ir

from greencc.bundle import Bundle
from greencc.calibration import take
from greencc.compiler.contender import observed_loss
from greencc.compiler.counts import model_counts
from greencc.compiler.data import opened
from greencc.compiler.memo import MemoEngine
from greencc.compiler.session import Session
from greencc.compiler.sources import unseen
from greencc.core.data import DataSource
from greencc.core.describe import input_specs
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError
from greencc.core.graph import all_nodes, constant_tensor, is_op
from greencc.core.model import load_model
from greencc.core.report import Accuracy
from greencc.core.report_matrix import ArithmeticResult, CrossRow
from greencc.targets import CpuTarget
from greencc.verify.compare import compare
from greencc.verify.integer_engine import IntegerEngine
from greencc.verify.integer_reference import Sums

# About half a minute of the reference for each arithmetic.
_MACS = 1e10
_UNKNOWN_MACS = 10**9
_FEWEST, _MOST = 16, 512


class Arithmetic(Enum):
    """How the products of a Q/DQ graph are summed."""

    OWN = "as shipped"
    EXACT = "32-bit sums"
    PAIRS = "16-bit pairs"
    FLOAT = "float between the pairs"


@dataclass(frozen=True)
class _Kind:
    machines: str
    simulated: bool
    make: Callable[[ir.Model], Engine]


_KINDS: Mapping[Arithmetic, _Kind] = {
    Arithmetic.EXACT: _Kind(
        "x86 with VNNI, ARM with dot products", True, lambda model: IntegerEngine(model, Sums.EXACT)
    ),
    Arithmetic.PAIRS: _Kind(
        "x86 without VNNI: AMD before Zen 4, Intel before Ice Lake and Cascade Lake",
        True,
        lambda model: IntegerEngine(model, Sums.PAIRS),
    ),
    Arithmetic.FLOAT: _Kind(
        "TensorRT's and other float kernels between Q/DQ pairs",
        True,
        lambda model: CpuTarget().reference(model),
    ),
}
_ADVICE: Mapping[Arithmetic, str] = {
    Arithmetic.PAIRS: "compile on it, where weights get 7 bits",
    Arithmetic.EXACT: "compile on it",
    Arithmetic.FLOAT: "compile for that run time",
}


def cross_check(session: Session, bundle: Bundle, name: str, path: Path, source: ir.Model) -> CrossRow:
    """Judge the file of a bundle under every arithmetic that can be computed here.

    Args:
        session: Its options say which data and limits; `session.target` opens the original model.
        bundle: What was compiled.
        name: The target that it was compiled for.
        path: The original model.
        source: The same, loaded.
    """
    file = f"{bundle.path.name}/{bundle.manifest.main}"
    if bundle.artifact.suffix != ".onnx":
        return _nothing(name, file, "it holds compiled code, which runs on its own kind of machine alone")
    model = load_model(bundle.artifact)
    if (reason := why_not(model)) is not None:
        return _nothing(name, file, reason)
    try:
        data = _samples(session, bundle, source)
        if data is None:
            return _nothing(name, file, "no real samples are left to compare on")
        found = list(_judged(session, bundle, model, path, data))
    except GreenccError as error:
        return _nothing(name, file, f"it could not be compared: {error.message}")
    return _row(session, name, file, found)


def why_not(model: ir.Model) -> str | None:
    """Why there is nothing to compare for a graph; None: there is."""
    if any(
        node.op_type.startswith("QLinear") or is_op(node, "MatMulInteger", "ConvInteger")
        for node in all_nodes(model)
    ):
        return "its integer operators have no reference; only Q/DQ graphs do"
    if not any(
        is_op(node, "QuantizeLinear") and constant_tensor(node.inputs[0]) is None for node in all_nodes(model)
    ):
        return "its activations are floats, which differ between machines in the last bits alone"
    return None


def _nothing(name: str, file: str, note: str) -> CrossRow:
    return CrossRow(name, file, "", 0, (), note, ())


def _samples(session: Session, bundle: Bundle, source: ir.Model) -> DataSource | None:
    """Held-out samples that the compile has not used, as many as the references can be asked to run."""
    options, inputs = session.options, input_specs(source)
    data = opened(session, options.evaluation, inputs, "evaluation") or opened(
        session, options.calibration, inputs, "calibration"
    )
    if data is None or data.synthetic:
        return None
    macs = model_counts(source)[1] or _UNKNOWN_MACS
    most = min(max(round(_MACS / max(macs, 1)), _FEWEST), _MOST)
    return take(unseen(data, bundle.seen), most, seed=options.seed)


@dataclass(frozen=True)
class _Judged:
    arithmetic: Arithmetic
    machines: str
    simulated: bool
    accuracy: Accuracy
    changed: float


def _judged(
    session: Session, bundle: Bundle, model: ir.Model, path: Path, data: DataSource
) -> Iterator[_Judged]:
    baseline = MemoEngine(CpuTarget().open(path))
    with closing(baseline):
        own = MemoEngine(bundle.engine())
        device = session.target.device().name
        yield _Judged(
            Arithmetic.OWN,
            f"{bundle.target.name} on {device}",
            session.target.estimated_on() is not None,
            _compared(session, baseline, own, data),
            0.0,
        )
        for arithmetic, kind in _KINDS.items():
            with (
                session.phase(f"checking {arithmetic.value}"),
                closing(MemoEngine(kind.make(model))) as engine,
            ):
                accuracy = _compared(session, baseline, engine, data)
                changed = _compared(session, own, engine, data)
            yield _Judged(
                arithmetic,
                kind.machines,
                kind.simulated,
                accuracy,
                0.0 if changed.agreement is None else 1.0 - changed.agreement,
            )


def _compared(session: Session, baseline: Engine, artifact: Engine, data: DataSource) -> Accuracy:
    options = session.options
    return compare(
        baseline,
        artifact,
        data,
        metric=options.metric,
        epsilon=options.max_drop,
        confidence=options.confidence,
        progress=session.progress,
    )


def _row(session: Session, name: str, file: str, found: Sequence[_Judged]) -> CrossRow:
    limit, own = session.options.max_drop, found[0]
    results = tuple(
        ArithmeticResult(
            item.arithmetic.value,
            item.machines,
            item.simulated,
            item.accuracy.artifact,
            observed_loss(item.accuracy),
            item.changed,
        )
        for item in found
    )
    warnings = tuple(
        f"the file for {name} loses {result.loss * 100:.2f} points with {result.arithmetic} ({result.machines}), and "
        f"{results[0].loss * 100:.2f} as it was shipped: for such a machine, {_ADVICE[item.arithmetic]}"
        for item, result in zip(found[1:], results[1:], strict=True)
        if result.loss - results[0].loss > limit
    )
    return CrossRow(name, file, own.accuracy.metric, own.accuracy.n, results, "", warnings)
