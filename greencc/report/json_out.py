"""`report.json`: out with stable keys and without NaN, and back in with validation.

Keys follow the field order of `greencc.core.report`. Figures are rounded to six significant digits, which is more than
any measurement here has; what the user asked for (options of passes, the budget) is kept as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from greencc.core.errors import InputError
from greencc.core.meter import Grade
from greencc.core.report import SCHEMA, Report

_DIGITS = 6
# Beyond these a number is no figure of anything, and arithmetic with it can fail.
_LARGEST = 1 << 63
_LARGEST_FLOAT = 1e100
_T = TypeVar("_T")
MAX_BYTES = 64 << 20
# Fields that hold the name of a `Grade`, wherever they are.
_GRADES = frozenset({"grade", "energy_grade"})


def dump_report(report: Report) -> str:
    """Return the JSON text, ending in a newline.

    A figure that is NaN or infinite becomes null where the field may be missing.

    Raises:
        ValueError: A figure that must be there is NaN or infinite: a bug of whoever filled the report.
    """
    return dump_document(report, "report")


def dump_document(value: Any, where: str) -> str:
    """The JSON text of a dataclass of declared fields; see `dump_report` for the rules."""
    return json.dumps(to_plain(value, where), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_plain(value: Any, where: str) -> dict[str, Any]:
    """A dataclass of declared fields as plain dictionaries, lists and numbers; see `dump_report` for the rules."""
    found: dict[str, Any] = _encode(value, type(value), where)
    return found


def from_plain(data: Any, kind: type[_T], where: str) -> _T:
    """The dataclass that `to_plain` made `data` of.

    Raises:
        InputError: A field is missing or of the wrong type.
    """
    found: _T = _decode_dataclass(data, kind, where)
    return found


def stored(value: _T, where: str) -> _T:
    """A report as its file gives it back; texts and pages are made of this, so that made again they are the same.

    A share of 0.56895004 reads 56.90 %, but 0.56895, its six digits, 56.89 %.

    Raises:
        ValueError: As `dump_report`.
    """
    return from_plain(to_plain(value, where), type(value), where)


def load_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        InputError: It is missing, not JSON, of another schema, or a field is missing or of the wrong type.
    """
    return parse_report(read_document(path, "report"), where=str(path))


def parse_report(text: str, where: str = "report") -> Report:
    """Parse the text of a report; see `load_report` for the errors. Keys it does not know are ignored."""
    return from_plain(parse_document(text, where, SCHEMA), Report, where)


def read_document(path: Path, what: str) -> str:
    """The text of a file that `dump_document` has written.

    Raises:
        InputError: It is missing, too large or no text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large for a {what}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what} {path}: {error}") from error


def parse_document(text: str, where: str, schema: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        InputError: It is not JSON, or of another schema.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise InputError(f"{where} has schema {found!r}", hint=f"this version reads {schema!r}")
    document: dict[str, Any] = data
    return document


def _encode(value: Any, hint: Any, where: str) -> Any:
    """Plain JSON of a value declared as `hint`."""
    if is_dataclass(value):
        kind: Any = type(value)
        hints = _hints(kind)
        return {
            item.name: _encode(getattr(value, item.name), hints[item.name], f"{where}.{item.name}")
            for item in fields(value)
        }
    hint, optional = _optional(hint)
    if value is None:
        return None
    if hint is Any:
        return _plain(value, where)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return [_encode(item, inner, f"{where}[{index}]") for index, item in enumerate(value)]
    if get_origin(hint) is dict:
        inner = get_args(hint)[1]
        return {str(key): _encode(item, inner, f"{where}.{key}") for key, item in value.items()}
    if hint is float:
        number = float(value)
        if math.isfinite(number):
            return float(f"{number:.{_DIGITS}g}")
        if optional:
            return None
        raise ValueError(f"{where} is {number}")
    return _plain(value, where)


def _plain(value: Any, where: str) -> Any:
    """Plain JSON of an undeclared value; numbers are kept as they are, NaN becomes null."""
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if isinstance(value, np.generic):
        return _plain(value.item(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} holds a {type(value).__name__}, which JSON has no form for")


def _decode(value: Any, hint: Any, where: str) -> Any:
    """The value declared as `hint` from plain JSON."""
    hint, optional = _optional(hint)
    if value is None and (optional or hint is Any):
        return None
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _decode_dataclass(value, hint, where)
    origin = get_origin(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(
            _decode(item, get_args(hint)[0], f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        return {key: _decode(item, get_args(hint)[1], f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        # Also false for infinity, which is what 1e999 is read as.
        if -_LARGEST_FLOAT <= value <= _LARGEST_FLOAT:
            return float(value)
        raise InputError(f"{where} is {_short(value)}, which is out of range")
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < _LARGEST:
            return value
        raise InputError(f"{where} is {_short(value)}, which is out of range")
    raise InputError(f"{where} is {_short(value)}, expected {_name(hint)}")


def _decode_dataclass(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_short(value)}, expected a table")
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name in value:
            values[item.name] = _decode(value[item.name], hints[item.name], f"{where}.{item.name}")
            if item.name in _GRADES and values[item.name] not in (None, *Grade.__members__):
                found = _short(value[item.name])
                raise InputError(
                    f"{where}.{item.name} is {found}, expected one of {', '.join(Grade.__members__)}"
                )
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{where} has no {item.name!r}")
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields: resolving them takes longer than everything else here."""
    return get_type_hints(kind)


def _optional(hint: Any) -> tuple[Any, bool]:
    """Split ``T | None`` into (T, True)."""
    if get_origin(hint) in (Union, UnionType):
        rest = [part for part in get_args(hint) if part is not NoneType]
        assert len(rest) == 1, hint
        return rest[0], True
    return hint, False


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    names = {tuple: "a list", dict: "a table", float: "a number", int: "a whole number", str: "a text"}
    return names.get(get_origin(hint) or hint, str(getattr(hint, "__name__", hint)))
