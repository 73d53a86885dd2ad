"""Values as TOML text. The standard library reads TOML and does not write it."""

from __future__ import annotations

from typing import Any


def toml_value(value: Any) -> str:
    """A boolean, number, text without line breaks, or list of those, as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value)
