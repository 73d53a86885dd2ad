"""Targets as text: ``cpu``, ``cpu:threads=2,optimization=extended``, ``jetson:jetson-nano`` or ``jetson-nano``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, get_type_hints

from greencc.core.engine import Target
from greencc.core.errors import UsageError, did_you_mean


def parse_spec(spec: str, kinds: Sequence[type[Target]]) -> Target:
    """Make the target a spec names.

    A target may have further names that stand for some of its options (`Target.aliases`), and an option whose value may
    come first without the option's name (`Target.leading`).

    Raises:
        UsageError: The target or an option is unknown, or a value has the wrong type.
    """
    name, _, rest = spec.strip().partition(":")
    by_name: dict[str, tuple[type[Target], Mapping[str, str]]] = {kind.name: (kind, {}) for kind in kinds}
    by_name |= {alias: (kind, stands) for kind in kinds for alias, stands in kind.aliases.items()}
    if name not in by_name:
        raise UsageError(f"unknown target {name!r}", hint=did_you_mean(name, by_name))
    kind, stands = by_name[name]
    hints = get_type_hints(kind)
    known = {option.name: hints[option.name] for option in fields(kind)}
    values: dict[str, Any] = {
        key: _value(text, known[key], f"target option {name}:{key}") for key, text in stands.items()
    }
    for index, part in enumerate(filter(None, rest.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals and index == 0 and kind.leading is not None and key not in known:
            key, equals, text = kind.leading, "=", key
        if key not in known:
            raise UsageError(f"target {name!r} has no option {key!r}", hint=did_you_mean(key, known))
        if not equals:
            raise UsageError(f"target option {part!r} has no value", hint=f"write {name}:{key}=VALUE")
        if key in values:
            raise UsageError(f"target option {key!r} is given twice in {spec!r}", hint="give it once")
        values[key] = _value(text, known[key], f"target option {name}:{key}")
    return kind(**values)


def format_spec(target: Target) -> str:
    """The spec that `parse_spec` turns back into an equal target; options at their defaults are left out."""
    target = target.named()
    parts = []
    for option in fields(target):
        value = getattr(target, option.name)
        if value != option.default:
            parts.append(f"{option.name}={_text(value)}")
    return target.name + (":" + ",".join(parts) if parts else "")


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(text: str, hint: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(text)
        except ValueError:
            raise UsageError(
                f"{where} is {text!r}", hint=did_you_mean(text, [str(item.value) for item in hint])
            ) from None
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"{where} is {text!r}", hint="expected true or false")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise UsageError(f"{where} is {text!r}", hint=f"expected {hint.__name__}") from None
    return text
