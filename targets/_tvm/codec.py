"""Workloads, schedules and machines as JSON, for processes of greencc that talk to each other."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    Function,
    Quantize,
    ScaleChannels,
)
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, Depthwise, Pool, PoolKind, Window

_RECORDS: tuple[type[Any], ...] = (
    *(Conv, Depthwise, Dense, BatchedProduct, Pool, Window, Schedule, Machine),
    *(Epilogue, AddTensor, Clip, Apply, ScaleChannels, AddChannels, Quantize),
)
_ENUMS: tuple[type[Enum], ...] = (Function, PoolKind)
_NAMED: dict[str, type[Any]] = {kind.__name__: kind for kind in (*_RECORDS, *_ENUMS)}
_KIND = "kind of"


def to_json(value: Any) -> Any:
    """Plain lists, dictionaries, texts and numbers.

    Raises:
        TypeError: It is none of the types above.
    """
    if isinstance(value, Enum) and type(value) in _ENUMS:
        return {_KIND: type(value).__name__, "value": value.value}
    if is_dataclass(value) and type(value) in _RECORDS:
        return {_KIND: type(value).__name__} | {
            field.name: to_json(getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """What `to_json` was given.

    Raises:
        ValueError: It is of a kind that is not known.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = _NAMED.get(value.get(_KIND, ""))
    if kind is None:
        raise ValueError(f"{value.get(_KIND)!r} is of no kind that is known here")
    if issubclass(kind, Enum):
        return kind(value["value"])
    given = {name: from_json(item) for name, item in value.items() if name != _KIND}
    if kind is Machine:
        given["features"] = frozenset(given["features"])
    return kind(**given)
