"""An evaluator of the user's: ``module:function`` that judges a network by what it achieves, an episode return say.

The function gets an `Actor` and returns one number, the higher the better. It is called with the original model, the
bundle as it came, and the recovered one. It should seed its own randomness, so that all three meet the same episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.user_code import load_function, user_code

_WHAT = "evaluator"


@dataclass(frozen=True)
class Actor:
    """An engine that is called like a function: inputs in the model's order, a batch each; the first output back.

    `run`, `inputs` and `outputs` are the engine's own.
    """

    engine: Engine

    def __call__(self, *inputs: Array) -> Array:
        """Run once; values are cast to the types of the model's inputs.

        Raises:
            InputError: There are too few or too many inputs, or one has a wrong shape.
        """
        specs = self.engine.inputs
        if len(inputs) != len(specs):
            raise InputError(f"the model has {len(specs)} inputs and was called with {len(inputs)}")
        feeds = {
            spec.name: np.ascontiguousarray(array, spec.dtype)
            for spec, array in zip(specs, inputs, strict=True)
        }
        return self.engine.run(feeds)[self.engine.outputs[0].name]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return self.engine.run(feeds)

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self.engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.engine.outputs


@dataclass(frozen=True)
class Evaluator:
    """A function of the user's, and how it is named."""

    reference: str
    function: Callable[[Actor], float]

    @classmethod
    def load(cls, reference: str) -> Evaluator:
        """Import the function.

        Raises:
            UsageError: There is no such module, file or function.
            InputError: The module failed while it was imported.
        """
        return cls(reference, load_function(reference, _WHAT))

    def score(self, engine: Engine) -> float:
        """What the function returns for an engine.

        Raises:
            InputError: It failed, or returned no finite number.
        """
        with user_code(self.reference, _WHAT):
            found = float(self.function(Actor(engine)))
        if not math.isfinite(found):
            raise InputError(
                f"{_WHAT} {self.reference} returned {found}",
                hint="return one finite number, the higher the better",
            )
        return found
