"""Folders of images, decoded and preprocessed one batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from greencc.calibration.files import contained_files
from greencc.calibration.fit import Fit
from greencc.calibration.preprocess import Color, Interpolation, Preprocess
from greencc.calibration.source import Batches, Indices, Source, rebatch
from greencc.core.data import Array, Batch, TensorSpec
from greencc.core.errors import GreenccError, InputError, UnavailableError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


class ImageSource(Source):
    """Images of a folder as samples of a single-input model.

    Args:
        folder: Where the images are; subfolders count.
        files: The images, in order.
        preprocess: How pixels become inputs.
        spec: The model's input.

    Raises:
        UnavailableError: Pillow is not installed.
        InputError: There are no images.
    """

    def __init__(self, folder: Path, files: Sequence[Path], preprocess: Preprocess, spec: TensorSpec) -> None:
        _pillow()
        if not files:
            raise InputError(f"{folder} holds no images", hint=f"known: {', '.join(IMAGE_SUFFIXES)}")
        super().__init__(str(folder), len(files))
        self._files = tuple(files)
        self._preprocess = preprocess
        self._spec = spec

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Yield batches; only the wanted images are opened."""
        files = self._files if wanted is None else [self._files[i] for i in wanted]
        return rebatch((self._sample(file) for file in files), size)

    def _sample(self, file: Path) -> Batch:
        pixels = decode(file, self._preprocess)
        try:
            sample = self._preprocess.normalize(pixels)
        except InputError as error:
            raise InputError(f"{file}: {error.message}", hint=error.hint) from error
        fit = Fit(self._spec, str(file))
        array = sample[None]
        try:
            fit.check(array.shape, array.dtype)
        except InputError as error:
            raise InputError(
                error.message, hint="adjust resize, crop, color, layout or dtype in [preprocess]"
            ) from error
        return Batch({self._spec.name: fit.convert(array, range(1))})


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and its subfolders, in natural order of their relative paths."""
    return contained_files(folder, IMAGE_SUFFIXES, recursive=True)


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnavailableError(
            "reading images needs Pillow, which is not installed", hint="pip install 'greencc[images]'"
        ) from error
    return Image, ImageOps


def decode(path: Path, preprocess: Preprocess) -> Array:
    """Decode, orient (EXIF), convert, resize and crop an image.

    Returns:
        uint8 pixels (height, width, channels) as RGB or L. Alpha is dropped; of an animation the first frame
        counts; 16-bit grey keeps its upper 8 bits.

    Raises:
        InputError: The file is corrupt, no JPEG, PNG, BMP or WebP, or a decompression bomb.
    """
    image_module, ops = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(path, formats=_FORMATS) as image:
                image.load()
                return _pixels(image, ops, preprocess)
    except (image_module.DecompressionBombWarning, image_module.DecompressionBombError) as error:
        raise InputError(f"{path} has too many pixels: refused as a decompression bomb") from error
    except image_module.UnidentifiedImageError as error:
        raise InputError(f"{path} is not a JPEG, PNG, BMP or WebP image") from error
    except GreenccError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # Pillow's decoders raise SyntaxError, ValueError, struct.error and more on hostile bytes.
        raise InputError(f"{path} is corrupt: {error}") from error


def _pixels(image: Image.Image, ops: Any, preprocess: Preprocess) -> Array:
    from PIL import Image

    image = ops.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("L" if preprocess.color is Color.L else "RGB")
    height, width = preprocess.resized(image.height, image.width)
    if (height, width) != (image.height, image.width):
        if height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            raise InputError(f"resizing {image.width}x{image.height} pixels would give {width}x{height}")
        filters = {
            Interpolation.NEAREST: Image.Resampling.NEAREST,
            Interpolation.BILINEAR: Image.Resampling.BILINEAR,
            Interpolation.BICUBIC: Image.Resampling.BICUBIC,
        }
        image = image.resize((width, height), filters[preprocess.interpolation])
    if preprocess.crop is not None:
        crop_h, crop_w = preprocess.crop
        if crop_h > height or crop_w > width:
            raise InputError(
                f"a crop of {crop_h}x{crop_w} does not fit into {height}x{width} pixels", hint="resize first"
            )
        top, left = round((height - crop_h) / 2), round((width - crop_w) / 2)
        image = image.crop((left, top, left + crop_w, top + crop_h))
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
