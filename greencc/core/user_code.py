"""Code of the user's own, named ``module:function`` or ``file.py:function``: metrics and data generators.

Naming such a function runs that code, with the rights of the process. Whatever it raises is reported with the file and
line it came from.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from greencc.core.errors import GreenccError, InputError, UsageError, did_you_mean

_OURS = Path(__file__).resolve().parent.parent


def load_function(reference: str, what: str) -> Callable[..., Any]:
    """Import a function of the user.

    Args:
        reference: ``package.module:function`` (Python's path, then the current folder) or ``path/file.py:function``.
        what: What it is for, for messages ("metric", "data").

    Raises:
        UsageError: There is no such module, file or function.
        InputError: The module failed while it was imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise UsageError(f"{what}: {reference!r} names no function", hint="write module:function")
    module = (
        _from_file(Path(where), reference, what) if where.endswith(".py") else _module(where, reference, what)
    )
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            f"{what} {reference}: no function {name!r} in {where}", hint=did_you_mean(name, known)
        )
    if not callable(function):
        raise UsageError(f"{what} {reference} is a {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


@contextmanager
def user_code(reference: str, what: str, doing: str = "failed") -> Iterator[None]:
    """Report what the user's code in the block raises; it may import from the current folder."""
    try:
        with _current_folder_importable():
            yield
    except GreenccError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} {reference} {doing}{_place(error)}: {type(error).__name__}: {error}"
        ) from error


def _module(where: str, reference: str, what: str) -> ModuleType:
    with user_code(reference, what, "failed to import"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"{what} {reference}: no module {error.name!r}",
                hint=f"looked on Python's path and in {Path.cwd()}",
            ) from error


def _from_file(path: Path, reference: str, what: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{what} {reference}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    with user_code(reference, what, "failed to import"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Last on the path, so that a file of the user cannot stand in for a module of Python's."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _place(error: BaseException) -> str:
    """File and line of the innermost frame that is neither ours nor a library's; of the text for a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    skipped = (str(Path(importlib.__file__).parent), "site-packages", "<frozen")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).resolve().is_relative_to(_OURS)
        and not any(part in frame.filename for part in skipped)
        and "contextlib" not in frame.filename
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
