"""Metrics of the user's own: loading ``module:function`` and calling it with errors that name file and line.

A per-sample metric is ``f(outputs, labels, feeds) -> scores``: `outputs` and `feeds` map names to arrays whose
first axis is the sample, `labels` is an array or None, and the scores have shape (n,), lie in [0, 1] and are
higher when better. It gives paired intervals and certificates.

A function with an attribute ``aggregate = True`` is ``f(outputs, labels) -> float`` over all samples at once,
for figures such as an AUC that no single sample has. Its interval is bootstrapped; it cannot be certified.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import InputError, UsageError, did_you_mean


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
        try:
            return self.function(*arguments)
        except (Exception, SystemExit) as error:
            raise InputError(f"metric {self.name} failed at {_where(error)}: {_what(error)}") from error


def load_user_metric(reference: str) -> UserMetric:
    """Import ``package.module:function`` or ``path/to/file.py:function``.

    Modules are looked for on Python's path and in the current folder.

    Raises:
        UsageError: There is no such module or function.
        InputError: The module failed while it was imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise UsageError(f"{reference!r} is not a metric", hint="write module:function")
    module = _load_file(Path(where), reference) if where.endswith(".py") else _load_module(where, reference)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            f"metric {reference}: no function {name!r} in {where}", hint=did_you_mean(name, known)
        )
    return UserMetric(reference, function)


def _load_module(where: str, reference: str) -> ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise UsageError(
                f"metric {reference}: no module {where!r}", hint=f"looked on Python's path and in {folder}"
            ) from error
        raise InputError(f"metric {reference} failed to import at {_where(error)}: {_what(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"metric {reference} failed to import at {_where(error)}: {_what(error)}") from error
    finally:
        sys.path.remove(folder)


def _load_file(path: Path, reference: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"metric {reference}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"metric {reference} failed to import at {_where(error)}: {_what(error)}") from error
    return module


def _where(error: BaseException) -> str:
    """File and line of the innermost frame; of the text itself for a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _what(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
