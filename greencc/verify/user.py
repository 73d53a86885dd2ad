"""Metrics of the user's own: loading ``module:function`` and calling it with errors that name file and line.

A per-sample metric is ``f(outputs, labels, feeds) -> scores``: `outputs` and `feeds` map names to arrays whose
first axis is the sample, `labels` is an array or None, and the scores have shape (n,), lie in [0, 1] and are
higher when better. It gives paired intervals and certificates.

A function with an attribute ``aggregate = True`` is ``f(outputs, labels) -> float`` over all samples at once,
for figures such as an AUC that no single sample has. Its interval is bootstrapped; it cannot be certified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.user_code import load_function, user_code


@dataclass(frozen=True)
class UserMetric:
    """A metric function of the user; `name` is how they wrote it."""

    name: str
    function: Callable[..., Any]

    @property
    def aggregate(self) -> bool:
        """True when the function scores all samples at once."""
        return bool(getattr(self.function, "aggregate", False))

    def scores(
        self, outputs: Mapping[str, Array], labels: Array | None, feeds: Mapping[str, Array], count: int
    ) -> NDArray[np.float64]:
        """Per-sample scores, shape (count,); NaN is left for the caller to judge.

        Raises:
            InputError: The function failed, or its result has another shape or leaves [0, 1].
        """
        result = self._call(dict(outputs), labels, dict(feeds))
        try:
            scores = np.asarray(result, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"metric {self.name} returned {type(result).__name__}, not an array of numbers"
            ) from error
        if scores.shape != (count,):
            raise InputError(
                f"metric {self.name} returned shape {list(scores.shape)} for {count} samples",
                hint="return one score per sample, or set the function's attribute aggregate = True",
            )
        finite = scores[~np.isnan(scores)]
        if finite.size and (finite.min() < 0.0 or finite.max() > 1.0):
            raise InputError(
                f"metric {self.name} returned {finite.min():g} to {finite.max():g}",
                hint="scores must lie in [0, 1], higher is better",
            )
        return scores

    def total(self, outputs: Mapping[str, Array], labels: Array | None) -> float:
        """The value of an aggregate metric.

        Raises:
            InputError: The function failed or did not return a number.
        """
        result = self._call(dict(outputs), labels)
        try:
            return float(result)
        except (TypeError, ValueError) as error:
            raise InputError(f"metric {self.name} returned {type(result).__name__}, not a number") from error

    def _call(self, *arguments: Any) -> Any:
        with user_code(self.name, "metric"):
            return self.function(*arguments)


def load_user_metric(reference: str) -> UserMetric:
    """Import ``package.module:function`` or ``path/to/file.py:function`` (see `greencc.core.user_code`).

    Raises:
        UsageError: There is no such module or function.
        InputError: The module failed while it was imported.
    """
    return UserMetric(reference, load_function(reference, "metric"))
