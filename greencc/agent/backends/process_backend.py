"""What backends have in common: a process that probes, one that builds, one that keeps an engine."""

import json
import os
import shutil
from typing import Any, Dict, List, Optional

from greencc.agent.backends import Backend, Limits, Log, manifest, self_command
from greencc.agent.backends.resident import once

_PROBE_SECONDS = 120.0
_BUILD_SECONDS = 24 * 3600.0


class ProcessBackend(Backend):
    """See `Backend`."""

    def probe(self, implementation: str) -> Dict[str, str]:
        """What an implementation says of itself.

        Raises:
            Problem: It is not there, or crashes.
        """
        command = self._command("probe", implementation, {})
        found = once(command, self.env, None, Limits(_PROBE_SECONDS), "asking for %s" % self.name)
        return {str(key): str(value) for key, value in found.items()}

    def start_build(
        self,
        implementation: str,
        main_path: str,
        folder: str,
        options: Dict[str, Any],
        log: Log,
        limits: Optional[Limits],
    ) -> Dict[str, Any]:
        """Build in a process.

        Raises:
            Problem: As `Backend.build`.
        """
        command = self._command("build", implementation, options, "--main", main_path, "--folder", folder)
        allowed = limits or Limits()
        seconds = _BUILD_SECONDS if allowed.seconds is None else allowed.seconds
        try:
            return once(command, self.env, log, Limits(seconds, allowed.memory_bytes), "the builder")
        except BaseException:
            _empty(folder)
            raise

    def worker_command(self, folder: str, options: Dict[str, Any]) -> List[str]:
        return self._command("run", manifest.read(folder).implementation, options, "--folder", folder)

    def _command(self, task: str, implementation: str, options: Dict[str, Any], *more: str) -> List[str]:
        arguments = [task, implementation, "--root", self.root, "--home", self.home]
        return self_command(*([*arguments, "--options", json.dumps(options), *list(more)]))


def _empty(folder: str) -> None:
    """Nothing that could be taken for an engine stays."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
