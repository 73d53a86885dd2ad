"""TOML that tells where it is wrong, and values as TOML text: the standard library does not write it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from greencc.core.errors import InputError, did_you_mean


def read_toml_text(path: Path, what: str, most_bytes: int) -> str:
    """The text of a file.

    Args:
        path: The file.
        what: It is, for messages: ``campaign``.
        most_bytes: It may have, a whole number of KiB.

    Raises:
        InputError: It is missing, too large or not in UTF-8.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise InputError(f"{path} is too large for a {what} (more than {most_bytes >> 10} KiB)")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8, so it is no {what}") from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The data of a text.

    Raises:
        InputError: It is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not valid TOML: {error}") from error


class TomlTable:
    """A table that says where it is when something in it is wrong.

    Args:
        data: The table.
        origin: Where it is from, for messages.
        place: Of the table in the file, as ``memory[0]``; empty: the file itself.

    Raises:
        InputError: It is no table.
    """

    def __init__(self, data: Any, origin: str, place: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{origin}: {place} is not a table")
        self.data, self.origin, self.place = data, origin, place

    def place_of(self, key: str) -> str:
        """``memory[0].bytes``."""
        return f"{self.place}.{key}" if self.place else key

    def check(self, known: Iterable[str]) -> None:
        """Refuse keys that are not known.

        Raises:
            InputError: There is one.
        """
        names = tuple(known)
        for key in self.data:
            if key not in names:
                raise InputError(
                    f"{self.origin}: unknown key {self.place_of(key)[:80]!r}",
                    hint=did_you_mean(key[:80], names),
                )


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
