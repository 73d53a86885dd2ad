"""Reads a graph with TensorRT for RTX, and may build it, in a process of its own: the library can crash.

Run as ``python -P _rtx_child.py REQUEST``; the request is JSON, as is the last line of output. Nothing of greencc is
imported here.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request.

    Args:
        request: ``model`` (a path) and ``bytes`` (of memory, at most); to build also ``engine`` (a path), ``sm`` and
            ``shapes`` (as in ``device.json``).

    Returns:
        ``version`` and ``faults`` (``node``, ``op`` and ``reason`` of each); of a build ``bytes``, and ``log`` where
        it failed.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (request["bytes"], request["bytes"]))
    import tensorrt_rtx as trt

    log: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.append(" ".join(text.split()))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request["model"])
    faults = [_fault(parser.get_error(index)) for index in range(parser.num_errors)]
    if not parsed and not faults:
        faults.append({"node": "", "op": "", "reason": log[-1] if log else "no reason given"})
    answer: dict[str, Any] = {"version": str(trt.__version__), "faults": faults}
    if faults or "engine" not in request:
        return answer
    config = builder.create_builder_config()
    # Float32 is computed as it was certified.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{request['sm']}"), 0)
    if request["shapes"]:
        profile = builder.create_optimization_profile()
        for name, sizes in sorted(request["shapes"].items()):
            profile.set_shape(name, *(tuple(sizes[key]) for key in ("min", "opt", "max")))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return answer | {"bytes": 0, "log": log[-3:]}
    content = bytes(plan)
    Path(request["engine"]).write_bytes(content)
    return answer | {"bytes": len(content)}


def _fault(error: Any) -> dict[str, str]:
    return {
        "node": str(error.node_name()),
        "op": str(error.node_operator()),
        "reason": " ".join(str(error.desc()).split()),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
