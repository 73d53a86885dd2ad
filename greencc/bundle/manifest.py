"""`manifest.json`: what a bundle holds, with the size and hash of every file. It holds no time stamps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from greencc.core.data import TensorSpec
from greencc.core.errors import InputError

SCHEMA = "greencc.bundle/1"
FILE_NAME = "manifest.json"
MAX_BYTES = 4 << 20
MAX_FILES = 10_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle.

    Attributes:
        name: The source model's name, without ``.onnx``.
        main: The artifact's main file, relative to the bundle with forward slashes, as are `recipe` and `report`.
        target: The target's spec, e.g. ``cpu:threads=2``.
        device: Name of the machine the artifact was made and measured on; `fingerprint` identifies its facts.
        model_sha256: Hash of the source model's file; `model_digest` is over its graph and weights.
        data: Digests of the data that went in, by role ("calibration", "evaluation").
        versions: Versions of the packages the artifact was made with.
        files: Every file but the manifest itself.
        seen: The file with the keys of the samples that the compile has used, None when there is none.
        sha256: Of the bytes it was read from, or was written as; empty before that.
    """

    greencc: str
    name: str
    main: str
    recipe: str
    report: str
    target: str
    device: str
    fingerprint: str
    model_name: str
    model_sha256: str
    model_digest: str
    data: Mapping[str, str]
    versions: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, FileEntry]
    seen: str | None = None
    sha256: str = field(default="", compare=False)

    def written(self) -> tuple[Manifest, bytes]:
        """The manifest with the hash of its bytes, and these."""
        content = self.dump().encode()
        return replace(self, sha256=hashlib.sha256(content).hexdigest()), content

    def dump(self) -> str:
        """The JSON text: keys and files in a fixed order."""
        data = {
            "schema": SCHEMA,
            "greencc": self.greencc,
            "name": self.name,
            "main": self.main,
            "recipe": self.recipe,
            "report": self.report,
            "seen": self.seen,
            "target": self.target,
            "device": {"name": self.device, "fingerprint": self.fingerprint},
            "model": {"name": self.model_name, "sha256": self.model_sha256, "digest": self.model_digest},
            "data": dict(sorted(self.data.items())),
            "versions": dict(sorted(self.versions.items())),
            "inputs": [_dump_spec(spec) for spec in self.inputs],
            "outputs": [_dump_spec(spec) for spec in self.outputs],
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in sorted(self.files.items())
            },
        }
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a bundle folder; no other file is touched.

    Raises:
        InputError: It is missing, a link, too large, not JSON, of another schema, or malformed.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise InputError(f"{folder} is not a bundle folder", hint="a bundle is a folder NAME.greencc")
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{folder} has no {FILE_NAME}", hint="a bundle is made with 'greencc compile'")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MB")
        # The bytes that are parsed are those that are hashed.
        content = path.read_bytes()
        data = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    manifest = _Reader(str(path)).manifest(data)
    return replace(manifest, sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class _Reader:
    """Turns parsed JSON into a manifest, with errors that name the key."""

    where: str

    def manifest(self, data: Any) -> Manifest:
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise InputError(f"{self.where} has schema {found!r}", hint=f"this version reads {SCHEMA!r}")
        files = self.files(self.table(data, "files"))
        device, model = self.table(data, "device"), self.table(data, "model")
        manifest = Manifest(
            greencc=self.text(data, "greencc"),
            name=self.plain(data, "name"),
            main=self.text(data, "main"),
            recipe=self.text(data, "recipe"),
            report=self.text(data, "report"),
            target=self.text(data, "target"),
            device=self.text(device, "name"),
            fingerprint=self.text(device, "fingerprint"),
            model_name=self.text(model, "name"),
            model_sha256=self.text(model, "sha256"),
            model_digest=self.text(model, "digest"),
            data=self.texts(data, "data"),
            versions=self.texts(data, "versions"),
            inputs=self.specs(data, "inputs"),
            outputs=self.specs(data, "outputs"),
            files=files,
            seen=None if data.get("seen") is None else self.text(data, "seen"),
        )
        for key in ("main", "recipe", "report", "seen"):
            name = getattr(manifest, key)
            if name is not None and name not in files:
                raise InputError(f"{self.where}: {key} is {name!r}, which is not among its files")
        return manifest

    def files(self, table: dict[str, Any]) -> dict[str, FileEntry]:
        if len(table) > MAX_FILES:
            raise InputError(f"{self.where} lists {len(table)} files")
        entries: dict[str, FileEntry] = {}
        for name, entry in table.items():
            if not safe_name(name):
                raise InputError(f"{self.where} lists the unsafe path {name!r}")
            size = entry.get("size") if isinstance(entry, dict) else None
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise InputError(f"{self.where}: files[{name!r}] has no valid size")
            digest = self.text(entry, "sha256")
            if not _SHA256.fullmatch(digest):
                raise InputError(f"{self.where}: files[{name!r}] has no valid sha256")
            entries[name] = FileEntry(size, digest)
        return entries

    def table(self, data: dict[str, Any], key: str) -> dict[str, Any]:
        value = data.get(key)
        if not isinstance(value, dict):
            raise InputError(f"{self.where} has no table {key!r}")
        return value

    def text(self, data: dict[str, Any], key: str) -> str:
        value = data.get(key)
        if not isinstance(value, str):
            raise InputError(f"{self.where} has no text {key!r}")
        return value

    def plain(self, data: dict[str, Any], key: str) -> str:
        """A text that may be part of a file name: other commands name their output after it."""
        value = self.text(data, key)
        if value in ("", ".", "..") or any(mark in value for mark in "/\\\0"):
            raise InputError(f"{self.where}: {key} is {value!r}, which is no plain file name")
        return value

    def texts(self, data: dict[str, Any], key: str) -> dict[str, str]:
        table = self.table(data, key)
        return {name: self.text(table, name) for name in table}

    def specs(self, data: dict[str, Any], key: str) -> tuple[TensorSpec, ...]:
        rows = data.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{self.where} has no list {key!r}")
        return tuple(self.spec(row, key) for row in rows)

    def spec(self, row: dict[str, Any], key: str) -> TensorSpec:
        shape = row.get("shape")
        if shape is not None and not (
            isinstance(shape, list)
            and all(
                size is None or (isinstance(size, int | str) and not isinstance(size, bool)) for size in shape
            )
        ):
            raise InputError(f"{self.where}: {key} has an invalid shape {shape!r}")
        return TensorSpec(
            self.text(row, "name"),
            self.dtype(self.text(row, "dtype"), key),
            None if shape is None else tuple(shape),
        )

    def dtype(self, name: str, key: str) -> np.dtype[Any]:
        if name == "string":
            return np.dtype(object)
        if _PLAIN.fullmatch(name):
            return np.dtype(name)
        if name in _EXTENDED:
            import ml_dtypes

            extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
            return extended
        raise InputError(f"{self.where}: {key} has the unknown type {name!r}")


_EXTENDED = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int4", "uint4"}
)
_PLAIN = re.compile(r"(u?int(8|16|32|64)|float(16|32|64)|complex(64|128)|bool)")


def safe_name(name: str) -> bool:
    """True for a relative path that stays inside the bundle, in its one canonical spelling."""
    path = PurePosixPath(name)
    return (
        name not in ("", ".", FILE_NAME)
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path) == name
        and "\\" not in name
        and ":" not in name
        and name.isprintable()
    )


def _dump_spec(spec: TensorSpec) -> dict[str, Any]:
    name = "string" if spec.dtype.kind in "OUST" else spec.dtype.name
    return {"name": spec.name, "dtype": name, "shape": None if spec.shape is None else list(spec.shape)}
