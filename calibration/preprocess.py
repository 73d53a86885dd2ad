"""How images become model inputs, as data: the `[preprocess]` table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import InputError, did_you_mean

TABLE = "preprocess"


class ResizeMode(Enum):
    """STRETCH to exactly the size; SHORTER scales so that the image covers the size, aspect kept."""

    STRETCH = "stretch"
    SHORTER = "shorter"


class Interpolation(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Color(Enum):
    RGB = "RGB"
    BGR = "BGR"
    L = "L"


class Layout(Enum):
    NCHW = "NCHW"
    NHWC = "NHWC"


class PixelType(Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"
    INT8 = "int8"


@dataclass(frozen=True)
class Preprocess:
    """Image preprocessing, applied in the order of the fields.

    The result is ``(pixel * scale - mean) / std`` with pixels in 0..255.

    Attributes:
        resize: Height and width (an int for both); None leaves the size alone. With mode SHORTER the image is
            scaled until both sides are at least this, as torchvision's `Resize(int)` does for squares.
        mode: See `ResizeMode`.
        interpolation: Pillow's antialiased filters on 8-bit pixels.
        crop: Height and width of the centre crop; None leaves the size alone.
        color: Channel order; L is one channel of luminance (ITU-R 601).
        layout: Axis order.
        scale: Factor on the pixels; in TOML a number or a fraction such as "1/255".
        mean: Per channel, in the order of `color`, or one for all, in units of ``pixel * scale``.
        std: Likewise.
        dtype: Element type; integers are rounded to the nearest and must be in range.
    """

    resize: tuple[int, int] | None = None
    mode: ResizeMode = ResizeMode.STRETCH
    interpolation: Interpolation = Interpolation.BILINEAR
    crop: tuple[int, int] | None = None
    color: Color = Color.RGB
    layout: Layout = Layout.NCHW
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: PixelType = PixelType.FLOAT32

    @property
    def channels(self) -> int:
        return 1 if self.color is Color.L else 3

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width an image of the given size is scaled to."""
        if self.resize is None:
            return height, width
        if self.mode is ResizeMode.STRETCH:
            return self.resize
        want_h, want_w = self.resize
        if want_h * width >= want_w * height:
            return want_h, max(want_w, int(want_h * width / height))
        return max(want_h, int(want_w * height / width)), want_w

    def normalize(self, pixels: Array) -> Array:
        """Turn uint8 pixels (height, width, channels) into one sample in `layout` and `dtype`.

        Raises:
            InputError: A value leaves the range of an integer `dtype`.
        """
        if self.color is Color.BGR:
            pixels = pixels[:, :, ::-1]
        dtype = np.dtype(self.dtype.value)
        if dtype == np.uint8 and self.scale == 1.0 and not self.mean and not self.std:
            values: Array = pixels
        else:
            values = pixels.astype(np.float32)
            if self.scale != 1.0:
                values *= np.float32(self.scale)
            if self.mean:
                values -= np.array(self.mean, np.float32)
            if self.std:
                values /= np.array(self.std, np.float32)
            if dtype.kind in "iu":
                values = np.rint(values)
                info = np.iinfo(dtype)
                if values.min() < info.min or values.max() > info.max:
                    raise InputError(
                        f"preprocessed pixels reach {values.min():g}..{values.max():g}, outside of {dtype}",
                        hint="adjust scale, mean and std, or set dtype",
                    )
            values = values.astype(dtype, copy=False)
        if self.layout is Layout.NCHW:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)


def load_preprocess(path: Path) -> Preprocess:
    """Read a TOML file: its `[preprocess]` table, or the whole file when there is none.

    Raises:
        InputError: The file is unreadable, no TOML, or has unknown keys or values.
    """
    document = _document(path)
    table = document.get(TABLE, document)
    if not isinstance(table, dict):
        raise InputError(f"{path}: 'preprocess' is not a table", hint="write [preprocess]")
    return parse_preprocess(table, str(path))


def find_preprocess(folder: Path) -> Path | None:
    """The specification of an image folder: `preprocess.toml` in or beside it, or a `case.toml` with the table."""
    for candidate in (folder / "preprocess.toml", folder.parent / "preprocess.toml"):
        if candidate.is_file():
            return candidate
    for candidate in (folder / "case.toml", folder.parent / "case.toml"):
        if candidate.is_file() and TABLE in _document(candidate):
            return candidate
    return None


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error


def parse_preprocess(table: Mapping[str, Any], where: str) -> Preprocess:
    """Check a `[preprocess]` table.

    Raises:
        InputError: A key is unknown ("did you mean ..."), or a value has the wrong type or range.
    """
    known = {field.name for field in fields(Preprocess)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{where}: preprocess.{key}"
        if key not in known:
            raise InputError(f"{place} is unknown", hint=did_you_mean(key, known))
        if key in ("resize", "crop"):
            values[key] = _size(value, place)
        elif key in ("mean", "std"):
            values[key] = _floats(value, place)
        elif key == "scale":
            values[key] = _factor(value, place)
        else:
            values[key] = _member(_ENUMS[key], value, place)
    result = Preprocess(**values)
    for key, numbers in (("mean", result.mean), ("std", result.std)):
        if len(numbers) not in (0, 1, result.channels):
            raise InputError(
                f"{where}: preprocess.{key} has {len(numbers)} values, color {result.color.value} "
                f"has {result.channels} channel{'s' * (result.channels > 1)}"
            )
    if any(value == 0 for value in result.std):
        raise InputError(f"{where}: preprocess.std has a 0: it divides")
    if result.mode is ResizeMode.SHORTER and result.resize is None:
        raise InputError(f"{where}: preprocess.mode is 'shorter', but there is no resize")
    return result


_ENUMS: Mapping[str, type[Enum]] = {
    "mode": ResizeMode,
    "interpolation": Interpolation,
    "color": Color,
    "layout": Layout,
    "dtype": PixelType,
}
_SIDE_LIMIT = 16384


def _number(value: Any) -> bool:
    # A bound rather than isfinite(): TOML integers may exceed what a float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _size(value: Any, place: str) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    good = isinstance(sides, list) and len(sides) == 2
    if not good or not all(type(side) is int and 0 < side <= _SIDE_LIMIT for side in sides):
        raise InputError(
            f"{place} is {value!r}", hint=f"a side or [height, width], 1 to {_SIDE_LIMIT} pixels"
        )
    return sides[0], sides[1]


def _floats(value: Any, place: str) -> tuple[float, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(_number(item) for item in items):
        raise InputError(f"{place} is {value!r}", hint="a number, or a list of one number for each channel")
    return tuple(float(item) for item in items)


def _factor(value: Any, place: str) -> float:
    if isinstance(value, str) and (
        match := re.fullmatch(r"\s*([0-9.]{1,20})\s*/\s*([0-9.]{1,20})\s*", value)
    ):
        try:
            value = float(match[1]) / float(match[2])
        except (ValueError, ZeroDivisionError):
            value = None
    if not _number(value) or value == 0:
        raise InputError(f"{place} is not a factor", hint='a number, or a fraction such as "1/255"')
    return float(value)


def _member(kind: type[Enum], value: Any, place: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        known = [str(member.value) for member in kind]
        raise InputError(f"{place} is {value!r}", hint=did_you_mean(str(value), known)) from None
