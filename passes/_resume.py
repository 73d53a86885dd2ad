"""Run a model again and again over the same samples, each time from the place before which nothing has changed.

Layers are repaired one after another, or disturbed one after another: every pass over the data needs the model up to
some layers, and all that comes before the first one that may still change is computed again. Here the values that
cross a place in the order of the graph are kept per sample, and the next run begins there. What is kept stays
within a limit: places that more values cross are no places to begin at, and a sample that nothing is known of runs from
the start.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds, TensorSpec, feeds_key
from greencc.core.describe import input_specs, value_spec
from greencc.core.engine import Engine, EngineBuilder
from greencc.core.graph import constant_tensor, static_shape, subgraphs_of
from greencc.passes._capture import graph_values

Held = dict[str, Array]


class Resume:
    """Engines of a model and of its clones with other weights; what one of them may leave for the next.

    Args:
        model: Nodes and names do not change; weights may, at nodes from the place on that `engine` is told of.
        build: Builds its engines.
        sizes: Bytes of the values over all samples, from `value_bytes`; a value that is not there is not kept.
        limit: Bytes kept at most.
    """

    def __init__(self, model: ir.Model, build: EngineBuilder, sizes: Mapping[str, float], limit: int) -> None:
        self.limit = limit
        self._sizes = sizes
        self._build = build
        self._inputs = input_specs(model)
        nodes = list(model.graph)
        self._names = [str(node.name) for node in nodes]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._made = {str(value.name): place for place, node in enumerate(nodes) for value in node.outputs}
        # Subgraphs read values of the main graph in ways of their own: such models always run from the start.
        plain = len(self._places) == len(nodes) and not any(map(subgraphs_of, nodes))
        self._last_use = _last_uses(nodes) if plain else {}
        self._types = {str(value.name): value.dtype for node in nodes for value in node.outputs}
        self._place = 0
        self._known: dict[bytes, Held] = {}

    @property
    def place(self) -> int:
        """Where runs begin: the number of nodes that are not run again."""
        return self._place

    def first_node(self, names: Iterable[str]) -> int:
        """The place of the first of these nodes; 0 for none."""
        return min((self._places[name] for name in names if name in self._places), default=0)

    def first_made(self, names: Iterable[str]) -> int:
        """The place of the first of the nodes that make these values; 0 for none."""
        return min((self._made[name] for name in names if name in self._made), default=0)

    def reachable(self, upto: int) -> int:
        """The furthest place up to `upto` that few enough values cross; `place` where there is none beyond it.

        Nodes from `upto` on may still change.
        """
        if not self._last_use:
            return self._place
        crossing = np.zeros(len(self._places) + 2)
        for name, last in self._last_use.items():
            # A value of unknown type cannot be fed.
            size = np.inf if self._types[name] is None else self._sizes.get(name, np.inf)
            crossing[self._made[name] + 1 : last + 1] += size
        fitting = np.flatnonzero(crossing[: upto + 1] <= self.limit)
        return max(self._place, int(fitting[-1]) if fitting.size else 0)

    def engine(self, model: ir.Model, outputs: Sequence[str], keep_at: int | None = None) -> Engine:
        """An engine for one pass over the samples; one at a time where something is kept.

        Args:
            model: The model or such a clone; where it differs from earlier ones is at `place` or after it.
            outputs: Values of its main graph.
            keep_at: The place, from `reachable`, where the engines after this one may begin.
        """
        keep = None if keep_at is None or keep_at <= self._place else keep_at
        return _Resumed(self, model, list(outputs), keep)

    def _crossing(self, place: int) -> list[str]:
        return [name for name, last in self._last_use.items() if self._made[name] < place <= last]

    def _after(self, model: ir.Model, outputs: Sequence[str]) -> Engine:
        """An engine that is fed what crosses the place."""
        return self._build(
            _from_place(model, set(self._names[: self._place]), self._crossing(self._place), outputs),
            outputs=outputs,
        )

    def _holds(self, outputs: Iterable[str]) -> bool:
        """Whether these values are made after the place, or cross it."""
        crossing = set(self._crossing(self._place))
        return all(name in crossing or self._made.get(name, -1) >= self._place for name in outputs)


class _Resumed:
    """Implements `Engine`."""

    def __init__(self, owner: Resume, model: ir.Model, outputs: list[str], keep: int | None) -> None:
        self._owner, self._model, self._wanted, self._keep = owner, model, outputs, keep
        self._kept = [] if keep is None else owner._crossing(keep)
        self._resumes = owner._place > 0 and owner._holds(outputs)
        held = owner._crossing(owner._place) if self._resumes else []
        self._rest = [name for name in dict.fromkeys([*outputs, *self._kept]) if name not in held]
        self._whole: Engine | None = None
        self._tail: Engine | None = None
        self._next: dict[bytes, Held] = {}
        self._free = owner.limit

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._owner._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        # As the model tells them: an engine for the whole is built only where a run needs it.
        values = {str(value.name): value for value in graph_values(self._model.graph)}
        return [value_spec(values[name]) for name in self._wanted]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once, from the place where that is possible."""
        known = self._owner._known
        held: Held | None = None
        key = b""
        if self._resumes or self._keep is not None:
            key = feeds_key(feeds)
        if self._resumes:
            # What is moved on is of no use any more.
            held = known.get(key) if self._keep is None else known.pop(key, None)
        if held is None:
            found = self._from_start().run(feeds)
        elif self._rest:
            if self._tail is None:
                self._tail = self._owner._after(self._model, self._rest)
            ready = {**feeds, **held}
            found = held | self._tail.run({spec.name: ready[spec.name] for spec in self._tail.inputs})
        else:
            found = held
        if self._keep is not None and key not in self._next:
            left = {name: found[name] for name in self._kept}
            size = sum(values.nbytes for values in left.values())
            if size <= self._free:
                self._free -= size
                self._next[key] = left
        return {name: found[name] for name in (self._wanted if outputs is None else outputs)}

    def close(self) -> None:
        """Free the engines; what was kept is there for the next ones."""
        for engine in (self._whole, self._tail):
            if engine is not None:
                engine.close()
        self._whole = self._tail = None
        if self._keep is not None and self._next:
            self._owner._place, self._owner._known = self._keep, self._next
            self._keep = None

    def _from_start(self) -> Engine:
        if self._whole is None:
            names = list(dict.fromkeys([*self._wanted, *self._kept]))
            self._whole = self._owner._build(self._model, outputs=names)
        return self._whole


