"""What an agent on a device is asked to build from an emitted graph: the same as ``build.sh`` and ``build.py`` do."""

from __future__ import annotations

from pathlib import Path

from greencc.core.engine import BuildOrder
from greencc.core.errors import UsageError
from greencc.core.graph import external_files
from greencc.core.model import load_model
from greencc.targets._tensorrt.files import SETTINGS, read_settings

_PRECISIONS, _SPARSE, _TF32 = ("FP16", "BF16", "INT8"), "SPARSE_WEIGHTS", "TF32"


def is_emitted(path: Path) -> bool:
    """Whether a file is a graph with its settings beside it, rather than a model as given."""
    return (path.parent / SETTINGS).is_file()


def tensorrt_order(artifact: Path, tolerance: float) -> BuildOrder:
    """What a device builds from an emitted graph.

    Args:
        artifact: The graph.
        tolerance: Of its outputs.

    Raises:
        UsageError: It is for TensorRT-RTX, which no agent builds with.
        InputError: It is no emitted graph, or damaged.
    """
    settings = read_settings(artifact.parent)
    if settings["module"] != "tensorrt":
        raise UsageError(
            "engines of TensorRT-RTX are not built on devices yet",
            hint="compile for tensorrt, or build with the bundle's own artifact/build.sh",
        )
    flags = settings["builder_flags"]
    options: dict[str, object] = {
        "typing": settings["typing"],
        "precisions": [flag.lower() for flag in _PRECISIONS if flag in flags],
        "sparsity": _SPARSE in flags,
        "shapes": settings["shapes"],
        "workspace_bytes": int(settings["workspace_mib"]) << 20,
        "tf32": _TF32 not in settings["cleared_flags"],
    }
    for name in ("float32_nodes", "float32_outputs"):
        if settings[name]:
            options[name] = settings[name]
    if settings["dla"]:
        options["dla"] = 0
    files = (artifact, *(artifact.parent / name for name in external_files(load_model(artifact))))
    return BuildOrder("tensorrt", artifact, files, options, tolerance)
