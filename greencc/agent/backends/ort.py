"""ONNX Runtime on the device: python3 with the packages onnxruntime and numpy, as on a Raspberry Pi."""

from typing import Any, Dict, Mapping, Optional

from greencc.agent.backends import Limits, Log
from greencc.agent.backends.process_backend import ProcessBackend
from greencc.agent.problem import Problem


class OrtBackend(ProcessBackend):
    """See `greencc.agent.backends`."""

    name = "ort"

    def __init__(self, root: str, env: Mapping[str, str], home: str) -> None:
        super().__init__(root, env, home)
        self._asked = False
        self._facts: Dict[str, str] = {}
        self._problem: Optional[Problem] = None

    def missing(self) -> Optional[str]:
        self._ask()
        return None if self._problem is None else self._problem.in_a_line()

    def facts(self) -> Dict[str, str]:
        self._ask()
        return dict(self._facts)

    def _ask(self) -> None:
        """Once: it starts a process."""
        if self._asked:
            return
        self._asked = True
        try:
            self._facts = self.probe("ort")
        except Problem as problem:
            self._problem = problem

    def build(
        self, main_path: str, folder: str, options: Dict[str, Any], log: Log, limits: Optional[Limits] = None
    ) -> Dict[str, Any]:
        return self.start_build("ort", main_path, folder, options, log, limits)
