"""TensorRT: by its Python bindings where they and CUDA's runtime load, else by trtexec alone."""

from typing import Any, Dict, List, Mapping, Optional

from greencc.agent.backends import Limits, Log
from greencc.agent.backends.process_backend import ProcessBackend
from greencc.agent.problem import Problem

IMPLEMENTATIONS = ("bindings", "trtexec")


class TensorRtBackend(ProcessBackend):
    """See `greencc.agent.backends`."""

    name = "tensorrt"

    def __init__(self, root: str, env: Mapping[str, str], home: str) -> None:
        super().__init__(root, env, home)
        self._found: Optional[Dict[str, str]] = None
        self._reasons: List[Problem] = []

    def missing(self) -> Optional[str]:
        if self.facts():
            return None
        return "; ".join(problem.in_a_line() for problem in self._reasons)

    def facts(self) -> Dict[str, str]:
        """The first implementation that answers; each is asked once, in a process: importing can crash."""
        if self._found is None:
            self._found = {}
            for implementation in IMPLEMENTATIONS:
                try:
                    self._found = self.probe(implementation)
                    break
                except Problem as problem:
                    self._reasons.append(problem)
        return dict(self._found)

    def build(
        self, main_path: str, folder: str, options: Dict[str, Any], log: Log, limits: Optional[Limits] = None
    ) -> Dict[str, Any]:
        problem = self.missing()
        if problem is not None:
            raise Problem("unavailable", "TensorRT cannot be used here: " + problem)
        return self.start_build(self.facts()["implementation"], main_path, folder, options, log, limits)
