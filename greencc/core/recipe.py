"""Recipes: which passes run with which options, as TOML in and out.

```toml
schema = "greencc.recipe/1"

[[pass]]
name = "fold-batch-norm"

[[pass]]
name = "quantize-int8"
method = "percentile"
percentile = 99.99
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.passes import Pass
from greencc.core.toml import parse_toml, toml_value

SCHEMA = "greencc.recipe/1"


def options_of(step: Pass) -> dict[str, Any]:
    """The options of a pass as TOML-ready values."""
    return {option.name: _plain(getattr(step, option.name)) for option in fields(step)}


def load_recipe(path: Path, known: Sequence[type[Pass]]) -> tuple[Pass, ...]:
    """Read a recipe file.

    Raises:
        InputError: The file is missing or not TOML.
        UsageError: It names an unknown pass or option, or an option of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: {error.strerror or error}", hint="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8, so it is no recipe") from error
    return parse_recipe(text, known, where=str(path))


def parse_recipe(text: str, known: Sequence[type[Pass]], where: str = "recipe") -> tuple[Pass, ...]:
    """Parse the text of a recipe; see `load_recipe` for the errors."""
    data = parse_toml(text, where)
    if data.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"{where} has schema {data['schema']!r}", hint=f"this version reads {SCHEMA!r}")
    entries = data.get("pass", [])
    extra = sorted(set(data) - {"schema", "pass"})
    if extra or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(
            f"{where}: unexpected key {extra[0] if extra else 'pass'!r}", hint="write [[pass]] tables"
        )
    return tuple(make_pass(entry, known, where) for entry in entries)


def make_pass(entry: dict[str, Any], known: Sequence[type[Pass]], where: str = "recipe") -> Pass:
    """Build one pass from its name and options."""
    by_name = {kind.name: kind for kind in known}
    name = entry.get("name")
    if not isinstance(name, str):
        raise UsageError(f"{where}: a [[pass]] table has no name")
    if name not in by_name:
        raise UsageError(f"{where}: unknown pass {name!r}", hint=did_you_mean(name, by_name))
    kind = by_name[name]
    hints = get_type_hints(kind)
    options = {option.name: option for option in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "name":
            continue
        if key not in options:
            raise UsageError(f"{where}: pass {name!r} has no option {key!r}", hint=did_you_mean(key, options))
        values[key] = _typed(value, hints[key], f"{where}: {name}.{key}")
    return kind(**values)


def dump_recipe(passes: Sequence[Pass]) -> str:
    """The recipe as TOML; options at their defaults are left out, so that recipes diff well."""
    lines = [f'schema = "{SCHEMA}"']
    for step in passes:
        lines += ["", "[[pass]]", f'name = "{step.name}"']
        for option in fields(step):
            value = getattr(step, option.name)
            if option.default is MISSING or value != option.default:
                lines.append(f"{option.name} = {toml_value(_plain(value))}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Convert a TOML value to the type of the option."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            known = [str(member.value) for member in hint]
            raise UsageError(f"{where} is {value!r}", hint=did_you_mean(str(value), known)) from None
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise UsageError(f"{where} is {value!r}", hint=f"expected {getattr(hint, '__name__', hint)}")
