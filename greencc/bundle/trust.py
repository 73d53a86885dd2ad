"""Bundles whose compiled code may run here: a record of the user's, by the SHA-256 of their manifests.

A manifest lists the hashes of all files, so its own hash stands for the whole bundle, wherever that lies. Records are
files of their own in one folder: compiles that end at the same time do not overwrite each other's.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from greencc.bundle.manifest import Manifest
from greencc.core.errors import InputError, UsageError
from greencc.core.files import atomic_file, translated_os_errors
from greencc.core.ownership import exposed_parent, make_private

VARIABLE = "GREENCC_TRUST"
"""SHA-256 of manifests that are trusted as well, separated by commas: for build machines."""
STORE_VARIABLE = "GREENCC_TRUST_STORE"
_SUFFIX = ".json"
_MOST_BYTES = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ELSEWHERE = f"remove it, or choose another folder with ${STORE_VARIABLE}"


@dataclass(frozen=True)
class Trusted:
    """A record.

    Attributes:
        sha256: Of the manifest.
        name: The source model's.
        target: The target's spec.
        device: The machine it was made on.
        added: When, in UTC.
        why: ``compiled here``, or ``added by hand``.
    """

    sha256: str
    name: str
    target: str
    device: str
    added: str
    why: str


def store_folder() -> Path | None:
    """``$GREENCC_TRUST_STORE`` (empty: none), else ``greencc/trusted`` in the user's data folder."""
    if (chosen := os.environ.get(STORE_VARIABLE)) is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local/share") / "greencc" / "trusted"


def parse_digests(text: str, where: str) -> frozenset[str]:
    """Hashes separated by commas or spaces, in any case.

    Raises:
        UsageError: One is no SHA-256.
    """
    found = frozenset(text.lower().replace(",", " ").split())
    for digest in found:
        if not _SHA256.fullmatch(digest):
            raise UsageError(
                f"{where}: {digest!r} is no SHA-256",
                hint="write the 64 digits that 'greencc trust BUNDLE' or sha256sum prints of its manifest.json",
            )
    return found


def is_trusted(manifest: Manifest, given: Iterable[str] = ()) -> bool:
    """Whether a manifest is recorded, or its hash is among those `given` or in ``$GREENCC_TRUST``.

    Raises:
        InputError: The record cannot be relied on: others may write it, or it is damaged.
        UsageError: The variable holds something else than hashes.
    """
    if manifest.sha256 in given:
        return True
    if manifest.sha256 in parse_digests(os.environ.get(VARIABLE, ""), f"${VARIABLE}"):
        return True
    folder = _checked_folder()
    return folder is not None and _read(folder / f"{manifest.sha256}{_SUFFIX}") is not None


def trust(manifest: Manifest, why: str) -> Path | None:
    """Record a manifest; return the file, or None where the user wants no record kept.

    Raises:
        InputError: It cannot be written, or others may write it.
    """
    folder = _checked_folder(make=True)
    if folder is None:
        return None
    record = Trusted(
        manifest.sha256,
        manifest.name,
        manifest.target,
        manifest.device,
        datetime.now(UTC).isoformat(timespec="seconds"),
        why,
    )
    path = folder / f"{manifest.sha256}{_SUFFIX}"
    with atomic_file(path, mode=0o600) as work:
        work.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return path


def forget(digest: str) -> bool:
    """Remove a record; False where there is none.

    Raises:
        InputError: It cannot be removed, or others may write the record.
    """
    folder = _checked_folder()
    if folder is None:
        return False
    path = folder / f"{digest}{_SUFFIX}"
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error.strerror}") from error
    return True


def trusted() -> list[Trusted]:
    """All records, the oldest first.

    Raises:
        InputError: One is damaged, or others may write them.
    """
    folder = _checked_folder()
    if folder is None:
        return []
    with translated_os_errors(folder):
        paths = sorted(path for path in folder.iterdir() if _SHA256.fullmatch(path.stem))
    found = (_read(path) for path in paths if path.suffix == _SUFFIX)
    return sorted((item for item in found if item is not None), key=lambda item: (item.added, item.sha256))


def _checked_folder(*, make: bool = False) -> Path | None:
    """The folder, None where there is none.

    Raises:
        InputError: It is no folder, cannot be made, or others may write it.
    """
    folder = store_folder()
    if folder is None:
        return None
    if make:
        with translated_os_errors(folder):
            make_private(folder)
    try:
        facts = folder.stat()
        exposed = exposed_parent(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}", hint=_ELSEWHERE) from error
    if not stat.S_ISDIR(facts.st_mode):
        raise InputError(f"{folder}, the record of trusted bundles, is no folder", hint=_ELSEWHERE)
    _refuse_foreign(folder, facts)
    if exposed is not None:
        raise InputError(
            f"{exposed}, on the way to the record of trusted bundles, belongs to another user or can be written by "
            "others: they could put another record there",
            hint=f"run: chmod go-w {exposed}, or choose another folder with ${STORE_VARIABLE}",
        )
    return folder


def _refuse_foreign(path: Path, facts: os.stat_result) -> None:
    """Whoever can write a record decides what code runs."""
    if facts.st_uid not in (os.geteuid(), 0):
        raise InputError(
            f"{path}, of the record of trusted bundles, belongs to another user (id {facts.st_uid})",
            hint=_ELSEWHERE,
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"{path}, of the record of trusted bundles, can be written by others "
            f"(mode {stat.S_IMODE(facts.st_mode):04o})",
            hint=f"check what it trusts with 'ls -l', then run: chmod go-w {path}",
        )


def _read(path: Path) -> Trusted | None:
    """One record, None where there is none."""
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            raise InputError(f"{path} is no record of a trusted bundle", hint="remove it, and trust it again")
        _refuse_foreign(path, facts)
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint=_ELSEWHERE) from error
    try:
        data = json.loads(content)
        record = Trusted(**data)
        if record.sha256 != path.stem or not all(isinstance(value, str) for value in data.values()):
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}, a record of a trusted bundle, is damaged",
            hint="remove it, and run 'greencc trust BUNDLE' again",
        ) from error
    return record
