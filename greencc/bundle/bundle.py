"""Open a bundle: every hash is verified before anything in it is loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import weakref
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType

from greencc.bundle.manifest import FILE_NAME, FileEntry, Manifest, read_manifest
from greencc.bundle.private import private_copy
from greencc.bundle.seen import split_keys
from greencc.bundle.trust import VARIABLE, is_trusted, parse_digests, store_folder
from greencc.core.data import Array, Feeds
from greencc.core.engine import Engine, Target
from greencc.core.errors import InputError, UnavailableError, UntrustedError
from greencc.core.files import sha256_file
from greencc.core.report import Report
from greencc.report import parse_report
from greencc.report.json_out import MAX_BYTES

_CHANGED = "the bundle was changed after it was made; copy it again"


class Bundle:
    """A verified bundle; a context manager that closes its engine.

    Use `load` to make one.

    Attributes:
        path: The bundle's folder.
        manifest: What it holds.
    """

    def __init__(self, path: Path, manifest: Manifest, trust: bool | frozenset[str] = False) -> None:
        self.path = path
        self.manifest = manifest
        self._trust = trust
        self._engine: Engine | None = None
        self._private: weakref.finalize[..., Bundle] | None = None
        self._runnable: Path | None = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, target={self.manifest.target!r})"

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def artifact(self) -> Path:
        """The artifact's main file."""
        return self.path / self.manifest.main

    @property
    def graph(self) -> Path:
        """The artifact's ONNX file.

        Raises:
            InputError: The artifact is compiled code.
        """
        if self.artifact.suffix != ".onnx":
            raise InputError(
                f"{self.path} holds compiled code for {self.manifest.target}, and no ONNX graph",
                hint=f"give the ONNX model that it was made of; 'greencc report {self.path}' shows its figures",
            )
        return self.artifact

    @property
    def recipe(self) -> Path:
        """The recipe that made the artifact, as TOML."""
        return self.path / self.manifest.recipe

    @cached_property
    def report(self) -> Report:
        """The report.

        Raises:
            InputError: It is not a report of this version, or was changed since the bundle was opened.
        """
        file = self.path / self.manifest.report
        if self.manifest.files[self.manifest.report].size > MAX_BYTES:
            raise InputError(f"{file} is too large for a report")
        try:
            text = self._read(self.manifest.report).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"cannot read the report {file}: {error}") from error
        return parse_report(text, where=str(file))

    @cached_property
    def seen(self) -> frozenset[bytes]:
        """Keys (`greencc.calibration.subsets.sample_keys`) of the samples the compile has used.

        Raises:
            InputError: They are no keys, or were changed since the bundle was opened.
        """
        if self.manifest.seen is None:
            return frozenset()
        try:
            return split_keys(self._read(self.manifest.seen))
        except ValueError as error:
            raise InputError(f"{self.path / self.manifest.seen}: {error}") from error

    @cached_property
    def target(self) -> Target:
        """The target the artifact was made for."""
        from greencc.targets import make_target

        return make_target(self.manifest.target)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What differs from where the bundle was made: its figures need not hold here."""
        here = self.target.device()
        if here.fingerprint == self.manifest.fingerprint:
            return ()
        if here.name == self.manifest.device:
            return (
                f"made on another {here.name}, or on this one with other settings: measured figures may differ",
            )
        return (f"made on {self.manifest.device}, running on {here.name}: measured figures may differ",)

    def engine(self) -> Engine:
        """The artifact, opened on its target. Opened once, closed by `close`.

        Raises:
            UnavailableError: The target cannot run on this machine.
            UntrustedError: The artifact is code, and the bundle is not trusted.
            InputError: The artifact is not one of its target, or was changed since the bundle was opened.
        """
        if self._engine is None:
            if reason := self.target.missing_to_open():
                raise UnavailableError(
                    f"the bundle {self.path} needs the target {self.target.name!r}: {reason}",
                    hint="see 'greencc doctor'",
                )
            self._engine = self.target.open(self.runnable())
        return self._engine

    def runnable(self) -> Path:
        """The artifact's main file, checked just now, to be opened by its target.

        Of a target whose artifacts are code it is a copy that nobody else can write, there until `close`.

        Raises:
            UntrustedError: The artifact is code, and the bundle is not trusted.
            InputError: The artifact was changed since the bundle was opened.
        """
        # A bundle may be opened long after it was loaded: what runs is what was checked.
        folder = PurePosixPath(self.manifest.main).parent
        files = {
            name: entry
            for name, entry in sorted(self.manifest.files.items())
            if PurePosixPath(name).is_relative_to(folder)
        }
        if not self.target.ships_code:
            for name, entry in files.items():
                _check(self.path / name, entry)
            return self.artifact
        if self._runnable is None:
            if not (self._trust is True or is_trusted(self.manifest, self._trust or ())):
                raise self._untrusted()
            copy = private_copy(self.path, files)
            self._private = weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
            self._runnable = copy / self.manifest.main
        return self._runnable

    def _untrusted(self) -> UntrustedError:
        manifest = self.manifest
        # Without a record there is nothing for that command to write into.
        record = "" if store_folder() is None else f"'greencc trust {self.path}', or "
        return UntrustedError(
            f"{self.path} holds compiled code for {manifest.target} and is not trusted on this machine "
            f"(SHA-256 of its manifest: {manifest.sha256})",
            hint=f"if you know where it comes from: {record}${VARIABLE} or --trust with that SHA-256; "
            "compile it here otherwise",
        )

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once. `feeds` and the result map names to arrays (see `Engine.run` for the errors)."""
        return self.engine().run(feeds)

    def _read(self, name: str) -> bytes:
        """The bytes of a listed file, the very ones whose hash was checked."""
        file, entry = self.path / name, self.manifest.files[name]
        try:
            with file.open("rb") as stream:
                content = stream.read(entry.size + 1)
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise _mismatch(file)
        return content

    def close(self) -> None:
        """Release the engine. The bundle can be used again: it is reopened on demand."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._private is not None:
            self._private()
            self._private = self._runnable = None


def load(path: Path | str, *, trust: bool | str = False) -> Bundle:
    """Open and verify a bundle.

    Every listed file must be there with its size and SHA-256, nothing else may be there, and no path leaves the
    folder, by links or otherwise.

    Args:
        path: The folder.
        trust: Whether compiled code in it may run although the user has not said so (`greencc.bundle.trust`): True, or
            the SHA-256 of manifests that may, separated by commas. Bundles without code need no trust.

    Raises:
        InputError: It is no bundle, or was tampered with; the message names the file.
        UsageError: `trust` is a text other than hashes.
    """
    folder = Path(path)
    given = parse_digests(trust, "trust") if isinstance(trust, str) else trust
    if folder.is_file():
        raise InputError(f"{folder} is a file, not a bundle", hint="give the folder NAME.greencc")
    manifest = read_manifest(folder)
    found = _files(folder)
    for name in sorted(found - set(manifest.files)):
        raise InputError(
            f"{folder} contains {name!r}, which its manifest does not list",
            hint="the bundle was tampered with",
        )
    for name, entry in sorted(manifest.files.items()):
        if name not in found:
            raise InputError(f"{folder} lacks {name!r}", hint="the bundle is incomplete; copy it again")
        _check(folder / name, entry)
    return Bundle(folder, manifest, given)


def _files(folder: Path) -> set[str]:
    """Relative names of all files but the manifest.

    Raises:
        InputError: There is a link or a special file, or a folder cannot be read.
    """
    names: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise):
        for entry in (*folders, *files):
            path = Path(root) / entry
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise InputError(
                    f"{folder} contains {relative!r}, which is not a plain file", hint="bundles hold no links"
                )
            names.add(relative)
    return names - {FILE_NAME}


def _raise(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _check(file: Path, entry: FileEntry) -> None:
    """Raise `InputError` unless the file is a plain one with this size and hash."""
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is not a plain file", hint="bundles hold no links")
        if status.st_size != entry.size:
            raise InputError(f"{file} has {status.st_size} bytes instead of {entry.size}", hint=_CHANGED)
        if sha256_file(file) != entry.sha256:
            raise _mismatch(file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def _mismatch(file: Path) -> InputError:
    return InputError(f"{file} does not match its SHA-256", hint=_CHANGED)
