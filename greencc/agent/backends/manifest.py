"""``engine.json``: what lies in the folder of a built engine. It is written last: without it there is no engine."""

import json
import os
import shutil
from typing import Any, Dict, List, Sequence

from greencc.agent.backends.tensors import Spec, all_specs
from greencc.agent.problem import Problem

NAME = "engine.json"
_SCHEMA = 1


class Manifest:
    """Of a built engine.

    Args:
        implementation: What runs it, as in `greencc.agent.backends.worker.IMPLEMENTATIONS`.
        engine: Its file's name in the folder.
        inputs: As the model has them.
        outputs: Likewise.
        versions: Of what built it.
        facts: For people.
        extra: What the implementation needs besides.
    """

    def __init__(
        self,
        implementation: str,
        engine: str,
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        versions: Dict[str, str],
        facts: Dict[str, str],
        extra: Dict[str, Any],
    ) -> None:
        self.implementation = implementation
        self.engine = engine
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.versions = versions
        self.facts = facts
        self.extra = extra

    def save(self, folder: str) -> Dict[str, Any]:
        """Write it; returns the result of the build.

        Raises:
            Problem: ``disk``: it cannot be written.
        """
        size = os.path.getsize(os.path.join(folder, self.engine))
        data = {
            "schema": _SCHEMA,
            "implementation": self.implementation,
            "engine": self.engine,
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
            "versions": self.versions,
            "facts": self.facts,
            "extra": self.extra,
        }
        write_file(os.path.join(folder, NAME), json.dumps(data, indent=1).encode("utf-8"))
        kept = ("inputs", "outputs", "versions", "facts", "implementation")
        return dict({name: data[name] for name in kept}, engine_bytes=size)


def read(folder: str) -> Manifest:
    """Of a folder.

    Raises:
        Problem: ``input``: nothing was built there.
    """
    path = os.path.join(folder, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if data["schema"] != _SCHEMA:
            raise Problem("input", "%s was written by another version of the agent" % path, "build it again")
        return Manifest(
            data["implementation"],
            data["engine"],
            all_specs(data["inputs"]),
            all_specs(data["outputs"]),
            data["versions"],
            data["facts"],
            data["extra"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem("input", "no engine was built in %s" % folder, "build it first") from error


def write_file(path: str, data: bytes) -> None:
    """Whole, or not at all.

    Raises:
        Problem: ``disk``: it cannot be written.
    """
    try:
        with open(path + ".part", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".part", path)
    except OSError as error:
        raise Problem("disk", "%s cannot be written: %s" % (path, error.strerror)) from error


def adopt(main_path: str, folder: str) -> List[str]:
    """Put the model and all beside it into a folder, by links where that goes; returns the paths of the files there.

    Raises:
        Problem: ``disk``: they cannot be put there.
    """
    source = os.path.dirname(os.path.abspath(main_path))
    names = []
    try:
        for place, _, files in sorted(os.walk(source)):
            for name in sorted(files):
                # What a link points to: a store may evict the name, but not what has another.
                original = os.path.realpath(os.path.join(place, name))
                relative = os.path.relpath(os.path.join(place, name), source)
                target = os.path.join(folder, relative)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                try:
                    os.link(original, target)
                except OSError:
                    shutil.copyfile(original, target)
                names.append(relative)
    except OSError as error:
        raise Problem("disk", "%s cannot be filled: %s" % (folder, error.strerror)) from error
    return names
