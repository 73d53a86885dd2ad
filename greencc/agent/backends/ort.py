"""ONNX Runtime on the device: python3 with the packages onnxruntime and numpy, as on a Raspberry Pi."""

from typing import Dict, Optional

from greencc.agent.backends import Limits, Log
from greencc.agent.backends.process_backend import ProcessBackend
from greencc.agent.problem import Problem


class OrtBackend(ProcessBackend):
    """See `greencc.agent.backends`."""

    name = "ort"

    def missing(self) -> Optional[str]:
        try:
            self.probe("ort")
        except Problem as problem:
            return "%s (%s)" % (problem.message, problem.hint) if problem.hint else problem.message
        return None

    def facts(self) -> Dict[str, str]:
        try:
            return self.probe("ort")
        except Problem:
            return {}

    def build(
        self, main_path: str, folder: str, options: dict, log: Log, limits: Optional[Limits] = None
    ) -> dict:
        return self.start_build("ort", main_path, folder, options, log, limits)
