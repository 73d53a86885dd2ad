"""JetPack, L4T, CUDA and TensorRT of the device, from what is installed, without starting any of it.

Sources: NVIDIA, "Jetson Linux Archive" (JetPack by L4T release); /etc/nv_tegra_release; dpkg's status file.
"""

import json
import re
from pathlib import Path
from typing import Dict, Optional

from greencc.agent.places import Places, read_text

# L4T release -> JetPack.
_JETPACKS = {
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5": "4.5",
    "32.5.1": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1": "5.0",
    "34.1.1": "5.0.1",
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "36.2": "6.0",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
}
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGES = re.compile(
    r"nvidia-jetpack|nvidia-l4t-core|libnvinfer\d*|libnvinfer-bin|tensorrt|cuda-cudart-\d+-\d+"
)
_VERSION = re.compile(r"(\d+(?:\.\d+)*)")


def l4t(root: Path) -> Optional[str]:
    """The release of Linux for Tegra, such as ``36.4.3``; None elsewhere."""
    match = _RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    if match is None:
        return None
    numbers = [match.group(1), *match.group(2).split(".")]
    return ".".join(str(int(number)) for number in numbers if number)


def jetpack(release: Optional[str], packages: Dict[str, str]) -> Optional[str]:
    """The JetPack: by its package, else by the release of L4T; None: not known."""
    told = _plain(packages.get("nvidia-jetpack"))
    if told:
        return told
    if release is None:
        return None
    short = re.sub(r"(\.0)+$", "", release)
    return _JETPACKS.get(release) or _JETPACKS.get(short)


def installed(root: Path) -> Dict[str, str]:
    """Versions of NVIDIA's packages, by dpkg."""
    found = {}
    for block in (read_text(root / "var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
        name = fields.get("Package", "")
        if (
            _PACKAGES.fullmatch(name)
            and fields.get("Status", "").endswith(" installed")
            and "Version" in fields
        ):
            found[name] = fields["Version"]
    return found


def cuda(root: Path) -> Optional[str]:
    """CUDA's version, such as ``12.6.68``."""
    try:
        told = json.loads(read_text(root / "usr/local/cuda/version.json") or "{}")
        version = told.get("cuda", {}).get("version")
        if isinstance(version, str):
            return version
    except (ValueError, AttributeError):
        # A file of another form.
        return None
    return _plain((read_text(root / "usr/local/cuda/version.txt") or "").replace("CUDA Version", ""))


def tensorrt(places: Places, packages: Dict[str, str]) -> Dict[str, Optional[str]]:
    """TensorRT's version by its packages, and where `trtexec` is."""
    names = [name for name in packages if re.fullmatch(r"libnvinfer\d+", name)]
    # Several may be left behind by an upgrade; the newest is what programs load.
    versions = sorted((_plain(packages[name]) or "" for name in names), key=_numbers)
    version = versions[-1] if versions else _plain(packages.get("tensorrt"))
    return {"version": version or None, "trtexec": places.program("trtexec", "usr/src/tensorrt/bin")}


def _plain(text: Optional[str]) -> Optional[str]:
    """``10.3.0.30-1+cuda12.5`` without what follows the numbers."""
    match = _VERSION.match((text or "").strip())
    return match.group(1) if match else None


def _numbers(text: str) -> "list[int]":
    return [int(each) for each in text.split(".") if each]