def value_bytes(model: ir.Model) -> dict[str, float]:
    """Bytes of each value of the main graph whose shape is known; of one inference where `bind_dims` made the model."""
    found = {}
    for node in model.graph:
        for value in node.outputs:
            shape = static_shape(value)
            if shape is not None and value.dtype is not None:
                found[str(value.name)] = math.prod(shape) * float(value.dtype.itemsize)
    return found


def _last_uses(nodes: Sequence[ir.Node]) -> dict[str, int]:
    """Up to which node each value that is computed from inputs is needed; graph outputs to the end."""
    last: dict[str, int] = {}
    places = {node: place for place, node in enumerate(nodes)}
    for node in nodes:
        for value in node.outputs:
            if constant_tensor(value) is not None:
                continue
            uses = [places[use.node] for use in value.uses() if use.node in places]
            if value.is_graph_output():
                uses.append(len(nodes))
            if uses:
                last[str(value.name)] = max(uses)
    return last


def _from_place(
    model: ir.Model, before: Collection[str], crossing: Collection[str], outputs: Sequence[str]
) -> ir.Model:
    """A clone without the nodes of these names, whose inputs are the values that cross the place."""
    clone = model.clone()
    graph = clone.graph
    nodes = list(graph)
    values = {str(value.name): value for node in nodes for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in outputs)
    for name in crossing:
        value = values[name]
        # Recorded shapes are those of another batch; the runtime sees those it is fed.
        fed = ir.Value(name=name, type=value.type)
        value.name = None
        value.replace_all_uses_with(fed)
        graph.inputs.append(fed)
    # Weights that are constants of their own stay; nodes that made them may be gone since they were replaced.
    gone = [
        node
        for node in nodes
        if node.name in before and any(constant_tensor(value) is None for value in node.outputs)
    ]
    for node in reversed(gone):
        graph.remove(node, safe=True)
    for value in list(graph.inputs):
        if not (value.uses() or value.is_graph_output()):
            graph.inputs.remove(value)
    return clone
