"""What a program or library needs of the machine it runs on: processor, libraries, version of the C library.

Read from the file itself (System V ABI, "Dynamic Linking"; the names of symbol versions are strings of the same table),
so that nothing has to be run and no tool has to be installed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from greencc.core.errors import InputError
from greencc.core.files import translated_os_errors

_MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm"}
_DYNAMIC = 6
_NEEDED = 1
_MOST_BYTES = 1 << 30
_VERSION = re.compile(rb"\0GLIBC_(\d{1,3})\.(\d{1,3})(?:\.\d+)?(?=\0)")


@dataclass(frozen=True)
class Needs:
    """What a file needs.

    Attributes:
        architecture: ``x86_64``, ``aarch64``, ``arm``, or the number that ELF has for it.
        libraries: Names of shared libraries, such as ``libc.so.6``.
        glibc: The oldest GNU C library that has all symbols it uses, such as ``2.34``; None: it uses none.
    """

    architecture: str
    libraries: tuple[str, ...]
    glibc: str | None


def needs_of(path: Path) -> Needs:
    """Read what a 64-bit little-endian ELF file needs.

    Raises:
        InputError: It is none, is damaged, or cannot be read.
    """
    with translated_os_errors(path):
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large for a library")
        data = path.read_bytes()
    try:
        return _read(data)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{path} is no program or library: {error}") from error


def _read(data: bytes) -> Needs:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # Type, offset, size, and the section of the strings.
    rows = [_section(data, sections + index * size) for index in range(count)]
    libraries: list[str] = []
    strings = b""
    for kind, offset, length, link in rows:
        if kind != _DYNAMIC:
            continue
        _, start, end, _ = rows[link]
        strings = data[start : start + end]
        for at in range(offset, offset + length, 16):
            tag, value = struct.unpack_from("<QQ", data, at)
            if tag == _NEEDED:
                libraries.append(strings[value : strings.index(b"\0", value)].decode("ascii"))
    versions = [(int(major), int(minor)) for major, minor in _VERSION.findall(strings)]
    glibc = None if not versions else "{}.{}".format(*max(versions))
    return Needs(_MACHINES.get(machine, str(machine)), tuple(libraries), glibc)


def _section(data: bytes, at: int) -> tuple[int, int, int, int]:
    _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", data, at)
    return kind, offset, length, link
