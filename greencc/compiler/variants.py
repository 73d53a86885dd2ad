"""Ways to quantize statically, from cheap to thorough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from greencc.compiler.options import Effort
from greencc.core.capabilities import Capabilities
from greencc.core.passes import Pass
from greencc.passes.quantize_int8 import QuantizeInt8, RangeMethod


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        name: Of the form.
        reason: What it does, in words.
        quantize: The quantization itself.
        prepare: Passes before it that keep the function.
        enough: Nothing more is tried when this one loses next to nothing.
    """

    name: str
    reason: str
    quantize: QuantizeInt8
    prepare: tuple[Pass, ...] = ()
    enough: bool = True

    @property
    def plain(self) -> QuantizeInt8:
        """The quantization without its repairs, which a table of errors by layer has no use for."""
        return self.quantize


def variants(effort: Effort, capabilities: Capabilities) -> Iterator[Variant]:
    """What is tried, in this order."""
    del effort, capabilities
    yield Variant("int8-minmax", "min-max ranges", QuantizeInt8())
    yield Variant("int8-percentile", "percentile ranges", QuantizeInt8(method=RangeMethod.PERCENTILE))
