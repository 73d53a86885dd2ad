"""How much the outputs of a model need each residual block, from calibration data.

`output`: the change of the model's outputs when the block is removed, as Kullback-Leibler divergence of the class
probabilities, or as squared error over squared output where an output holds no class scores. One engine serves all
blocks and all combinations of them: every f(x) is multiplied by a switch, an input of the model that is 1 or 0.
`similarity`: 1 - cos(x, x + f(x)), averaged over positions ("block influence" of ShortGPT, arXiv 2403.03853,
section 3): cheap, one run for all blocks, and blind to what the rest of the model does with the difference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array, Batch, Feeds, TensorSpec
from greencc.core.engine import Engine
from greencc.core.graph import Names
from greencc.core.kl import is_scores, kl_divergence
from greencc.core.passes import Context
from greencc.passes._blocks import Shape, find_blocks
from greencc.passes._capture import BUDGET_BYTES, checked, no_samples, require_data, rows, run_split


class BlockScore(Enum):
    """What a block's removal is judged by."""

    OUTPUT = "output"
    SIMILARITY = "similarity"


@dataclass
class _Change:
    """Sums over samples: how far one output is from what it was."""

    divergence: float = 0.0
    noise: float = 0.0
    signal: float = 0.0
    count: int = 0

    def add(self, expected: Array, got: Array) -> None:
        self.count += len(expected) if expected.ndim else 1
        if is_scores(expected):
            self.divergence += _divergence(expected, got)
            return
        old, new = expected.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(old)
        self.signal += float(np.square(old[finite]).sum())
        self.noise += float(np.square(old[finite] - new[finite]).sum())

    @property
    def value(self) -> float:
        if self.signal == 0.0 and self.noise > 0.0:
            return math.inf
        noise = self.noise / self.signal if self.signal else 0.0
        found = noise + self.divergence / max(self.count, 1)
        return math.inf if math.isnan(found) else found


@dataclass
class _Switched:
    """An engine with the switches set: it looks like that of the model without them."""

    engine: Engine
    switches: Mapping[str, NDArray[np.generic]]
    off: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return [spec for spec in self.engine.inputs if spec.name not in self.switches]

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.engine.outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        settings = {
            name: np.zeros_like(one) if name in self.off else one for name, one in self.switches.items()
        }
        return self.engine.run({**feeds, **settings}, outputs)

    def close(self) -> None:
        self.engine.close()


class BlockScorer:
    """Scores blocks of a model while some of them are removed; a context manager, which closes its engine.

    Args:
        model: With inferred shapes; it is left unchanged.
        names: Of the blocks.
        shapes: See `find_blocks`.
        ctx: Gives the data and the engine.
        samples: Calibration samples used at most.
        batch: Samples run at once at most.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Collection[str],
        shapes: Mapping[str, Shape],
        ctx: Context,
        *,
        score: BlockScore,
        samples: int,
        batch: int,
    ) -> None:
        self._ctx, self._score, self._samples, self._batch = ctx, score, samples, batch
        switched = model.clone()
        unused = Names(switched)
        self._switch: dict[str, str] = {}
        self._ends: dict[str, tuple[str, str]] = {}
        ones: dict[str, NDArray[np.generic]] = {}
        sizes = dict.fromkeys(names, 0)
        for block in find_blocks(switched, shapes)[0]:
            if block.name not in sizes:
                continue
            dtype = block.branch.dtype
            assert dtype is not None
            switch = ir.Value(
                name=unused.value("greencc.switch"), type=ir.TensorType(dtype), shape=ir.Shape([])
            )
            switched.graph.inputs.append(switch)
            product = ir.node("Mul", [block.branch, switch], name=unused.node("greencc.switched"))
            product.outputs[0].name = unused.value("greencc.switched")
            switched.graph.insert_before(block.add, product)
            block.add.replace_input_with(list(block.add.inputs).index(block.branch), product.outputs[0])
            ones[str(switch.name)] = np.ones((), dtype.numpy())
            self._switch[block.name] = str(switch.name)
            self._ends[block.name] = str(block.skip.name), str(block.output.name)
            shape = shapes.get(str(block.skip.name), ())
            sizes[block.name] = 8 * math.prod(shape[1:])
        self._outputs = [str(value.name) for value in model.graph.outputs]
        wanted = self._outputs
        if score is BlockScore.SIMILARITY:
            wanted = list(dict.fromkeys(name for ends in self._ends.values() for name in ends))
            # x and x + f(x) of all blocks of a piece are held together.
            self._batch = max(1, min(batch, BUDGET_BYTES // max(1, sum(sizes.values()))))
        build = ctx.observe or ctx.build
        self._engine = _Switched(build(switched, outputs=wanted), ones)

    def __enter__(self) -> BlockScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    def scores(self, removed: Collection[str], names: Sequence[str]) -> dict[str, float]:
        """The score of each named block when those in `removed` are gone already: the smaller, the less it is needed.

        Raises:
            InputError: There is no calibration data, or a sample holds NaN or infinity.
        """
        if self._score is BlockScore.SIMILARITY:
            return self._influence(removed, names)
        changes: dict[str, dict[str, _Change]] = {name: {} for name in names}
        for piece in self._pieces():
            expected = self._run(piece, ())
            for name in names:
                for old, new in zip(expected, self._run(piece, {*removed, name}), strict=True):
                    for output, array in old.items():
                        if array.dtype.kind in "fV":
                            changes[name].setdefault(output, _Change()).add(array, new[output])
        return {
            name: max((change.value for change in found.values()), default=0.0)
            for name, found in changes.items()
        }

    def _influence(self, removed: Collection[str], names: Sequence[str]) -> dict[str, float]:
        sums = dict.fromkeys(names, 0.0)
        counts = dict.fromkeys(names, 0)
        wanted = list(dict.fromkeys(value for name in names for value in self._ends[name]))
        for piece in self._pieces():
            for results in self._run(piece, removed, wanted):
                for name in names:
                    cosine = _cosine(*(results[value].astype(np.float64) for value in self._ends[name]))
                    sums[name] += float((1.0 - cosine).sum())
                    counts[name] += cosine.size
        found = {name: sums[name] / max(counts[name], 1) for name in names}
        return {name: math.inf if math.isnan(value) else value for name, value in found.items()}

    def _pieces(self) -> Iterator[Batch]:
        source = require_data(self._ctx)
        total = min(self._samples, source.count)
        left = total
        items = self._ctx.progress(
            checked(source, self._batch), label="Scoring blocks", total=math.ceil(total / self._batch)
        )
        for item in items:
            piece = rows(item, 0, left)
            yield piece
            left -= piece.count
            if left <= 0:
                break
        if left == total:
            raise no_samples(source)

    def _run(
        self, piece: Batch, off: Collection[str], outputs: Sequence[str] | None = None
    ) -> list[dict[str, Array]]:
        self._engine.off = {self._switch[name] for name in off}
        return list(run_split(self._engine, piece, piece.count, outputs or self._outputs))


def _cosine(before: Array, after: Array) -> NDArray[np.float64]:
    """Of the channels at each position; 1 where both are zero."""
    axis = 1 if before.ndim > 3 else -1
    norms = np.linalg.norm(before, axis=axis) * np.linalg.norm(after, axis=axis)
    products = (before * after).sum(axis=axis)
    same = (before == after).all(axis=axis)
    found: NDArray[np.float64] = np.where(same, 1.0, products / np.where(norms > 0, norms, 1.0))
    return found


def _divergence(expected: Array, got: Array) -> float:
    """Sum over samples."""
    found = kl_divergence(expected, got)
    return math.inf if found is None else float(found.sum())
