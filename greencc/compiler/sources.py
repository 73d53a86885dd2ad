"""The model that a bundle was compiled from, and the samples that its compile has not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.bundle import Bundle
from greencc.calibration import Subset, sample_digests
from greencc.core.data import DataSource
from greencc.core.errors import InputError
from greencc.core.graph import ensure_names
from greencc.core.model import digest, load_model


def source_of(bundle: Bundle, path: Path) -> ir.Model:
    """The model that the bundle was compiled from, with names for all nodes.

    Raises:
        InputError: It is another one.
    """
    model = load_model(path)
    wanted = bundle.manifest.model_digest
    same = digest(model) == wanted
    # A compile names the nodes that have no name before it takes the digest.
    ensure_names(model)
    if not same and digest(model) != wanted:
        raise InputError(
            f"{path} is not the model that {bundle.path} was compiled from",
            hint=f"give {bundle.manifest.model_name} (sha256 {bundle.manifest.model_sha256[:12]}...)",
        )
    return model


def unseen(data: DataSource, seen: frozenset[bytes]) -> DataSource:
    """The samples whose keys are not among those `seen`.

    Raises:
        InputError: There are none.
    """
    if not seen:
        return data
    fresh = np.array([key not in seen for key in sample_digests(data)], np.bool_)
    if fresh.all():
        return data
    if not fresh.any():
        raise InputError(
            f"the compile has used all {data.count:,} samples of {data.name} for calibration or to choose with",
            hint="give held-out data: what an artifact was tuned on says nothing about other inputs",
        )
    return Subset(data.name, data, np.flatnonzero(fresh))
