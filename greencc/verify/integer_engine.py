"""The integer reference as an engine, so that an artifact can be judged under another machine's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.describe import input_specs, output_specs
from greencc.verify.integer_reference import Sums, run_integer


class IntegerEngine:
    """Runs a Q/DQ model by `run_integer`; implements `greencc.core.engine.Engine`."""

    def __init__(self, model: ir.Model, sums: Sums = Sums.EXACT) -> None:
        self._model = model
        self._sums = sums

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return input_specs(self._model)

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return output_specs(self._model)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Raises:
            InputError: An input is missing or unknown, or an operator has no reference.
        """
        return run_integer(self._model, feeds, outputs, sums=self._sums)

    def close(self) -> None:
        return
