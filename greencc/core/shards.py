"""Statistics over parts of the calibration data, computed elsewhere.

Where the data are cut depends on the data and the size of a run alone, and parts are put together in their order, so
what comes out does not depend on where, or by how many, they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from greencc.core.data import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Shard:
    """Some runs that follow each other.

    Attributes:
        key: What the result depends on, but for the engine.
        runs: Reads their feeds. Shards that are read in their order cost one pass over the data.
    """

    key: str
    runs: Callable[[], Sequence[Feeds]]


class ShardObserver(Protocol):
    """Runs shards in other processes; results are kept one by one until they are forgotten."""

    @property
    def ready(self) -> bool:
        """Whether there are processes to run shards in, and they are free now."""

    def observe(
        self, model: ir.Model, ends: Sequence[str], counted: Sequence[str], shards: Sequence[Shard]
    ) -> Generator[dict[str, Array], None, None]:
        """Yield what `greencc.passes._shards.observe_shard` gives for each shard, in order.

        Args:
            model: It is left unchanged.
            ends: Outputs that are scalars.
            counted: Outputs whose elements are counted.
            shards: Likewise of one pass over the data.

        Raises:
            GreenccError: The model cannot be run on a shard, or its workers were lost again and again.
        """

    def forget(self, shards: Sequence[Shard]) -> None:
        """The results have been put together and are kept: those of single shards are of no more use."""
