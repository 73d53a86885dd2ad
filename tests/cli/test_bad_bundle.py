"""Bundles that were tampered with, and wrong calls on good ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from _pytest.mark import ParameterSet

from greencc.core.errors import ExitCode

Prepare = Callable[[Path], object]
USAGE, BAD = ExitCode.USAGE, ExitCode.BAD_INPUT
ARTIFACT = Path("digits.greencc/artifact/model.onnx")
MANIFEST = Path("digits.greencc/manifest.json")
VERIFY = ("verify", "digits.greencc")


def case(
    name: str,
    arguments: tuple[str, ...],
    code: ExitCode,
    message: str,
    hint: str = "",
    prepare: Prepare | None = None,
) -> ParameterSet:
    return pytest.param(arguments, code, message, hint, prepare, id=name)


def flipped(folder: Path) -> None:
    content = bytearray((folder / ARTIFACT).read_bytes())
    content[-10] ^= 1
    (folder / ARTIFACT).write_bytes(content)


def shortened(folder: Path) -> None:
    (folder / ARTIFACT).write_bytes((folder / ARTIFACT).read_bytes()[:100])


def linked(folder: Path) -> None:
    (folder / ARTIFACT).rename(folder / "moved.onnx")
    (folder / ARTIFACT).symlink_to(folder / "moved.onnx")


def manifest(change: Callable[[dict[str, Any]], object]) -> Prepare:
    def prepare(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        change(data)
        (folder / MANIFEST).write_text(json.dumps(data))

    return prepare


RUN = ("run", "digits.greencc", "-i", "eval.npz", "-o", "y.npz")
CASES = (
    case("model without data", ("verify", "digits.greencc", "--model", "model.onnx"), USAGE,
         "--model and --eval go together", "both"),
    case("data without model", ("verify", "digits.greencc", "--eval", "eval.npz"), USAGE,
         "--model and --eval go together", "both"),
    case("metric without data", ("verify", "digits.greencc", "--metric", "top1"), USAGE, "are about accuracy",
         "--model and --eval"),
    case("another model", ("verify", "digits.greencc", "--model", "eval.npz", "--eval", "eval.npz"), BAD,
         "eval.npz"),
    case("text report to a file", ("report", "digits.greencc", "-o", "r.txt"), USAGE,
         "--output needs a format", "--format md"),
    case("report format", ("report", "digits.greencc", "--format", "pdf"), USAGE, "'pdf' is not one of",
         "--help"),
    case("report into the bundle",
         ("report", "digits.greencc", "--format", "md", "-o", "digits.greencc/a.md"), USAGE,
         "lies inside the bundle", "elsewhere"),
    case("report onto a folder", ("report", "digits.greencc", "--format", "md", "-o", "."), BAD,
         "cannot write ."),
    case("outputs of another kind", (*RUN[:-1], "y.csv"), USAGE, "--output is y.csv", ".npz"),
    case("outputs into the bundle", (*RUN[:-1], "digits.greencc/y.npz"), USAGE, "lies inside the bundle",
         "elsewhere"),
    case("inputs missing", ("run", "digits.greencc", "-i", "none.npz", "-o", "y.npz"), BAD,
         "none.npz does not exist", "give an .npz"),
    case("inputs of another shape", RUN, BAD, "eval.npz: 'pixels' has shape [2, 8], the model takes",
         "samples",
         lambda folder: np.savez(folder / "eval.npz", pixels=np.zeros((2, 8), np.float32))),
    case("batch 0", (*RUN, "--batch", "0"), USAGE, "0 is not in the range", "--help"),
    case("measure against another model",
         ("measure", "digits.greencc", "-b", "other.onnx", "--protocol", "quick"), BAD,
         "has the inputs pixels, the baseline has x", "variants of one model",
         lambda folder: onnx.save(onnx.parser.parse_model(
             '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
         ), folder / "other.onnx")),
    # Tampered with.
    case("flipped byte", VERIFY, BAD, "artifact/model.onnx does not match its SHA-256",
         "changed after it was made", flipped),
    case("truncated file", VERIFY, BAD, "artifact/model.onnx has 100 bytes instead of", "copy it again",
         shortened),
    case("extra file", VERIFY, BAD, "contains 'artifact/more.bin', which its manifest does not list",
         "tampered",
         lambda folder: (folder / ARTIFACT).with_name("more.bin").write_bytes(b"x")),
    case("hidden file", VERIFY, BAD, "contains '.more', which its manifest does not list", "tampered",
         lambda folder: (folder / "digits.greencc" / ".more").write_bytes(b"x")),
    case("missing file", VERIFY, BAD, "digits.greencc lacks 'artifact/model.onnx'", "incomplete",
         lambda folder: (folder / ARTIFACT).unlink()),
    case("link", VERIFY, BAD, "'artifact/model.onnx', which is not a plain file", "no links", linked),
    case("edited manifest", VERIFY, BAD, "report.md does not match its SHA-256", "changed after it was made",
         manifest(lambda data: data["files"]["report.md"].update(sha256="0" * 64))),
    case("path escape", VERIFY, BAD, "lists the unsafe path '../model.onnx'", "",
         manifest(lambda data: data["files"].update({"../model.onnx": data["files"]["report.md"]}))),
    case("absolute path", VERIFY, BAD, "lists the unsafe path '/etc/hostname'", "",
         manifest(lambda data: data["files"].update({"/etc/hostname": data["files"]["report.md"]}))),
    case("unlisted artifact", VERIFY, BAD, "main is 'model.onnx', which is not among its files", "",
         manifest(lambda data: data.update(main="model.onnx"))),
    case("manifest of another version", VERIFY, BAD, "has schema 'greencc.bundle/9'", "this version reads",
         manifest(lambda data: data.update(schema="greencc.bundle/9"))),
    case("manifest without files", VERIFY, BAD, "has no table 'files'", "",
         manifest(lambda data: data.pop("files"))),
    case("manifest is no JSON", VERIFY, BAD, "manifest.json is not valid JSON", "",
         lambda folder: (folder / MANIFEST).write_text("{")),
    case("manifest missing", VERIFY, BAD, "has no manifest.json", "greencc compile",
         lambda folder: (folder / MANIFEST).unlink()),
    case("tampered bundle is not run", RUN, BAD, "does not match its SHA-256", "", flipped),
    case("tampered bundle is not reported", ("report", "digits.greencc"), BAD, "does not match its SHA-256",
         "", flipped),
    case("tampered bundle is not measured", ("measure", "digits.greencc"), BAD, "does not match its SHA-256",
         "", flipped),
    case("tampered bundle is not inspected", ("inspect", "digits.greencc"), BAD, "does not match its SHA-256",
         "", flipped),
)  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message", "hint", "prepare"), CASES)
def test_bad_bundle(arguments, code, message, hint, prepare, bundle, digits, refused):
    if prepare is not None:
        prepare(digits)
    refused(arguments, code, message, hint)
