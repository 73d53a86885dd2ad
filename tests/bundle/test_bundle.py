"""Bundles: written, verified, run; and every way to tamper with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.bundle import Bundle, load
from greencc.bundle.manifest import MAX_BYTES, read_manifest, safe_name
from greencc.core.data import TensorSpec
from greencc.core.engine import Device, Engine, Target
from greencc.core.errors import GreenccError, InputError, UnavailableError
from greencc.core.files import atomic_folder

from .scale import ScaleTarget, write


def test_write_load_run(path: Path, target: ScaleTarget) -> None:
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert names == [
        "artifact/model.scale",
        "artifact/weights.bin",
        "manifest.json",
        "recipe.toml",
        "report.html",
        "report.json",
        "report.md",
    ]
    with load(path) as bundle:
        assert target.opened == []
        assert bundle.name == "net"
        assert bundle.artifact == path / "artifact" / "model.scale"
        assert bundle.recipe.read_text().startswith("schema")
        assert bundle.report.model.name == "net.onnx"
        x = np.ones((2, 2), np.float32)
        np.testing.assert_array_equal(bundle.run({"x": x})["y"], 2.5 * x)
        assert bundle.engine() is bundle.engine()
        assert bundle.notes == ()
    assert [engine.closed for engine in target.opened] == [True]
    assert repr(bundle) == f"Bundle({str(path)!r}, target='scale:threads=3')"


def test_manifest_says_where_everything_came_from(path: Path) -> None:
    manifest = load(str(path)).manifest
    assert manifest.data == {"calibration": "cd" * 32, "evaluation": "01" * 32}
    assert (manifest.model_sha256, manifest.model_digest) == ("ab" * 32, "ef" * 32)
    assert (manifest.device, manifest.fingerprint) == ("bench", "print of bench")
    assert manifest.inputs == (TensorSpec("x", np.dtype(np.float32), ("N", 2)),)
    assert manifest.outputs[0].shape == (None, 2)
    assert manifest.outputs[1] == TensorSpec("names", np.dtype(object), None)
    assert manifest.files["artifact/weights.bin"].size == 100


def test_equal_inputs_give_equal_bytes(tmp_path: Path, target: ScaleTarget) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, target)
        texts.append((tmp_path / name / "manifest.json").read_bytes())
    assert texts[0] == texts[1]
    assert b"2025" not in texts[0]
    assert str(tmp_path).encode() not in texts[0]


def test_another_device_is_a_note(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScaleTarget, "machine", "laptop")
    assert load(path).notes == ("made on bench, running on laptop: measured figures may differ",)
    monkeypatch.setattr(ScaleTarget, "device", lambda self: Device("bench", {}, "other"))
    assert "with other settings" in load(path).notes[0]


def test_missing_runtime(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScaleTarget, "problem", "not installed")
    with pytest.raises(UnavailableError, match="needs the target 'scale': not installed"):
        load(path).engine()


def test_reopens_after_close(path: Path, target: ScaleTarget) -> None:
    bundle = load(path)
    bundle.close()
    bundle.run({"x": np.ones((1, 2), np.float32)})
    bundle.close()
    bundle.run({"x": np.ones((1, 2), np.float32)})
    assert len(target.opened) == 2


def _swap_engine(path: Path) -> None:
    (path / "artifact/model.scale").write_text("9.5")


def _swap_weights(path: Path) -> None:
    (path / "artifact/weights.bin").write_bytes(b"\1" * 100)


def _link_weights(path: Path) -> None:
    file = path / "artifact/weights.bin"
    file.replace(path.parent / "weights.bin")
    file.symlink_to(path.parent / "weights.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap_engine, r"model\.scale does not match its SHA-256"),
        (_swap_weights, r"weights\.bin does not match its SHA-256"),
        (_link_weights, r"weights\.bin is not a plain file"),
        (lambda path: (path / "artifact/weights.bin").unlink(), r"cannot read .*weights\.bin"),
    ],
)
def test_what_changes_after_loading_is_not_run(
    path: Path, target: ScaleTarget, change: Callable[[Path], Any], message: str
) -> None:
    bundle = load(path)
    change(path)
    with pytest.raises(InputError, match=message):
        bundle.engine()
    assert target.opened == []


def test_the_report_is_the_one_whose_hash_was_checked(path: Path) -> None:
    bundle = load(path)
    file = path / "report.json"
    file.write_text(file.read_text().replace('"net.onnx"', '"bad.onnx"'))
    with pytest.raises(InputError, match=r"report\.json does not match its SHA-256"):
        _ = bundle.report
    with pytest.raises(InputError, match=r"report\.json does not match its SHA-256"):
        load(path)


def test_seen_samples_are_kept(tmp_path: Path, target: ScaleTarget) -> None:
    keys = [bytes([value]) * 16 for value in (7, 3, 7, 5)]
    contents = []
    for name, order in (("a", keys), ("b", keys[::-1])):
        (tmp_path / name).mkdir()
        manifest = write(tmp_path / name, target, b"".join(order))
        assert manifest.seen == "seen.keys"
        assert load(tmp_path / name).seen == frozenset(keys)
        contents.append((tmp_path / name / "manifest.json").read_bytes())
    assert contents[0] == contents[1]
    assert (tmp_path / "a/seen.keys").stat().st_size == 48
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="no whole number of keys"):
        write(tmp_path / "c", target, b"x" * 17)


def test_bundles_without_seen_samples(path: Path) -> None:
    assert json.loads((path / "manifest.json").read_text())["seen"] is None
    assert load(path).seen == frozenset()
    _manifest(lambda data: data.pop("seen"))(path)
    assert load(path).seen == frozenset()
    _manifest(lambda data: data.update(seen="recipe.toml"))(path)
    with pytest.raises(InputError, match="no whole number of keys"):
        _ = load(path).seen


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "manifest.json"
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    return apply


def _same_size(path: Path) -> None:
    (path / "artifact/model.scale").write_text("9.5")


def _grown(path: Path) -> None:
    with (path / "artifact/weights.bin").open("ab") as stream:
        stream.write(b"x")


def _linked(path: Path) -> None:
    file = path / "artifact/weights.bin"
    elsewhere = path.parent / "weights.bin"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


def _linked_folder(path: Path) -> None:
    shutil.move(path / "artifact", path.parent / "artifact")
    (path / "artifact").symlink_to(path.parent / "artifact")


def _linked_manifest(path: Path) -> None:
    shutil.move(path / "manifest.json", path.parent / "manifest.json")
    (path / "manifest.json").symlink_to(path.parent / "manifest.json")


def _huge(path: Path) -> None:
    with (path / "manifest.json").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)


def _entry(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d["files"].update({name: {"size": 1, "sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_same_size, r"model\.scale does not match its SHA-256"),
        (_grown, r"weights\.bin has 101 bytes instead of 100"),
        (lambda p: (p / "recipe.toml").unlink(), r"lacks 'recipe\.toml'"),
        (lambda p: (p / "report.html").write_text("<script>"), r"report\.html has 8 bytes instead of"),
        (
            lambda p: (p / "artifact/extra.so").write_bytes(b""),
            r"contains 'artifact/extra\.so', which its manifest",
        ),
        (lambda p: (p / ".hidden").write_bytes(b""), r"contains '\.hidden'"),
        (_linked, r"contains 'artifact/weights\.bin', which is not a plain file"),
        (_linked_folder, r"contains 'artifact', which is not a plain file"),
        (_linked_manifest, r"has no manifest\.json"),
        (lambda p: (p / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda p: (p / "manifest.json").write_text("{"), "is not valid JSON"),
        (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "is not valid JSON"),
        (lambda p: (p / "manifest.json").write_text("[" * 100_000), "is not valid JSON"),
        (lambda p: (p / "manifest.json").write_text("[]"), "has schema None"),
        (_huge, "is larger than 4 MB"),
        (_manifest(lambda d: d.update(schema="greencc.bundle/2")), "has schema 'greencc.bundle/2'"),
        (_manifest(_entry("../outside")), r"unsafe path '\.\./outside'"),
        (_manifest(_entry("/etc/passwd")), "unsafe path '/etc/passwd'"),
        (_manifest(_entry("a/../../b")), "unsafe path"),
        (_manifest(_entry("a\\b")), "unsafe path"),
        (_manifest(_entry("./recipe.toml")), "unsafe path"),
        (_manifest(_entry("manifest.json")), "unsafe path"),
        (
            _manifest(lambda d: d.update(main="artifact/other.onnx")),
            r"main is 'artifact/other\.onnx', which is not",
        ),
        (_manifest(lambda d: d.update(main=3)), "has no text 'main'"),
        *(
            (_manifest(lambda d, name=name: d.update(name=name)), "which is no plain file name")  # type: ignore[misc]
            for name in ("../../x", "/home/u/x", "a/b", "a\\b", "", ".", "..", "x\0")
        ),
        (_manifest(lambda d: d.update(seen=3)), "has no text 'seen'"),
        (_manifest(lambda d: d.update(seen="other.keys")), r"seen is 'other\.keys', which is not"),
        (_manifest(lambda d: d.update(files=[])), "has no table 'files'"),
        (_manifest(lambda d: d["files"]["recipe.toml"].update(size=-1)), "has no valid size"),
        (_manifest(lambda d: d["files"]["recipe.toml"].update(sha256="zz")), "has no valid sha256"),
        (_manifest(lambda d: d["files"].update({"x": 3})), r"files\['x'\] has no valid size"),
        (
            _manifest(lambda d: d.update(inputs=[{"name": "x", "dtype": "evil", "shape": []}])),
            "unknown type 'evil'",
        ),
        (
            _manifest(lambda d: d.update(inputs=[{"name": "x", "dtype": "int8", "shape": [{}]}])),
            "invalid shape",
        ),
        (_manifest(lambda d: d.update(outputs={})), "has no list 'outputs'"),
        (_manifest(lambda d: d["device"].pop("fingerprint")), "has no text 'fingerprint'"),
    ],
)
def test_tampering_is_found_before_anything_is_opened(
    path: Path, target: ScaleTarget, tamper: Callable[[Path], Any], message: str
) -> None:
    tamper(path)
    with pytest.raises(InputError, match=message):
        load(path)
    assert target.opened == []


def test_not_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    with pytest.raises(InputError, match="is a file, not a bundle"):
        load(file)
    with pytest.raises(InputError, match="is not a bundle folder"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        load(tmp_path)


def test_broken_artifact_is_not_shipped(
    tmp_path: Path, target: ScaleTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Target, artifact: Path) -> Engine:
        raise InputError("cannot open")

    monkeypatch.setattr(ScaleTarget, "open", refuse)
    with pytest.raises(GreenccError, match="cannot open"), atomic_folder(tmp_path / "b") as work:
        write(work, target)
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_bundled(tmp_path: Path, target: ScaleTarget) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="contains the link 'link'"):
        write(tmp_path, target)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8_e4m3fn", "int4", "uint8", "bool", "complex64"]
)
def test_manifest_round_trip_of_types(path: Path, dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    manifest = replace(read_manifest(path), inputs=(TensorSpec("x", kind, (1, "N", None)),))
    (path / "manifest.json").write_text(manifest.dump())
    assert read_manifest(path) == manifest


@pytest.mark.parametrize("name", ["a", "a/b.onnx", "a b", "ä.bin"])
def test_safe_names(name: str) -> None:
    assert safe_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/", "a//b", "../a", "a/..", "c:\\x", "a\x00b", "a\nb"]
)
def test_unsafe_names(name: str) -> None:
    assert not safe_name(name)


def test_bundle_is_public_api(path: Path) -> None:
    assert isinstance(load(path), Bundle)
