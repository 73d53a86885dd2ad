"""What builds and runs engines on the device: TensorRT, ONNX Runtime, or a compiled model with its runner.

`find` gives a `Backend`; every call into a vendor's code is in a process of its own:

* `Backend.build` starts a process that builds, and waits. A crash there is a `Problem` of kind ``crashed`` with the
  signal's name and the last lines of its log.
* `Backend.worker_command` is the command of a resident process that has an engine loaded and warmed up;
  `greencc.agent.backends.resident.Resident` starts and asks it. It talks in messages as host and agent do
  (`greencc.agent.wire`). Its first message is ``{"id": 0, "result": DESCRIPTION}`` (or an error); then, by request:

      describe  {} -> DESCRIPTION = {"inputs": [{"name", "dtype", "shape"}...], "outputs": [...], "facts": {...}};
                a dimension that is free is -1; dtypes are numpy's names, ``bfloat16`` and ``float8_e4m3fn`` besides
      run       {"inputs": [{"name", "dtype", "shape"}...]} + their bytes, raw and little-endian, in that order
                -> {"outputs": [{"name", "dtype", "shape"}...], "ms": ...} + bytes
      drive     {"feeds": PATH of a file with `count` feeds, each the bytes of all inputs in order,
                 "inputs": [{"name", "dtype", "shape"}...], "count": N, "into": FOLDER,
                 "seconds" | "runs": ..., "rate": per second or None, "due": [offsets in seconds...] or None,
                 "first": where in the feeds to begin}
                -> {"begin": of the monotonic clock, "seconds": ..., "count": ..., "late": ..., "facts": {...}};
                files ``latencies.f64`` and ``services.f64`` are in the folder: milliseconds, one per run
      profile   {"feeds", "inputs", "count", "first", "runs"} -> {"nodes": [{"name", "op_type", "us"}...]}
      quit      {} -> {}; the process ends

A run has what a deployment has: inputs are copied to the device and outputs back within the time that is taken, and
the stream is waited for (by sleeping, not spinning: spinning would burn a core, and show in the energy).

Options of builds, all of which may be missing:

    tensorrt  {"typing": "weak" | "strong", "precisions": ["fp16", "int8", "bf16", "fp8"] (weak typing only),
               "float32_nodes": [names of nodes that are computed in float32 all the same] (weak typing only),
               "float32_outputs": [those of them that give nothing but float32] (for trtexec, which must be told),
               "tf32": bool (default true: products of float32 may be computed in TF32, as TensorRT does by itself),
               "sparsity": bool, "dla": core number, "shapes": {INPUT: {"min": [...], "opt": [...], "max": [...]}},
               "workspace_bytes": N, "level": builder optimization level, "timing_cache": bool (default true)}
    ort       {"threads": N, "settings": {session configuration}, "fusions": bool (default true)}
    tvm       {"threads": N}

Options of workers: {"threads": N} (ort, tvm), {"warm_up": bool (default true)}.
"""

import os
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional

from greencc.agent.problem import Problem

NAMES = ("tensorrt", "ort", "tvm")
Log = Callable[[str], None]


class Limits:
    """What a process may use; None: without a limit.

    Address space (RLIMIT_AS) cannot be limited where CUDA is: it reserves far more than it uses. So memory is what the
    kernel counts as resident, looked at a few times a second; what the GPU of a card allocates is not in it.
    """

    def __init__(self, seconds: Optional[float] = None, memory_bytes: Optional[int] = None) -> None:
        self.seconds = seconds
        self.memory_bytes = memory_bytes


class Backend:
    """A way of building and running engines.

    Args:
        root: Where the file system begins; ``/`` but in tests.
        env: Environment of the processes that it starts.
        home: A folder of the agent's own, for what outlives a job (timing caches).
    """

    name = ""

    def __init__(self, root: str, env: Mapping[str, str], home: str) -> None:
        self.root = root
        self.env: Dict[str, str] = dict(env)
        self.home = home

    def missing(self) -> Optional[str]:
        """Why it cannot be used here, with what to install; None: it can. May take seconds: it starts processes."""
        raise NotImplementedError

    def facts(self) -> Dict[str, str]:
        """Versions and the like, for probes and results; empty where it is missing."""
        raise NotImplementedError

    def build(
        self, main_path: str, folder: str, options: Dict[str, Any], log: Log, limits: Optional[Limits] = None
    ) -> Dict[str, Any]:
        """Write an engine into a folder.

        Args:
            main_path: The model; files that belong to it are beside it.
            folder: Exists and is empty.
            options: See the module.
            log: Gets each line that the builder says.
            limits: Of the process that builds.

        Returns:
            {"engine_bytes": N, "versions": {...}, "facts": {...}, "inputs": [...], "outputs": [...]}.

        Raises:
            Problem: It cannot be built; nothing that could be taken for an engine is left in the folder.
        """
        raise NotImplementedError

    def worker_command(self, folder: str, options: Dict[str, Any]) -> List[str]:
        """The command of a resident worker for what `build` has written."""
        raise NotImplementedError


def find(name: str, root: str, env: Mapping[str, str], home: str) -> Backend:
    """A backend by its name.

    Raises:
        Problem: ``usage``: there is none of that name.
    """
    if name == "tensorrt":
        from greencc.agent.backends.tensorrt import TensorRtBackend

        return TensorRtBackend(root, env, home)
    if name == "ort":
        from greencc.agent.backends.ort import OrtBackend

        return OrtBackend(root, env, home)
    if name == "tvm":
        from greencc.agent.backends.tvm import TvmBackend

        return TvmBackend(root, env, home)
    raise Problem("usage", "there is no backend %r" % name, "there are " + ", ".join(NAMES))


_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from greencc.agent.backends.worker import main; sys.exit(main(sys.argv[1:]))"
)


def self_command(*arguments: str) -> List[str]:
    """The command that starts a worker of this very agent, be it in a zip file or in a folder."""
    place = os.path.abspath(__file__)
    for _ in range(4):
        place = os.path.dirname(place)
    return [sys.executable, "-c", _START, place, *list(arguments)]
