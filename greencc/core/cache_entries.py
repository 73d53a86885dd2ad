"""The file of one cache entry: what it is for, the arrays, and a SHA-256 over both.

```
"greencc cache 2\\n"   16 bytes
SHA-256               32 bytes, over all that follows
length                4 bytes, little-endian: of the header
header                JSON: kind, key, greencc version, time of writing, what it is for
arrays                an .npz archive, read without unpickling
```

The header alone tells what an entry is for, so that listing a cache reads little of it. Kind and key are in it: a file
that was renamed answers to no other key. Files of before had no header, only hash and archive.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.core.version import __version__

SUFFIX = ".cache"
_FAMILY = b"greencc cache "
_MAGIC = _FAMILY + b"2\n"
_DIGEST_BYTES = 32
_LENGTH = struct.Struct("<I")
# A header has a few short texts; more is damage.
_MOST_HEADER_BYTES = 1 << 16


class DamagedEntryError(Exception):
    """The file is not what was written."""


class OtherVersionError(Exception):
    """The file is whole, but another version of greencc wrote it: it may have computed something else."""


@dataclass(frozen=True)
class EntryHeader:
    """What an entry is for.

    Attributes:
        kind: A plain word: the folder it lies in.
        key: What it depends on, hashed (`greencc.core.cache.cache_key`).
        version: Of the greencc that wrote it.
        created: Seconds since 1970.
        label: What it is, for people.
        device: Where it was measured; empty: it holds everywhere.
    """

    kind: str
    key: str
    version: str
    created: float
    label: str = ""
    device: str = ""


def encode(header: EntryHeader, arrays: Mapping[str, Array]) -> bytes:
    """The content of the file.

    Raises:
        ValueError: An array holds objects.
    """
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError("objects cannot be kept: reading them would run code")
    text = json.dumps(asdict(header), sort_keys=True).encode()
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    body = _LENGTH.pack(len(text)) + text + buffer.getvalue()
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(content: bytes) -> tuple[EntryHeader, dict[str, Array]]:
    """What `encode` was given.

    Raises:
        DamagedEntryError: The hash does not fit.
        OtherVersionError: Another version of greencc wrote it.
    """
    header, body = _checked(content)
    if header.version != __version__:
        raise OtherVersionError
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return header, {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DamagedEntryError from error


def check(content: bytes) -> None:
    """Make sure that the hash of an entry fits, whichever version wrote it; errors as for `decode`."""
    header, _ = _checked(content)
    if header.version != __version__:
        raise OtherVersionError


def read_header(path: Path) -> EntryHeader:
    """The header alone, unchecked: for listing.

    Raises:
        DamagedEntryError: The file cannot hold an entry.
        OtherVersionError: Another version wrote it, in a form without such a header.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
        if magic != _MAGIC:
            # Without reading all of it a file of before and a damaged one look alike.
            raise OtherVersionError if len(magic) == len(_MAGIC) else DamagedEntryError
        stream.seek(_DIGEST_BYTES, 1)
        return _header(stream.read(_LENGTH.size + _MOST_HEADER_BYTES))[0]


def _checked(content: bytes) -> tuple[EntryHeader, bytes]:
    """The header and the archive."""
    if not content.startswith(_MAGIC):
        if _is_older(content) or _is_newer(content):
            raise OtherVersionError
        raise DamagedEntryError
    start = len(_MAGIC) + _DIGEST_BYTES
    body = content[start:]
    if hashlib.sha256(body).digest() != content[len(_MAGIC) : start]:
        raise DamagedEntryError
    header, length = _header(body)
    return header, body[length:]


def _header(body: bytes) -> tuple[EntryHeader, int]:
    """The header at the beginning of a body, and how many bytes it takes with its length."""
    if len(body) < _LENGTH.size:
        raise DamagedEntryError
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    if end > min(len(body), _LENGTH.size + _MOST_HEADER_BYTES):
        raise DamagedEntryError
    try:
        found = json.loads(body[_LENGTH.size : end])
        header = EntryHeader(**{field.name: found[field.name] for field in fields(EntryHeader)})
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError from error
    texts = (header.kind, header.key, header.version, header.label, header.device)
    if not all(isinstance(text, str) for text in texts) or not isinstance(header.created, int | float):
        raise DamagedEntryError
    return header, end


def _is_older(content: bytes) -> bool:
    """Hash and archive, no header."""
    return hashlib.sha256(content[_DIGEST_BYTES:]).digest() == content[:_DIGEST_BYTES]


def _is_newer(content: bytes) -> bool:
    """A number that this version does not know behind the name of the format; what follows cannot be checked."""
    number, _, rest = content[len(_FAMILY) : len(_FAMILY) + 8].partition(b"\n")
    return content.startswith(_FAMILY) and number.isdigit() and bool(rest)
