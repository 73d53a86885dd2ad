"""What the results of a test campaign depend on, as digests: files, functions, versions and machines."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import greencc
from greencc.bundle.manifest import FILE_NAME as MANIFEST
from greencc.core.cache import cache_key
from greencc.core.errors import InputError
from greencc.core.files import sha256_file
from greencc.core.model import digest, load_model
from greencc.lab.campaign_spec import Build, CampaignSpec, DeviceSpec, ModelSpec
from greencc.targets import make_target


@dataclass(frozen=True)
class Inputs:
    """What results depend on.

    Attributes:
        campaign: Digest of what the campaign file says; comments and spaces do not count.
        files: Digests by what they are, such as ``resnet eval``.
        versions: Of greencc and of what runs the models.
        machines: Fingerprints by device; empty texts where the target does not run here.
        facts: Of the devices.
    """

    campaign: str
    files: Mapping[str, str]
    versions: Mapping[str, str]
    machines: Mapping[str, str]
    facts: Mapping[str, Mapping[str, str]]

    def state(self) -> dict[str, Any]:
        """What must be equal for results to belong together."""
        return {
            "campaign": self.campaign,
            "file": dict(self.files),
            "version of": dict(self.versions),
            "device": dict(self.machines),
        }

    def bundle_key(self, model: ModelSpec, variant: str, build: Build, device: DeviceSpec) -> str:
        """Of everything that a compile depends on."""
        files = {name: value for name, value in self.files.items() if _owner(name) in (model.name, variant)}
        options = [build.precision.value, build.passes or "", build.max_drop, build.effort.value, build.seed]
        return cache_key(
            sorted(files.items()), options, model.metric or "", device.target, self.machines[device.name],
            sorted(self.versions.items()), model.calibration is None, model.evaluation is None,
        )  # fmt: skip


def read_inputs(spec: CampaignSpec) -> Inputs:
    """Read and hash everything that a campaign names.

    Raises:
        InputError: A file cannot be read, or a model is none.
    """
    files: dict[str, str] = {}
    for model in spec.models:
        files[f"{model.name} model"] = digest(load_model(model.path))
        for role, data in (
            ("calibration", model.calibration),
            ("eval", model.evaluation),
            ("metric", model.metric),
        ):
            if data is not None:
                files[f"{model.name} {role}"] = _data_digest(data)
        for role, path in (("labels", model.labels), ("preprocess", model.preprocess)):
            if path is not None:
                files[f"{model.name} {role}"] = _file_digest(path)
    for variant in spec.variants:
        if variant.build is not None and variant.build.recipe is not None:
            files[f"{variant.name} recipe"] = _file_digest(variant.build.recipe)
        for name, folder in (variant.bundles or {}).items():
            files[f"{variant.name} bundle-of-{name}"] = _file_digest(folder / MANIFEST)
    versions = {"greencc": greencc.__version__}
    machines: dict[str, str] = {}
    facts: dict[str, Mapping[str, str]] = {}
    for device in spec.devices:
        target = make_target(device.target)
        if target.missing() is not None:
            machines[device.name], facts[device.name] = "", {}
            continue
        versions.update(target.versions())
        here = target.device()
        machines[device.name] = here.fingerprint
        facts[device.name] = {"name": here.name, **here.facts}
    return Inputs(_campaign_digest(spec.text), files, versions, machines, facts)


def _owner(name: str) -> str:
    return name.rpartition(" ")[0]


def _campaign_digest(text: str) -> str:
    data = json.dumps(tomllib.loads(text), sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()


def _data_digest(data: str) -> str:
    """Of a file, of all files in a folder, or of ``synthetic`` and functions: their text and, where known, file."""
    path = Path(data)
    if path.is_dir():
        names = sorted(item for item in path.rglob("*") if item.is_file())
        return cache_key([(item.relative_to(path).as_posix(), _file_digest(item)) for item in names])
    if path.is_file():
        return _file_digest(path)
    file = Path(data.rpartition(":")[0])
    return cache_key(data.rpartition("/")[2], _file_digest(file) if file.suffix == ".py" else "")


def _file_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
