"""Checks of tensors in a model file: the data must be there, of the stated size, inside the folder.

A tensor states its shape and its data apart; nothing in protobuf or `onnx_ir` makes them agree until the
data is read, when ``dims: [1000000, 1000000]`` without data would be allocated. External data is a path that
the model's author chose: it is opened only after it is known to be a regular file in the model's own folder.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir
from onnx import TensorProto

from greencc.core.errors import InputError

MAX_RANK = 32
"""NumPy 1.26 holds no more axes."""

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_FIELD_OF = {
    ir.DataType.FLOAT: ("float_data", 1),
    ir.DataType.COMPLEX64: ("float_data", 2),
    ir.DataType.DOUBLE: ("double_data", 1),
    ir.DataType.COMPLEX128: ("double_data", 2),
    ir.DataType.INT64: ("int64_data", 1),
    ir.DataType.UINT32: ("uint64_data", 1),
    ir.DataType.UINT64: ("uint64_data", 1),
}


def check_tensor(tensor: TensorProto, what: str, path: Path) -> None:
    """Check the type, shape and data of one tensor of the model file `path`.

    Raises:
        InputError: See the module.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise InputError(
            f"{path}: {what} has element type {tensor.data_type}", hint="the file is corrupt; export it again"
        )
    if len(tensor.dims) > MAX_RANK:
        raise InputError(
            f"{path}: {what} has {len(tensor.dims)} axes", hint=f"at most {MAX_RANK} are supported"
        )
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(
            f"{path}: {what} has a negative dimension: {list(tensor.dims)}",
            hint="the file is damaged; export it again",
        )
    if tensor.HasField("segment"):
        raise InputError(f"{path}: {what} is stored in segments", hint="store it whole")
    count = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, dtype, count, what, path)
    else:
        _check_inline(tensor, dtype, count, what, path)


def _check_inline(tensor: TensorProto, dtype: ir.DataType, count: int, what: str, path: Path) -> None:
    filled = [name for name in _TYPED_FIELDS if len(getattr(tensor, name))]
    hint = "the file is damaged; export it again"
    if tensor.HasField("raw_data"):
        if filled and tensor.raw_data:
            raise InputError(f"{path}: {what} has both raw_data and {filled[0]}", hint=hint)
        if dtype == ir.DataType.STRING:
            raise InputError(f"{path}: {what} holds strings as raw bytes", hint=hint)
        have, need, unit = len(tensor.raw_data), byte_count(dtype, count), "bytes"
    else:
        field, need = _typed_field(dtype, count)
        wrong = [name for name in filled if name != field]
        if wrong:
            raise InputError(f"{path}: {what} of type {dtype.name} has its data in {wrong[0]}", hint=hint)
        have, unit = len(getattr(tensor, field)), "values"
    if have != need:
        raise InputError(
            f"{path}: {what} of type {dtype.name} and shape {list(tensor.dims)} needs {need:,} {unit} "
            f"but has {have:,}",
            hint=hint,
        )


def byte_count(dtype: ir.DataType, count: int) -> int:
    """Bytes of `count` packed elements."""
    return -(-count * dtype.bitwidth // 8) if dtype != ir.DataType.STRING else 0


def _typed_field(dtype: ir.DataType, count: int) -> tuple[str, int]:
    """The repeated field that holds elements of a type, and how many entries it then has."""
    if dtype == ir.DataType.STRING:
        return "string_data", count
    if dtype in _FIELD_OF:
        field, factor = _FIELD_OF[dtype]
        return field, factor * count
    packed = {2: 4, 4: 2}.get(dtype.bitwidth, 1)
    return "int32_data", -(-count // packed)


def _check_external(tensor: TensorProto, dtype: ir.DataType, count: int, what: str, path: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if dtype == ir.DataType.STRING:
        raise InputError(f"{path}: {what} holds strings in external data", hint="store strings in the model")
    file = _external_file(location, what, path)
    offset = _natural(entries.get("offset", "0"), "offset", what, path)
    need = byte_count(dtype, count)
    length = _natural(entries.get("length", str(need)), "length", what, path)
    if length != need:
        raise InputError(
            f"{path}: {what} of type {dtype.name} and shape {list(tensor.dims)} needs {need:,} bytes "
            f"but its external data says {length:,}",
            hint="the file is damaged; export it again",
        )
    size = file.stat().st_size
    if offset + length > size:
        raise InputError(
            f"{path}: {what} needs bytes {offset:,} to {offset + length:,} of {location!r}, "
            f"which has {size:,}",
            hint="the data file is truncated or belongs to another model; copy both files again",
        )


def _external_file(location: str, what: str, path: Path) -> Path:
    """Resolve an external location.

    Raises:
        InputError: It is not the relative path of a regular file inside the model's folder.
    """
    hint = "external data must be a relative path in the model's folder"
    if not location or "\0" in location:
        raise InputError(f"{path}: {what} does not say which file holds its data", hint=hint)
    forms = (PurePosixPath(location), PureWindowsPath(location))
    if any(form.anchor for form in forms):
        raise InputError(f"{path}: {what} has its data at the absolute path {location!r}", hint=hint)
    if any(".." in form.parts for form in forms):
        raise InputError(f"{path}: {what} has its data outside the folder, at {location!r}", hint=hint)
    folder = path.absolute().parent
    file = folder / location
    try:
        # Resolving before any other access: a link must not be followed out of the folder.
        inside = file.resolve().is_relative_to(folder.resolve())
        status = file.stat() if inside else None
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: {what} has its data in {location!r}, which is missing",
            hint=f"copy it into {folder}",
        ) from error
    if status is None:
        raise InputError(
            f"{path}: {what} has its data in {location!r}, a link that leaves the folder",
            hint="replace the link by a copy (cp -L)",
        )
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            f"{path}: {what} has its data in {location!r}, which is not a regular file", hint=hint
        )
    if status.st_nlink > 1:
        raise InputError(
            f"{path}: {what} has its data in {location!r}, a file with several hard links",
            hint="such a link can point anywhere; replace it by a copy",
        )
    return file


def _natural(text: str, key: str, what: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InputError(
            f"{path}: {what} has the external data {key} {text[:40]!r}",
            hint="it must be a whole number of bytes",
        )
    return int(text)
