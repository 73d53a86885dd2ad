"""Image folders: the numbers that come out, labels, and bad files."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from greencc.calibration import Preprocess, load_preprocess, open_data, parse_preprocess
from greencc.core.data import Batch, TensorSpec
from greencc.core.errors import ExitCode, GreenccError, InputError, UnavailableError

Array = np.ndarray[Any, Any]
F32 = np.dtype("float32")
NCHW = [TensorSpec("x", F32, ("N", 3, 8, 8))]


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def folder(path: Path, spec: str, **pictures: Array) -> Path:
    path.mkdir(exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels.squeeze()).save(path / f"{name}.png")
    (path / "preprocess.toml").write_text(spec)
    return path


def only(data: Path, spec: list[TensorSpec] = NCHW, **options: Any) -> Batch:
    (batch,) = open_data(data, spec, **options).batches(1000)
    return batch


def test_stretch_and_normalise_match_pillow_and_numpy(tmp_path: Path) -> None:
    pixels = picture(13, 21)
    spec = 'resize = 8\nmean = [127, 126, 125]\nstd = [128, 64, 32]\nlayout = "NCHW"\n'
    got = only(folder(tmp_path / "d", spec, a=pixels)).feeds["x"]
    resized = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR), np.float32)
    want = (
        (resized - np.array([127, 126, 125], np.float32)) / np.array([128, 64, 32], np.float32)
    ).transpose(2, 0, 1)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], want)


def test_shorter_side_centre_crop_scale_and_bgr(tmp_path: Path) -> None:
    pixels = picture(20, 30)
    spec = (
        '[preprocess]\nresize = 10\nmode = "shorter"\ncrop = [8, 8]\ncolor = "BGR"\nlayout = "NHWC"\n'
        'interpolation = "bicubic"\nscale = "1/255"\nmean = [0.1, 0.2, 0.3]\nstd = 0.5\n'
    )
    got = only(folder(tmp_path / "d", spec, a=pixels), [TensorSpec("x", F32, ("N", 8, 8, 3))]).feeds["x"]
    resized = np.asarray(Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC))
    bgr = resized[1:9, 4:12, ::-1].astype(np.float64)
    np.testing.assert_allclose(got[0], (bgr / 255 - [0.1, 0.2, 0.3]) / 0.5, rtol=0, atol=1e-6)


def test_luminance_and_integer_pixels(tmp_path: Path) -> None:
    pixels = picture(8, 8)
    data = folder(tmp_path / "d", 'color = "L"\ndtype = "uint8"\n', a=pixels)
    got = only(data, [TensorSpec("x", np.dtype("uint8"), ("N", 1, 8, 8))]).feeds["x"]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0, 0], np.asarray(Image.fromarray(pixels).convert("L")))
    data = folder(tmp_path / "e", 'mean = 128\ndtype = "int8"\nlayout = "NHWC"\n', a=pixels)
    got = only(data, [TensorSpec("x", np.dtype("int8"), ("N", 8, 8, 3))]).feeds["x"]
    np.testing.assert_array_equal(got[0], (pixels.astype(int) - 128).astype(np.int8))


@pytest.mark.parametrize("spec", ['dtype = "int8"', 'dtype = "uint8"\nmean = 300'])
def test_integer_pixels_out_of_range_are_refused(tmp_path: Path, spec: str) -> None:
    data = folder(tmp_path / "d", spec, a=np.full((8, 8, 3), 200, np.uint8))
    with pytest.raises(InputError, match=r"a.png: preprocessed pixels reach"):
        only(data)


def test_exif_orientation_alpha_palette_and_grey(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "resize = 8")
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    turned.save(data / "1.png", exif=exif)
    Image.fromarray(upright).convert("RGBA").save(data / "2.png")
    Image.fromarray(upright).convert("P").save(data / "3.png")
    Image.fromarray(upright[:, :, 0]).save(data / "4.png")
    Image.fromarray(upright).convert("1").save(data / "5.bmp")
    Image.fromarray(upright[:, :, 0].astype(np.uint16) * 257).save(data / "6.png")
    Image.fromarray(upright).save(data / "7.webp", lossless=True)
    Image.fromarray(upright).save(data / "8.jpg", quality=100)
    got = only(data).feeds["x"]
    assert len(got) == 8
    for sample in got[:7]:
        np.testing.assert_array_equal(sample, upright.transpose(2, 0, 1))
    np.testing.assert_allclose(got[7], upright.transpose(2, 0, 1), atol=3)


def test_images_of_other_sizes_without_resize(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "", a=picture(4, 6), b=picture(4, 6, 1), c=picture(5, 5))
    shapes = [
        b.feeds["x"].shape for b in open_data(data, [TensorSpec("x", F32, (None, 3, "H", "W"))]).batches(9)
    ]
    assert shapes == [(2, 3, 4, 6), (1, 3, 5, 5)]
    with pytest.raises(InputError, match=r"a.png: 'x' has shape \[1, 3, 4, 6\]") as caught:
        open_data(data, NCHW)
    assert "[preprocess]" in (caught.value.hint or "")


def test_digest_equals_that_of_the_same_arrays(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "resize = 8", **{f"p{i}": picture(9, 9, i) for i in (1, 2, 10)})
    (data / "labels.csv").write_text("p1.png,1\np2.png,2 3\np10.png,4\n")
    source = open_data(data, NCHW, role="evaluation")
    batch = only(data, role="evaluation")
    assert batch.labels is not None
    assert batch.labels.tolist() == [[1, -1], [2, 3], [4, -1]]
    np.savez(tmp_path / "d.npz", x=batch.feeds["x"], labels=batch.labels)
    assert open_data(tmp_path / "d.npz", NCHW).digest() == source.digest()
    np.savez(tmp_path / "e.npz", x=batch.feeds["x"])
    assert open_data(tmp_path / "e.npz", NCHW).digest() == open_data(data, NCHW).digest() != source.digest()


def test_labels_of_a_neighbouring_csv_and_case_file(tmp_path: Path) -> None:
    data = folder(tmp_path / "images", "", a=picture(8, 8), b=picture(8, 8, 1), c=picture(8, 8, 2))
    (data / "preprocess.toml").unlink()
    (tmp_path / "case.toml").write_text('name = "m"\n[preprocess]\nresize = 8\n')
    (tmp_path / "labels.csv").write_text("file,labels\nimages/c.png,7\na.png,5 6\nelsewhere.png,9\n")
    source = open_data(data, NCHW, role="evaluation")
    assert source.count == 2
    assert "1 of 3 images" in source.notes[0]  # type: ignore[attr-defined]
    (batch,) = source.batches(8)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, 6], [7, -1]]
    np.testing.assert_array_equal(batch.feeds["x"][1], picture(8, 8, 2).transpose(2, 0, 1))
    assert not open_data(data, NCHW, role="calibration").has_labels
    with pytest.raises(InputError, match=r"line 4: there is no image 'elsewhere.png'"):
        open_data(data, NCHW, labels=tmp_path / "labels.csv")


def test_images_in_subfolders(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    folder(data / "sub", "", b=picture(8, 8, 1))
    (data / "labels.csv").write_text("sub/b.png,3\n./a.png,4\n")
    batch = only(data, role="evaluation")
    assert batch.labels is not None
    assert batch.labels.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../x.png,1\n", r"line 1: '../x.png' leads outside"),
        ("/etc/x.png,1\n", r"line 1: '/etc/x.png' leads outside"),
        ("a.png,1\nq.png,2\n", r"line 2: there is no image 'q.png'"),
        ("a.png,1\na.png,2\n", r"line 2: 'a.png' has two lines"),
        ("file,label\na.png,cat\n", r"line 2: label 'cat' is not a number"),
        ("a.png\n", r"line 1: there is no label"),
        ("file,label\na.png,\n", r"line 2: label '' is not a number"),
        ("file,label\n", "none of the images"),
        ("", "none of the images"),
        ("a.png,1 -4\n", "must be class numbers"),
        ("a.png,\xe9\n", "not a text table"),
    ],
)
def test_bad_label_tables(tmp_path: Path, text: str, message: str) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    (data / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        open_data(data, NCHW, role="evaluation")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims the given size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [body, b"IDAT" + zlib.compress(bytes(100)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def good_png(tmp_path: Path) -> bytes:
    Image.fromarray(picture(8, 8)).save(tmp_path / "good.png")
    return (tmp_path / "good.png").read_bytes()


def test_corrupt_and_hostile_images_are_named(tmp_path: Path) -> None:
    good = good_png(tmp_path)
    cases = {
        "text": (b"not an image", "is not a JPEG"),
        "empty": (b"", "is not a JPEG"),
        "cut": (good[: len(good) // 2], "cannot read|is corrupt"),
        "gif": (b"GIF89a" + bytes(30), "is not a JPEG"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not a JPEG"),
        "bomb": (png_of(20000, 10000), "decompression bomb"),
        "giant": (png_of(2**31 - 1, 2**31 - 1), "decompression bomb"),
    }
    for name, (content, message) in cases.items():
        data = folder(tmp_path / name, "resize = 8")
        (data / f"{name}.png").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            open_data(data, NCHW)
        assert f"{name}.png" in caught.value.message


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    good_png(tmp_path)
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    (data / "b.png").symlink_to(tmp_path / "good.png")
    with pytest.raises(InputError, match="outside of the data folder"):
        open_data(data, NCHW)
    (data / "b.png").unlink()
    (data / "b.png").symlink_to(data / "a.png")
    assert open_data(data, NCHW).count == 2


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("resise = 8", "preprocess.resise is unknown", "did you mean 'resize'"),
        ("resize = 0", "preprocess.resize is 0", "height, width"),
        ("resize = [8, 8, 8]", "preprocess.resize is", "height, width"),
        ("resize = true", "preprocess.resize is", "height, width"),
        ("crop = [8, 99]", "a crop of 8x99 does not fit", "resize first"),
        ("crop = 1000000", "preprocess.crop is", "height, width"),
        ('layout = "CHW"', "preprocess.layout is 'CHW'", "NCHW"),
        ('mode = "short"', "preprocess.mode is 'short'", "did you mean 'shorter'"),
        ('mode = "shorter"', "there is no resize", ""),
        ('interpolation = "lanczos"', "interpolation is 'lanczos'", "bilinear"),
        ('color = ["RGB"]', "preprocess.color is", "RGB"),
        ("mean = [1, 2]", "mean has 2 values, color RGB has 3 channels", ""),
        ("mean = []", "preprocess.mean is", "for each channel"),
        ('mean = "a"', "preprocess.mean is", "for each channel"),
        ("mean = nan", "preprocess.mean is nan", "for each channel"),
        (f"mean = 1{'0' * 400}", "preprocess.mean is", "for each channel"),
        ("std = [1, 0, 1]", "std has a 0", ""),
        ('color = "L"\nstd = [1, 1, 1]', "std has 3 values, color L has 1 channel", ""),
        ("scale = 0", "preprocess.scale is not a factor", "1/255"),
        ('scale = "1/0"', "preprocess.scale is not a factor", "1/255"),
        ('scale = "exit()"', "preprocess.scale is not a factor", "1/255"),
        ('dtype = "float64"', "preprocess.dtype is 'float64'", "float32"),
        ("preprocess = 3", "'preprocess' is not a table", ""),
        ("resize = ", "is not valid TOML", ""),
        ('x = "\xff"', "is not valid TOML", ""),
    ],
)
def test_bad_preprocessing(tmp_path: Path, text: str, message: str, hint: str) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    (data / "preprocess.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        open_data(data, NCHW)
    assert hint in (caught.value.hint or "")


def test_preprocessing_is_needed_and_can_be_given(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "", a=picture(9, 9))
    (data / "preprocess.toml").rename(tmp_path / "steps.toml")
    with pytest.raises(InputError, match="nothing says how to preprocess") as caught:
        open_data(data, NCHW)
    assert "preprocess.toml" in (caught.value.hint or "")
    (tmp_path / "steps.toml").write_text("resize = [8, 8]")
    assert open_data(data, NCHW, preprocess=tmp_path / "steps.toml").count == 1
    assert (
        load_preprocess(tmp_path / "steps.toml")
        == Preprocess(resize=(8, 8))
        == parse_preprocess({"resize": 8}, "t")
    )
    with pytest.raises(InputError, match="cannot read"):
        open_data(data, NCHW, preprocess=tmp_path / "absent.toml")


def test_models_with_several_inputs_do_not_take_images(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    with pytest.raises(InputError, match="the model has 2 inputs"):
        open_data(data, [*NCHW, TensorSpec("y", F32, None)])
    np.savez(data / "b.npz", x=np.zeros(1))
    with pytest.raises(InputError, match="mixes images and arrays"):
        open_data(data, NCHW)


def test_float_pixels_for_an_integer_model(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    with pytest.raises(InputError, match=r"a.png: 'x' is float32, the model takes uint8") as caught:
        open_data(data, [TensorSpec("x", np.dtype("uint8"), None)])
    assert "dtype" in (caught.value.hint or "")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "d", "", a=picture(8, 8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnavailableError, match="needs Pillow") as caught:
        open_data(data, NCHW)
    assert caught.value.hint == "pip install 'greencc[images]'"
    assert caught.value.exit_code is ExitCode.UNAVAILABLE


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        data = folder(tmp_path / f"{n}", "resize = 64", **{f"p{i}": picture(8, 8, i) for i in range(n)})
        source = open_data(data, [TensorSpec("x", F32, (None, 3, 64, 64))])
        tracemalloc.start()
        try:
            assert sum(batch.count for batch in source.batches(4)) == n
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(120) < peak(16) + 100_000


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=4)), min_size=1, max_size=4),
    kind=st.booleans(),
)
def test_mutated_images_give_pixels_or_a_clear_error(
    tmp_path: Path, edits: list[tuple[int, bytes]], kind: bool
) -> None:
    data = tmp_path / "d"
    suffix = "png" if kind else "jpg"
    if not data.exists():
        folder(data, "resize = 8")
    for old in data.glob("a.*"):
        old.unlink()
    Image.fromarray(picture(8, 8)).save(data / f"a.{suffix}")
    content = bytearray((data / f"a.{suffix}").read_bytes())
    for at, new in edits:
        content[at : at + len(new)] = new
    (data / f"a.{suffix}").write_bytes(content)
    try:
        source = open_data(data, NCHW)
    except GreenccError as error:
        assert "a." in error.message  # noqa: PT017
    else:
        assert source.count == 1
