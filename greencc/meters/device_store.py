"""Where device profiles are: those shipped with greencc, and the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.meters.device import DeviceProfile
from greencc.meters.device_file import parse_profile, read_profile

_MOST_FILES = 500
LOCAL = "local"
"""The name that stands for the calibrated profile of this machine."""


@dataclass(frozen=True)
class StoredProfile:
    """A profile and where it is from: ``shipped``, or the file. `problem` says why it cannot be used."""

    name: str
    origin: str
    profile: DeviceProfile | None
    problem: str | None = None


def user_folder() -> Path:
    """``greencc/devices`` in the user's data folder (``$XDG_DATA_HOME``, else ``~/.local/share``)."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local/share") / "greencc" / "devices"


def stored_profiles(folder: Path | None = None) -> list[StoredProfile]:
    """All profiles by name, the user's own before the shipped one of the same name.

    Args:
        folder: The user's profiles; default `user_folder`.
    """
    found = {entry.name: entry for entry in _shipped()}
    found |= {entry.name: entry for entry in _own(folder or user_folder())}
    return [found[name] for name in sorted(found)]


def find_profile(name: str, folder: Path | None = None, fingerprint: str | None = None) -> DeviceProfile:
    """A profile by name, or by the path of a file that ends in ``.toml``.

    Args:
        name: ``jetson-orin-nano``, or ``local`` for the one that was calibrated on this machine.
        folder: As for `stored_profiles`.
        fingerprint: Of this machine, for ``local``.

    Raises:
        UsageError: There is no such profile.
        InputError: The profile's file is broken.
    """
    if name.endswith(".toml"):
        return read_profile(Path(name))
    entries = stored_profiles(folder)
    if name == LOCAL:
        found = calibrated_profile(fingerprint, folder)
        if found is None:
            raise UsageError(
                "this machine has no calibrated profile",
                hint="run 'greencc lab calibrate' first, or name a device of 'greencc lab devices'",
            )
        return found
    for entry in entries:
        if entry.name == name:
            if entry.profile is None:
                raise InputError(
                    entry.problem or f"the profile {name} cannot be read", hint="remove or repair it"
                )
            return entry.profile
    raise UsageError(
        f"no device {name!r}", hint=did_you_mean(name, [*(entry.name for entry in entries), LOCAL])
    )


def calibrated_profile(fingerprint: str | None, folder: Path | None = None) -> DeviceProfile | None:
    """The user's profile that was calibrated on the machine with this fingerprint, the latest; or None."""
    own = [
        entry.profile
        for entry in _own(folder or user_folder())
        if entry.profile is not None and entry.profile.calibration is not None
    ]
    here = [profile for profile in own if fingerprint is not None and profile.fingerprint == fingerprint]
    return max(
        here, key=lambda profile: profile.calibration.date if profile.calibration else "", default=None
    )


def _shipped() -> Iterator[StoredProfile]:
    for file in resources.files("greencc.meters").joinpath("devices").iterdir():
        if file.name.endswith(".toml"):
            profile = parse_profile(file.read_text(encoding="utf-8"), where=file.name)
            yield StoredProfile(profile.name, "shipped", profile)


def _own(folder: Path) -> Iterator[StoredProfile]:
    for path in sorted(folder.glob("*.toml"))[:_MOST_FILES]:
        try:
            profile = read_profile(path)
        except InputError as error:
            yield StoredProfile(path.stem, str(path), None, error.message)
            continue
        yield StoredProfile(profile.name, str(path), profile)
