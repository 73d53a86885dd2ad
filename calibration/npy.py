"""Stream arrays out of `.npy` files and `.npz` members without pickle, without mapping, whatever their size.

The header is parsed by a closed grammar of what NumPy writes for plain arrays (the NPY format, versions 1.0 to
3.0, `numpy.lib.format`), so that nothing in a hostile file is evaluated. Files are read, not mapped: a mapped
file that shrinks meanwhile kills the process, and mapped pages count as the process's memory.
"""

from __future__ import annotations

import lzma
import math
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import InputError

Blocks = Generator[Array, None, None]
CHUNK = 1 << 20
_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 10_000
_PLAIN = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_PAIR = re.compile(
    r"\s*['\"](?P<key>\w+)['\"]\s*:\s*"
    r"(?P<value>'[^'\\]*'|\"[^\"\\]*\"|True|False|\((?:\s*\d{1,19}L?\s*,)*(?:\s*\d{1,19}L?\s*)?\)|\[[^\\]*\])\s*,?"
)


@dataclass(frozen=True)
class Header:
    """Element type, shape and order of an array; `size` is how many bytes magic and header take."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    size: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class Limits:
    """What is refused as a zip bomb.

    Attributes:
        total_bytes: Most bytes the arrays of one archive may take uncompressed.
        ratio: Highest compression ratio of a member that exceeds `ratio_free_bytes`; deflate's best is 1032.
        ratio_free_bytes: Members up to this size may compress as well as they like (masks of ones do).
        members: Most members of an archive.
    """

    total_bytes: int = 1 << 40
    ratio: float = 500.0
    ratio_free_bytes: int = 1 << 28
    members: int = 1024


class Column(Protocol):
    """An array on disk that can be streamed along its first axis."""

    @property
    def name(self) -> str: ...

    @property
    def header(self) -> Header: ...

    def blocks(self, rows: int) -> Blocks:
        """Yield consecutive blocks of `rows` rows, in C order; the last may be smaller.

        Raises:
            InputError: The file is truncated, corrupt, or was changed since it was opened.
        """


def read_header(stream: IO[bytes], where: str) -> Header:
    """Parse magic and header of an `.npy` stream; leaves the stream at the first byte of the data.

    Raises:
        InputError: It is no `.npy`, holds Python objects, text or records, or is malformed.
    """
    start = stream.read(len(_MAGIC) + 2)
    if len(start) < len(_MAGIC) + 2 or not start.startswith(_MAGIC):
        raise InputError(f"{where} is not a NumPy array", hint="write it with np.save or np.savez")
    version = (start[-2], start[-1])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"{where} has an unknown .npy version {version[0]}.{version[1]}")
    width, layout = (2, "<H") if version == (1, 0) else (4, "<I")
    prefix = stream.read(width)
    length = struct.unpack(layout, prefix)[0] if len(prefix) == width else -1
    if length > _HEADER_LIMIT:
        raise InputError(f"{where} has a header of {length} bytes: it is corrupt or not a plain array")
    raw = stream.read(length) if length >= 0 else b""
    if len(raw) != length:
        raise InputError(f"{where} is truncated in its header")
    return _parse(raw.decode("latin-1"), where, len(start) + width + length)


def _parse(text: str, where: str, size: int) -> Header:
    body = text.strip()
    found: dict[str, str] = {}
    at = 1
    while body.startswith("{") and (match := _PAIR.match(body, at)):
        if match["key"] in found:
            break
        found[match["key"]] = match["value"]
        at = match.end()
    if body[at:].strip() != "}" or sorted(found) != ["descr", "fortran_order", "shape"]:
        raise InputError(f"{where} has a malformed header", hint="write it again with np.save or np.savez")
    descr, order, shape = found["descr"].strip("'\""), found["fortran_order"], found["shape"]
    if re.fullmatch(r"[<>|=]?O\d*", descr):
        raise InputError(
            f"{where} holds Python objects, which would need unpickling: that can run any code",
            hint="save a plain numeric array; rows of different lengths need padding",
        )
    if not _PLAIN.fullmatch(descr):
        kinds = {
            "U": "text",
            "S": "text",
            "M": "dates",
            "m": "times",
            "c": "complex numbers",
            "V": "raw bytes",
        }
        kind = "records" if descr.startswith("[") else kinds.get(descr.lstrip("<>|=")[:1], f"type {descr!r}")
        raise InputError(f"{where} holds {kind[:60]}", hint="only plain numbers and booleans can be read")
    if order not in ("True", "False") or not shape.startswith("("):
        raise InputError(f"{where} has a malformed header", hint="write it again with np.save or np.savez")
    dims = tuple(int(d) for d in re.findall(r"\d+", shape))
    if len(dims) > 32:
        raise InputError(f"{where} has {len(dims)} axes")
    if dims == ():
        raise InputError(f"{where} is a single number", hint="the first axis must be the samples")
    return Header(np.dtype(descr), dims, order == "True", size)


@dataclass(frozen=True)
class NpyColumn:
    """A whole `.npy` file; `name` is the model input (or "labels") it stands for."""

    name: str
    path: Path
    header: Header

    @classmethod
    def open(cls, name: str, path: Path) -> NpyColumn:
        """Read the header and check that the file is as long as it says.

        Raises:
            InputError: See `read_header`.
        """
        with read_errors(str(path)), path.open("rb") as stream:
            header = read_header(stream, str(path))
            actual = os.fstat(stream.fileno()).st_size - header.size
        _check_length(str(path), header, actual)
        return cls(name, path, header)

    def blocks(self, rows: int) -> Blocks:
        """Yield blocks of rows; see `Column`."""
        with read_errors(str(self.path)), self.path.open("rb") as stream:
            if read_header(stream, str(self.path)) != self.header:
                raise InputError(f"{self.path} was changed while it was in use")
            yield from _blocks(stream, self.header, rows, str(self.path))


@dataclass(frozen=True)
class NpzColumn:
    """One array of an `.npz` archive, decompressed as it is read."""

    name: str
    path: Path
    member: str
    header: Header

    @property
    def where(self) -> str:
        return f"{self.path}[{self.member}]"

    def blocks(self, rows: int) -> Blocks:
        """Yield blocks of rows; see `Column`."""
        with ExitStack() as stack:
            stack.enter_context(read_errors(self.where))
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            stream = stack.enter_context(archive.open(self.member))
            if read_header(stream, self.where) != self.header:
                raise InputError(f"{self.path} was changed while it was in use")
            yield from _blocks(stream, self.header, rows, self.where)


def open_npz(path: Path, limits: Limits | None = None) -> list[NpzColumn]:
    """Read the headers of all arrays of an archive.

    Member names are only compared with the names of the model's inputs: nothing is ever extracted to disk.

    Raises:
        InputError: It is no archive, truncated, encrypted, a zip bomb, or a member is no plain array.
    """
    limits = limits or Limits()
    columns: list[NpzColumn] = []
    with read_errors(str(path)), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > limits.members:
            raise InputError(f"{path} has {len(infos)} members: that is no set of model inputs")
        if (total := sum(info.file_size for info in infos)) > limits.total_bytes:
            raise InputError(f"{path} declares {total / 2**30:.0f} GiB of data: refused as a zip bomb")
        file_size = path.stat().st_size
        for info in infos:
            member = info.filename
            where = f"{path}[{member}]"
            if not member.endswith(".npy"):
                raise InputError(
                    f"{where} is not an array", hint="write the archive with np.savez_compressed"
                )
            if any(column.member == member for column in columns):
                raise InputError(f"{path} has two members called '{member}'")
            _check_member(info, where, file_size, limits)
            with archive.open(info) as stream:
                header = read_header(stream, where)
            _check_length(where, header, info.file_size - header.size)
            columns.append(NpzColumn(member.removesuffix(".npy"), path, member, header))
    return columns


def _check_member(info: zipfile.ZipInfo, where: str, file_size: int, limits: Limits) -> None:
    if info.flag_bits & 0x1:
        raise InputError(f"{where} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{where} is compressed in a way np.savez never does", hint="write it again with np.savez"
        )
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.header_offset + info.compress_size > file_size or (
        stored and info.compress_size != info.file_size
    ):
        raise InputError(f"{where} is truncated or corrupt")
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > limits.ratio_free_bytes and ratio > limits.ratio:
        raise InputError(
            f"{where} expands {ratio:.0f}-fold to {info.file_size / 2**20:.0f} MiB: refused as a zip bomb",
            hint="if the data are what you want, write them uncompressed with np.savez",
        )


def _check_length(where: str, header: Header, actual: int) -> None:
    if actual < header.nbytes:
        raise InputError(f"{where} is truncated: {actual} bytes of data, its header says {header.nbytes}")
    if actual > header.nbytes:
        raise InputError(f"{where} has {actual - header.nbytes} bytes more than its header says")


def _blocks(stream: IO[bytes], header: Header, rows: int, where: str) -> Blocks:
    if header.fortran and len(header.shape) > 1:
        yield from _transposed_blocks(stream, header, rows, where)
        return
    for start in range(0, header.shape[0], rows):
        count = min(rows, header.shape[0] - start)
        data = _read_exactly(stream, count * header.row_bytes, where)
        yield np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])


def _transposed_blocks(stream: IO[bytes], header: Header, rows: int, where: str) -> Blocks:
    # Samples are scattered all over a column-major array: spool it to an unlinked file, and gather from there.
    with tempfile.TemporaryFile(prefix="greencc-") as spool:
        left = header.nbytes
        while left:
            left -= spool.write(_read_exactly(stream, min(left, CHUNK), where))
        spool.flush()
        whole = np.memmap(spool, header.dtype, "r", 0, header.shape, "F")
        for start in range(0, header.shape[0], rows):
            yield np.array(whole[start : start + rows], order="C")


def _read_exactly(stream: IO[bytes], size: int, where: str) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise InputError(f"{where} is truncated")
        data += more
    return data


@contextmanager
def read_errors(where: str) -> Iterator[None]:
    """Turn what unreadable and corrupt files raise into one InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{where} does not exist") from error
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error) as error:
        raise InputError(f"{where} is truncated or corrupt: {error}", hint="write it again") from error
    except (RuntimeError, ValueError, OverflowError) as error:
        # zipfile: encrypted or exotic members, undecodable names, absurd offsets.
        raise InputError(f"{where} cannot be read: {error}") from error
