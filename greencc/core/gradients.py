"""Gradients of a model's outputs, for passes that may not know what computes them.

A pass asks for the derivative of any weighted sum of the outputs (a vector-Jacobian product) with respect to inputs of
the graph. Losses are then the pass's own: it gives their derivatives at the outputs as the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from greencc.core.data import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir


class Tape(Protocol):
    """One run, ready to be differentiated any number of times."""

    @property
    def outputs(self) -> Mapping[str, Array]: ...

    def pull(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient of ``sum(weights * outputs)``, by the name of the input.

        Args:
            weights: By output name, each of the output's shape; outputs that are left out count 0.
        """


class Differentiable(Protocol):
    """A model that can be differentiated."""

    def run(self, feeds: Feeds) -> Tape:
        """Run forward.

        Raises:
            InputError: A node cannot compute what it is given.
        """


Differentiate = Callable[["ir.Model", Sequence[str]], Differentiable]
"""Takes a model and the float inputs to differentiate by. It raises `UnavailableError` where nothing here computes
gradients and `InputError` where the model has an operator without one."""
