"""Arrays on disk: what is read, what is refused, and how much memory it takes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greencc.calibration import Limits, open_data
from greencc.core.data import TensorSpec
from greencc.core.errors import ExitCode, GreenccError, InputError, UsageError

F32 = np.dtype("float32")
IMAGE = [TensorSpec("x", F32, ("N", 3, 4, 5))]
PAIR = [TensorSpec("ids", np.dtype("int64"), ("N", "T")), TensorSpec("mask", np.dtype("bool"), ("N", "T"))]


def images(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, 3, 4, 5)).astype(np.float32)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def whole(source: Any, size: int = 7) -> dict[str, np.ndarray[Any, Any]]:
    batches = list(source.batches(size))
    return {name: np.concatenate([b.feeds[name] for b in batches]) for name in batches[0].feeds}


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_npz_streams_every_sample_in_order_with_its_label(tmp_path: Path, size: int) -> None:
    x, labels = images(50), np.arange(50)
    source = open_data(save(tmp_path / "d.npz", x=x, labels=labels), IMAGE)
    batches = list(source.batches(size))
    assert source.count == 50
    assert source.has_labels
    assert not source.synthetic
    assert [b.count for b in batches[:-1]] == [size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), x)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), labels)
    np.testing.assert_array_equal(whole(source)["x"], x)


def test_a_batch_spans_the_chunks_the_file_is_read_in(tmp_path: Path) -> None:
    x = np.arange(300 * 4096, dtype=np.float32).reshape(300, 4096)
    source = open_data(save(tmp_path / "d.npz", x=x), [TensorSpec("x", F32, ("N", 4096))])
    assert [b.count for b in source.batches(70)] == [70, 70, 70, 70, 20]
    np.testing.assert_array_equal(whole(source, 70)["x"], x)


def test_several_inputs_are_read_side_by_side(tmp_path: Path) -> None:
    ids = np.arange(60).reshape(20, 3)
    source = open_data(save(tmp_path / "d.npz", mask=ids % 2 == 0, ids=ids.astype(np.int32)), PAIR)
    got = whole(source)
    np.testing.assert_array_equal(got["ids"], ids)
    np.testing.assert_array_equal(got["mask"], ids % 2 == 0)
    assert got["ids"].dtype == np.int64
    assert not source.has_labels


@pytest.mark.parametrize(
    ("have", "want"),
    [("float64", "float32"), ("uint8", "float32"), ("int64", "float32"), ("int64", "int32"), ("int32", "int64"),
     ("float32", "float16"), ("bool", "float32"), (">f4", "float32"), ("bool", "int64")],
)  # fmt: skip
def test_conversions_that_keep_the_values(tmp_path: Path, have: str, want: str) -> None:
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(have)
    source = open_data(save(tmp_path / "d.npz", x=x), [TensorSpec("x", np.dtype(want), (None, 2))])
    got = whole(source)["x"]
    assert got.dtype == np.dtype(want)
    np.testing.assert_array_equal(got, x.astype(want))


def test_bfloat16_inputs_are_fed_from_floats(tmp_path: Path) -> None:
    import ml_dtypes

    x = np.array([[0.5], [2.0]], np.float32)
    spec = TensorSpec("x", np.dtype(ml_dtypes.bfloat16), (None, 1))
    got = whole(open_data(save(tmp_path / "d.npz", x=x), [spec]))["x"]
    assert got.dtype == spec.dtype
    np.testing.assert_array_equal(got.astype(np.float32), x)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_column_major_arrays_are_read_too(tmp_path: Path, kind: str) -> None:
    x = np.asfortranarray(np.arange(1200, dtype=np.float32).reshape(100, 12))
    path = tmp_path / f"d.{kind}"
    np.savez(path, x=x) if kind == "npz" else np.save(path, x)
    source = open_data(path, [TensorSpec("x", F32, (None, 12))])
    np.testing.assert_array_equal(whole(source)["x"], x)


def test_npy_for_a_single_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(9))
    np.testing.assert_array_equal(whole(open_data(tmp_path / "d.npy", IMAGE))["x"], images(9))


def test_folders_are_concatenated_in_natural_order(tmp_path: Path) -> None:
    x = images(30)
    for i, part in enumerate(np.split(x, [3, 11])):
        np.savez(tmp_path / f"part{[2, 9, 10][i]}.npz", x=part, labels=np.full(len(part), i))
    source = open_data(tmp_path, IMAGE)
    batches = list(source.batches(8))
    assert [b.count for b in batches] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), x)
    assert [int(v) for b in batches if b.labels is not None for v in b.labels] == [0] * 3 + [1] * 8 + [2] * 19


def test_folder_of_npy_named_after_inputs_is_one_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(6).reshape(3, 2))
    np.save(tmp_path / "mask.npy", np.ones((3, 2), bool))
    np.save(tmp_path / "labels.npy", np.array([2, 1, 0]))
    source = open_data(tmp_path, PAIR)
    assert (source.count, source.has_labels) == (3, True)


def test_files_of_other_lengths_make_shorter_batches(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 4), ("c", 6)):
        np.savez(tmp_path / name, ids=np.full((3, width), width), mask=np.ones((3, width), bool))
    batches = list(open_data(tmp_path, PAIR).batches(4))
    assert [b.feeds["ids"].shape for b in batches] == [(4, 4), (2, 4), (3, 6)]


def test_digest_is_of_the_content_not_of_the_container(tmp_path: Path) -> None:
    x = images(20)
    folder, other = tmp_path / "npy", tmp_path / "npz"
    folder.mkdir()
    other.mkdir()
    np.save(folder / "1.npy", x[:13])
    np.save(folder / "2.npy", x[13:].astype(np.float64))
    np.savez(other / "all.npz", x=np.asfortranarray(x))
    digests = {
        open_data(save(tmp_path / "d.npz", x=x), IMAGE).digest(),
        open_data(folder, IMAGE).digest(),
        open_data(other, IMAGE).digest(),
    }
    assert len(digests) == 1
    changed = x.copy()
    changed[19, 2, 3, 4] += 1
    assert open_data(save(tmp_path / "c.npz", x=changed), IMAGE).digest() not in digests
    assert open_data(save(tmp_path / "r.npz", x=x[::-1]), IMAGE).digest() not in digests
    assert open_data(save(tmp_path / "l.npz", x=x, labels=np.zeros(20)), IMAGE).digest() not in digests


def test_digest_reads_the_data_once(tmp_path: Path) -> None:
    source = open_data(save(tmp_path / "d.npz", x=images(20)), IMAGE)
    first = source.digest()
    (tmp_path / "d.npz").unlink()
    assert source.digest() == first


def test_constant_calibration_data_are_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((5, 3, 4, 5), np.float32))
    assert "all 5 samples" in open_data(path, IMAGE).notes[0]  # type: ignore[attr-defined]
    assert open_data(path, IMAGE, role="evaluation").notes == ()  # type: ignore[attr-defined]
    varied = save(tmp_path / "v.npz", x=images(5))
    assert open_data(varied, IMAGE).notes == ()  # type: ignore[attr-defined]


def test_limit_spreads_over_the_data(tmp_path: Path) -> None:
    x = images(100)
    labels = np.arange(100) // 10
    source = open_data(save(tmp_path / "d.npz", x=x, labels=labels), IMAGE, limit=20)
    got = np.concatenate([b.labels for b in source.batches(6) if b.labels is not None])
    assert source.count == 20
    np.testing.assert_array_equal(np.bincount(got), np.full(10, 2))
    assert open_data(tmp_path / "d.npz", IMAGE, limit=1000).count == 100


def test_a_model_input_may_be_called_labels(tmp_path: Path) -> None:
    source = open_data(save(tmp_path / "d.npz", labels=images(4)), [TensorSpec("labels", F32, None)])
    assert not source.has_labels
    assert source.count == 4


def test_label_files_for_arrays(tmp_path: Path) -> None:
    data = save(tmp_path / "d.npz", x=images(3), labels=np.zeros(3))
    np.save(tmp_path / "l.npy", np.array([[4], [5], [6]], np.uint8))
    np.savez(tmp_path / "l.npz", labels=np.array([4, 5, 6]))
    (tmp_path / "l.txt").write_text("4\n5\n\n6\n")
    (tmp_path / "l.csv").write_text("label\n4\n5\n6\n")
    for name in ("l.npy", "l.npz", "l.txt", "l.csv"):
        (batch,) = open_data(data, IMAGE, labels=tmp_path / name).batches(3)
        assert batch.labels is not None
        assert batch.labels.dtype == np.int64
        assert batch.labels.tolist() == [4, 5, 6]
    (tmp_path / "m.txt").write_text("4\n5;7 8\n6 1\n")
    (batch,) = open_data(data, IMAGE, labels=tmp_path / "m.txt").batches(3)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[4, -1, -1], [5, 7, 8], [6, 1, -1]]
    (tmp_path / "f.txt").write_text("0.5\n1\n-2e3\n")
    (batch,) = open_data(data, IMAGE, labels=tmp_path / "f.txt").batches(3)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0.5, 1.0, -2000.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "1\n2\n", "3 samples, but there are 2 labels"),
        ("l.txt", "1\ncat\n2\n", "line 2: label 'cat' is not a number"),
        ("l.txt", "1\nnan\n2\n", "is not a number"),
        ("l.txt", "", "holds no labels"),
        ("l.csv", "a.jpg,1\nb.jpg,2\nc.jpg,3\n", "2 columns"),
        ("l.csv", '1\n"2\n', "not a text table"),
        ("l.csv", "1\n1 -2\n3\n", "must be class numbers"),
        ("l.txt", "1\n99999999999999999999\n2\n", "is not a number"),
        ("l.json", "[1]", "cannot be read from .json"),
    ],
)
def test_bad_label_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    data = save(tmp_path / "d.npz", x=images(3))
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        open_data(data, IMAGE, labels=tmp_path / name)
    with pytest.raises(InputError, match="cannot read"):
        open_data(data, IMAGE, labels=tmp_path / "absent.txt")
    with pytest.raises(InputError, match="no array 'labels'"):
        open_data(data, IMAGE, labels=data)


def member(data: bytes, name: str = "x.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def raw_header(text: str, data: bytes = b"") -> bytes:
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body + data


def two_members() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", npy(images(2)))
        archive.writestr("y.npy", npy(images(3)))
    return buffer.getvalue().replace(b"y.npy", b"x.npy")


def flipped_byte() -> bytes:
    data = bytearray(member(npy(images(2)), method=zipfile.ZIP_STORED))
    data[data.index(b"\n") + 40] ^= 0xFF
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(member(npy(images(2))))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def claims_more_than_it_holds() -> bytes:
    # The central directory and the array header agree on 3 samples; the compressed stream holds 2.
    short = npy(images(2)).replace(b"(2, 3, 4, 5)", b"(3, 3, 4, 5)")
    data = bytearray(member(short))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", len(short) + 3 * 4 * 5 * 4)
    return bytes(data)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4, 5), }"
BAD_NPZ: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "truncated or corrupt"),
    "random bytes": (lambda: b"\x17\x99" * 500, "truncated or corrupt"),
    "truncated": (lambda: member(npy(images(40)))[:-300], "truncated or corrupt"),
    "no members": (lambda: b"PK\x05\x06" + bytes(18), "no array for the model input 'x'"),
    "pickle": (lambda: member(npy(np.array([{}], object), allow_pickle=True)), "unpickling"),
    "object descr": (lambda: member(raw_header(HEADER.replace("<f4", "|O"))), "unpickling"),
    "text": (lambda: member(npy(np.array(["a", "b"]))), "holds text"),
    "records": (lambda: member(npy(np.zeros(2, [("a", "f4")]))), "holds records"),
    "complex": (lambda: member(npy(np.zeros(2, complex))), "complex numbers"),
    "scalar": (lambda: member(npy(np.array(1, np.float32))), "single number"),
    "not an array": (lambda: member(b"hello there"), "is not a NumPy array"),
    "no .npy name": (lambda: member(npy(images(2)), "x.txt"), "is not an array"),
    "path as name": (lambda: member(npy(images(2)), "../../x.npy"), "array '../../x' is no input"),
    "duplicated member": (two_members, "two members called 'x.npy'"),
    "expression in header": (lambda: member(raw_header(HEADER.replace("False", "exit()"))), "malformed header"),
    "deep header": (lambda: member(raw_header("{" + "(" * 9000)), "malformed header"),
    "long header": (lambda: member(raw_header(HEADER + " " * 20000)), "header of 2"),
    "negative shape": (lambda: member(raw_header(HEADER.replace("(2,", "(-2,"))), "malformed header"),
    "missing key": (lambda: member(raw_header("{'descr': '<f4', 'shape': (2,), }")), "malformed header"),
    "version": (lambda: member(b"\x93NUMPY\x09\x00" + bytes(100)), "unknown .npy version"),
    "cut header": (lambda: member(npy(images(2))[:30]), "truncated in its header"),
    "short data": (lambda: member(npy(images(2))[:-4]), "is truncated"),
    "huge shape": (lambda: member(npy(images(2)).replace(b"(2, 3, 4, 5)", b"(2, 3, 4, 9)")), "is truncated"),
    "trailing data": (lambda: member(npy(images(2)) + b"...."), "4 bytes more"),
    "lying size": (claims_more_than_it_holds, "truncated or corrupt|is truncated"),
    "wrong checksum": (flipped_byte, "Bad CRC-32"),
    "encrypted": (encrypted, "encrypted"),
    "exotic compression": (lambda: member(npy(images(2)), method=zipfile.ZIP_LZMA), "np.savez never does"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_archives(tmp_path: Path, case: str) -> None:
    make, message = BAD_NPZ[case]
    (tmp_path / "bad.npz").write_bytes(make())
    with pytest.raises(InputError, match=message) as caught:
        open_data(tmp_path / "bad.npz", IMAGE).digest()
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert "bad.npz" in caught.value.message


def test_zip_bombs_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.npz", x=np.zeros((20000, 3, 4, 5), np.float32))
    limits = Limits(ratio_free_bytes=1 << 20)
    with pytest.raises(InputError, match=r"expands .*-fold .* zip bomb"):
        open_data(path, IMAGE, limits=limits)
    with pytest.raises(InputError, match=r"declares .* zip bomb"):
        open_data(path, IMAGE, limits=Limits(total_bytes=1 << 20))
    with pytest.raises(InputError, match="has 1 members"):
        open_data(path, IMAGE, limits=Limits(members=0))
    assert open_data(path, IMAGE).count == 20000


def test_default_limits_refuse_a_bomb_of_many_gigabytes(tmp_path: Path) -> None:
    # 1 GiB of declared zeros in 1 MB: only the directory entry says so, nothing that big is made here.
    data = bytearray(member(npy(np.zeros((2, 3, 4, 5), np.float32))))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 30)
    (tmp_path / "bomb.npz").write_bytes(data)
    with pytest.raises(InputError, match="zip bomb"):
        open_data(tmp_path / "bomb.npz", IMAGE)


def test_a_giant_sample_is_refused(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 500000000), }"
    path = tmp_path / "d.npy"
    path.write_bytes(raw_header(text))
    os.truncate(path, path.stat().st_size + 2_000_000_000)
    with pytest.raises(InputError, match="one sample of 'x' takes"):
        open_data(path, [TensorSpec("x", F32, ("N", None))])


def spoiled(value: float) -> np.ndarray[Any, Any]:
    x = images(30)
    x[23, 1, 2, 3] = value
    return x


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "missing": ({"labels": np.zeros(2)}, "no array for the model input 'x'", "arrays here"),
    "renamed": ({"arr_0": images(2)}, "'arr_0' is no input", "the model's input is 'x'"),
    "unknown": ({"x": images(2), "xx": images(2)}, "'xx' is no input", "did you mean 'x'"),
    "no batch axis": ({"x": images(2)[0]}, r"\[3, 4, 5\], the model takes \[N, 3, 4, 5\]", r"array\[None\]"),
    "one axis more": ({"x": images(2)[:, None]}, "has shape", r"array.squeeze\(1\) fits"),
    "NHWC": ({"x": images(2).transpose(0, 2, 3, 1)}, "has shape", r"array.transpose\(0, 3, 1, 2\) fits"),
    "other size": ({"x": np.zeros((2, 3, 4, 6), np.float32)}, r"\[2, 3, 4, 6\]", "first axis is the samples"),
    "no samples": ({"x": images(0)}, "has 0 samples", ""),
    "complex dtype": ({"x": images(2).astype(np.complex64)}, "complex", ""),
    "labels of another length": ({"x": images(4), "labels": np.zeros(5)}, "'labels' has 5 samples, 'x' has 4", ""),
    "NaN": ({"x": spoiled(np.nan)}, "holds nan in sample 23", "finite"),
    "infinite": ({"x": spoiled(np.inf)}, "holds inf in sample 23", "finite"),
    "float64 too large": ({"x": spoiled(0).astype(np.float64) * 1e300}, "in sample 0", "finite float32"),
    "NaN label": ({"x": images(2), "labels": np.array([0.0, np.nan])}, "label is not finite", ""),
    "empty label rows": ({"x": images(2), "labels": np.zeros((2, 0))}, r"labels have the shape \[2, 0\]", ""),
    "large label": ({"x": images(2), "labels": np.full(2, 2**63, np.uint64)}, "range of int64", ""),
    "inexact integers": ({"x": np.full((2, 3, 4, 5), 2**24 + 1)}, "float32 cannot represent", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_the_model(tmp_path: Path, case: str) -> None:
    arrays, message, hint = BAD_ARRAYS[case]
    with pytest.raises(InputError, match=message) as caught:
        open_data(save(tmp_path / "d.npz", **arrays), IMAGE).digest()
    assert re.search(hint, caught.value.hint or "")


@pytest.mark.parametrize(
    ("have", "want", "message"),
    [
        (np.zeros((2, 3), np.float32), "int64", "is float32, the model takes int64"),
        (np.zeros((2, 3), np.int64), "bool", "is int64, the model takes bool"),
        (np.array([[1, 2, 3], [4, 5, 300]]), "uint8", "in sample 1, which uint8 cannot"),
        (np.array([[1, 2, 3], [4, 5, -3]]), "uint64", "in sample 1, which uint64 cannot"),
        (np.array([[1], [2**63]], np.uint64), "int64", "in sample 1, which int64 cannot"),
    ],
)
def test_conversions_that_lose_values(tmp_path: Path, have: Any, want: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(save(tmp_path / "d.npz", x=have), [TensorSpec("x", np.dtype(want), None)]).digest()


def test_missing_channel_axis_is_explained(tmp_path: Path) -> None:
    spec = [TensorSpec("x", F32, ("N", 1, 28, 28))]
    with pytest.raises(InputError) as caught:
        open_data(save(tmp_path / "d.npz", x=np.zeros((5, 28, 28), np.float32)), spec)
    assert "np.expand_dims(array, 1)" in (caught.value.hint or "")


def test_what_is_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images(2))
    np.savez(tmp_path / "b.npz", x=images(2))
    (tmp_path / "c.csv").write_text("1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        open_data(tmp_path / "absent.npz", IMAGE)
    with pytest.raises(InputError, match="no known kind"):
        open_data(tmp_path / "c.csv", IMAGE)
    with pytest.raises(InputError, match=r"there is nothing to read"):
        open_data(tmp_path / "empty", IMAGE)
    with pytest.raises(InputError, match=r"mixes .npz and .npy"):
        open_data(tmp_path, IMAGE)
    with pytest.raises(InputError, match="one array, the model has 2 inputs"):
        open_data(tmp_path / "a.npy", PAIR)
    with pytest.raises(UsageError, match="preprocessing file"):
        open_data(tmp_path / "b.npz", IMAGE, preprocess=tmp_path / "c.csv")
    with pytest.raises(UsageError, match="limit of 0"):
        open_data(tmp_path / "b.npz", IMAGE, limit=0)
    with pytest.raises(UsageError, match="batch size"):
        open_data(tmp_path / "b.npz", IMAGE).batches(0)


def test_models_that_cannot_be_fed(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=images(2))
    with pytest.raises(InputError, match="is a scalar"):
        open_data(path, [TensorSpec("x", F32, ())])
    with pytest.raises(InputError, match="only numbers"):
        open_data(path, [TensorSpec("x", np.dtype(object), None)])
    with pytest.raises(InputError, match="no inputs"):
        open_data(path, [])


def test_folder_with_labels_in_some_files_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images(2), labels=np.zeros(2))
    np.savez(tmp_path / "b.npz", x=images(2))
    with pytest.raises(InputError, match=r"1 of 2 files have labels, .*b.npz has none"):
        open_data(tmp_path, IMAGE)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "secret.npz", x=images(2))
    (tmp_path / "data" / "a.npz").symlink_to(tmp_path / "secret.npz")
    with pytest.raises(InputError, match="outside of the data folder"):
        open_data(tmp_path / "data", IMAGE)
    (tmp_path / "data" / "a.npz").unlink()
    (tmp_path / "data" / "b.npz").symlink_to(tmp_path / "data" / "gone.npz")
    with pytest.raises(InputError, match="broken link"):
        open_data(tmp_path / "data", IMAGE)


def test_unreadable_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "d.npz", x=images(2))
    np.save(tmp_path / "d.npy", images(2))
    source = open_data(path, IMAGE)

    def refuse(*args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(args[0]))

    # Permissions themselves prove nothing when the tests run as root.
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "__init__", refuse)
        patch.setattr(Path, "open", refuse)
        for bad in (path, tmp_path / "d.npy"):
            with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
                open_data(bad, IMAGE)
        with pytest.raises(InputError, match="Permission denied"):
            next(source.batches(1))
    with pytest.raises(InputError, match="File name too long"):
        open_data("x" * 5000 + ".npz", IMAGE)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "a.npz").symlink_to("a.npz")
    with pytest.raises(InputError, match="broken link"):
        open_data(tmp_path / "loop", IMAGE)


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "d.npz").mkdir()
    np.savez(tmp_path / "d.npz" / "e.npz", x=images(2))
    assert open_data(tmp_path / "d.npz", IMAGE).count == 2


def test_a_file_changed_while_in_use_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=images(4))
    np.save(tmp_path / "d.npy", images(4))
    sources = [open_data(path, IMAGE), open_data(tmp_path / "d.npy", IMAGE)]
    save(path, x=images(5))
    np.save(tmp_path / "d.npy", images(5))
    for source in sources:
        with pytest.raises(InputError, match="was changed"):
            source.digest()


@pytest.mark.parametrize("kind", ["npz", "npy", "folder", "limited"])
def test_memory_does_not_grow_with_the_samples(tmp_path: Path, kind: str) -> None:
    spec = [TensorSpec("x", F32, ("N", 3, 64, 64))]

    def peak(n: int) -> int:
        folder = tmp_path / f"{n}"
        folder.mkdir()
        x = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 3, 64, 64))
        if kind == "npy":
            np.save(folder / "x.npy", x)
            source = open_data(folder / "x.npy", spec)
        elif kind == "folder":
            for i in range(0, n, 32):
                np.savez_compressed(folder / f"{i}.npz", x=x[i : i + 32])
            source = open_data(folder, spec)
        else:
            source = open_data(save(folder / "x.npz", x=x), spec, limit=n // 2 if kind == "limited" else None)
        del x
        tracemalloc.start()
        try:
            assert sum(batch.count for batch in source.batches(16)) == source.count
            source.digest()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(64), peak(1024)
    assert large < small + 200_000  # the keys are 32 bytes a sample; the data are 50 MB


def test_an_abandoned_iteration_closes_its_files(tmp_path: Path) -> None:
    fd = Path("/proc/self/fd")
    if not fd.is_dir():
        pytest.skip("no /proc")
    source = open_data(save(tmp_path / "d.npz", x=images(50)), IMAGE)
    before = len(list(fd.iterdir()))
    iterator = source.batches(2)
    next(iterator)
    assert len(list(fd.iterdir())) == before + 1
    iterator.close()  # type: ignore[attr-defined]
    assert len(list(fd.iterdir())) == before


GOOD = [member(npy(images(6))), member(npy(images(6)), method=zipfile.ZIP_STORED), two_members()]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(GOOD),
    edits=st.lists(
        st.tuples(st.integers(0, 4000), st.binary(min_size=0, max_size=4), st.booleans()), max_size=6
    ),
    cut=st.one_of(st.none(), st.integers(0, 4000)),
)
def test_mutated_archives_give_samples_or_a_clear_error(
    tmp_path: Path, base: bytes, edits: list[tuple[int, bytes, bool]], cut: int | None
) -> None:
    data = bytearray(base)
    for at, new, replace in edits:
        at %= len(data) + 1
        data[at : at + (len(new) if replace else 0)] = new
    (tmp_path / "m.npz").write_bytes(data if cut is None else data[:cut])
    with contextlib.suppress(GreenccError):
        source = open_data(tmp_path / "m.npz", IMAGE)
        assert sum(b.count for b in source.batches(4)) == source.count


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.one_of(
        st.binary(max_size=80),
        st.text("{}(),:'\" 0123456789<f4TrueFalsdecshporan_[]", max_size=90).map(str.encode),
    )
)
def test_random_npy_headers_give_a_clear_error(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "m.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(GreenccError):
        open_data(tmp_path / "m.npy", IMAGE)
