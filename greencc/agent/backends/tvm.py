"""Compiled models of the target tvm-arm: a library, its weights, and the program that runs them without Python."""

from typing import Any, Dict, Optional

from greencc.agent.backends import Limits, Log
from greencc.agent.backends.process_backend import ProcessBackend


class TvmBackend(ProcessBackend):
    """See `greencc.agent.backends`; it needs nothing on the device."""

    name = "tvm"

    def missing(self) -> Optional[str]:
        return None

    def facts(self) -> Dict[str, str]:
        return self.probe("tvm")

    def build(
        self, main_path: str, folder: str, options: Dict[str, Any], log: Log, limits: Optional[Limits] = None
    ) -> Dict[str, Any]:
        return self.start_build("tvm", main_path, folder, options, log, limits)
