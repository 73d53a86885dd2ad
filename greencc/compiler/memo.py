"""Remember the baseline's outputs: several forms are compared with it on the same samples."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.core.data import Array, Feeds, TensorSpec, feeds_key
from greencc.core.engine import Engine

LIMIT_BYTES = 256 << 20


class MemoEngine:
    """An engine that answers repeated inputs from memory, up to `limit` bytes of outputs.

    Only for comparing outputs: timing it would be meaningless, so measurements use the engine inside.
    """

    def __init__(self, engine: Engine, limit: int = LIMIT_BYTES) -> None:
        self.engine = engine
        self._free = limit
        self._known: dict[bytes, dict[str, Array]] = {}

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self.engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.engine.outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run, or recall what these very inputs gave before."""
        key = feeds_key(feeds, outputs)
        found = self._known.get(key)
        if found is None:
            found = self.engine.run(feeds, outputs)
            size = sum(array.nbytes for array in found.values())
            if size <= self._free:
                self._free -= size
                self._known[key] = found
        return dict(found)

    def close(self) -> None:
        self._known.clear()
        self.engine.close()
