"""The user's devices by name: addresses and what is compiled for them, in one TOML file. It holds no secrets."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.files import atomic_file, translated_os_errors
from greencc.core.ownership import make_private
from greencc.core.toml import TomlTable, parse_toml, read_toml_text, toml_value
from greencc.devices.address import check_name, parse_address

VARIABLE = "GREENCC_DEVICES"
_MOST_BYTES = 1 << 20
_MOST_TEXT = 1000
_HEADER = "# Devices that greencc compiles for and measures on: see 'greencc devices --help'.\n"


@dataclass(frozen=True)
class Registered:
    """A device.

    Attributes:
        name: What the user calls it.
        address: ``ssh://user@host:port``.
        identity: A file with the private key that is tried first; empty: as the SSH configuration says.
        target: What is compiled for it unless a command says otherwise, such as ``jetson:preset=jetson-nano``; empty:
            by what it says of itself.
        note: The user's own words.
    """

    name: str
    address: str
    identity: str = ""
    target: str = ""
    note: str = ""


def registry_file() -> Path:
    """``$GREENCC_DEVICES``, else ``greencc/devices.toml`` in the user's folder of configurations."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "greencc" / "devices.toml"


def registered(file: Path | None = None) -> dict[str, Registered]:
    """All devices by name, sorted.

    Args:
        file: Default `registry_file`.

    Raises:
        InputError: The file cannot be read, or is damaged.
    """
    path = file or registry_file()
    if not path.exists():
        return {}
    table = TomlTable(
        parse_toml(read_toml_text(path, "list of devices", _MOST_BYTES), str(path)), str(path), ""
    )
    return {name: _entry(name, table.data[name], path) for name in sorted(table.data)}


def find(name: str, file: Path | None = None) -> Registered:
    """One device.

    Raises:
        UsageError: There is none of that name.
        InputError: As `registered`.
    """
    known = registered(file)
    if name not in known:
        hint = (
            did_you_mean(name, known) if known else "add it first: greencc devices add NAME ssh://user@host"
        )
        raise UsageError(f"no device is called {name[:80]!r}", hint=hint)
    return known[name]


def add(device: Registered, *, replace: bool = False, file: Path | None = None) -> Path:
    """Write down a device; returns the file.

    Raises:
        UsageError: The name or address is none, a value does not fit on a line, or the name is taken.
        InputError: The file cannot be read or written.
    """
    check_name(device.name)
    parse_address(device.address)
    for field in fields(device):
        value = getattr(device, field.name)
        if len(value) > _MOST_TEXT or not value.isprintable():
            raise UsageError(
                f"the {field.name} of a device is one line of up to {_MOST_TEXT:,} characters that can be printed"
            )
    with _changing(file) as (path, known):
        if device.name in known and not replace:
            raise UsageError(
                f"there is a device {device.name!r} already, at {known[device.name].address}",
                hint="choose another name, or pass --force to replace it",
            )
        known[device.name] = device
        _write(path, known)
    return path


def remove(name: str, file: Path | None = None) -> Registered:
    """Forget a device; returns what it was.

    Raises:
        UsageError: There is none of that name.
        InputError: The file cannot be read or written.
    """
    device = find(name, file)
    with _changing(file) as (path, known):
        known.pop(name, None)
        _write(path, known)
    return device


@contextmanager
def _changing(file: Path | None) -> Iterator[tuple[Path, dict[str, Registered]]]:
    """The file and what is in it, which no other process changes meanwhile."""
    path = file or registry_file()
    with translated_os_errors(path):
        make_private(path.parent)
        lock = path.with_name(f".{path.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path, registered(path)


def _write(path: Path, known: Mapping[str, Registered]) -> None:
    lines = [_HEADER]
    for name in sorted(known):
        lines.append(f"[{toml_value(name)}]")
        for field in fields(Registered):
            value = getattr(known[name], field.name)
            if field.name != "name" and value:
                lines.append(f"{field.name} = {toml_value(value)}")
        lines.append("")
    with atomic_file(path, mode=0o600) as work:
        work.write_text("\n".join(lines), encoding="utf-8")


def _entry(name: str, data: object, path: Path) -> Registered:
    table = TomlTable(data, str(path), name[:80])
    keys = tuple(field.name for field in fields(Registered) if field.name != "name")
    table.check(keys)
    values = {}
    for key in keys:
        value = table.data.get(key, "")
        if not isinstance(value, str) or len(value) > _MOST_TEXT or not value.isprintable():
            raise InputError(f"{path}: {table.place_of(key)} is not one line of text")
        values[key] = value
    try:
        check_name(name)
        parse_address(values["address"])
    except UsageError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    return Registered(name, **values)
