"""ONNX Runtime in a process of its own. Here, and here alone, the agent uses numpy: onnxruntime brings it along."""

import json
import os
import platform
import tempfile
import time
from typing import Any, Dict, List, Tuple

from greencc.agent.backends import driving, manifest
from greencc.agent.backends.driving import FeedFile
from greencc.agent.backends.manifest import Manifest
from greencc.agent.backends.onnx_io import read_facts
from greencc.agent.backends.tensors import Spec, views
from greencc.agent.backends.worker import Loaded, Setup
from greencc.agent.problem import Problem

_TIMED = "one call of the session, with inputs and outputs in memory"


def _import() -> Tuple[Any, Any]:
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        raise Problem(
            "unavailable",
            "ONNX Runtime cannot be imported: %s" % error,
            "python3 -m pip install onnxruntime numpy",
        ) from error
    return onnxruntime, numpy


def probe(setup: Setup) -> Dict[str, str]:
    """Versions.

    Raises:
        Problem: ``unavailable``: the packages are missing.
    """
    ort, numpy = _import()
    return {
        "onnxruntime": ort.__version__,
        "numpy": numpy.__version__,
        "implementation": "ort",
        "machine": platform.machine(),
    }


def build(setup: Setup, main: str, folder: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Take the model over, once ONNX Runtime has accepted it.

    Raises:
        Problem: It is refused.
    """
    ort, numpy = _import()
    facts = read_facts(main)
    manifest.adopt(main, folder)
    name = os.path.basename(main)
    _session(ort, os.path.join(folder, name), options)
    kept = Manifest(
        "ort",
        name,
        facts.inputs,
        facts.outputs,
        {"onnxruntime": ort.__version__, "numpy": numpy.__version__},
        {"provider": "CPUExecutionProvider", "machine": platform.machine()},
        {"options": options, "op_types": facts.op_types},
    )
    return kept.save(folder)


def load(setup: Setup, folder: str, options: Dict[str, Any]) -> Loaded:
    """A session that has run once."""
    return OrtEngine(manifest.read(folder), folder, options)


def _session(ort: Any, path: str, options: Dict[str, Any], profile: str = "") -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = int(options.get("threads") or 1)
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (options.get("settings") or {}).items():
        settings.add_session_config_entry(str(key), str(value))
    if not options.get("fusions", True):
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    try:
        return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes derive from it directly
        raise Problem("input", "ONNX Runtime refuses the model: %s" % _first(error)) from error


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class OrtEngine(Loaded):
    """See `Loaded`.

    Args:
        built: What lies in the folder.
        folder: Of the built engine.
        options: {"threads": N, "warm_up": bool}; otherwise as it was built.
    """

    def __init__(self, built: Manifest, folder: str, options: Dict[str, Any]) -> None:
        ort, self._numpy = _import()
        self._ort, self._path = ort, os.path.join(folder, built.engine)
        self._options = dict(built.extra.get("options") or {}, **options)
        threads = int(self._options.get("threads") or 1)
        facts = dict(built.facts, timed=_TIMED, threads=str(threads), **built.versions)
        super().__init__(built.inputs, built.outputs, facts)
        self._session = _session(ort, self._path, self._options)
        if self._options.get("warm_up", True) and not any(spec.free for spec in self.inputs):
            self.run(self.inputs, {spec.name: memoryview(bytes(spec.nbytes)) for spec in self.inputs})

    def run(self, given: List[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes], float]:
        arrays = self._arrays(given, data)
        start = time.monotonic()
        found = self._run(self._session, arrays)
        milliseconds = (time.monotonic() - start) * 1e3
        specs = [Spec(spec.name, str(each.dtype), each.shape) for spec, each in zip(self.outputs, found)]
        return specs, [self._numpy.ascontiguousarray(each).tobytes() for each in found], milliseconds

    def drive(self, given: List[Spec], feeds: FeedFile, count: int, plan: driving.Plan) -> Dict[str, Any]:
        ready = [self._arrays(given, views(given, feeds[index])) for index in range(count)]
        recorded = driving.drive(lambda index: self._run(self._session, ready[index]), count, plan)
        return dict(recorded.save(plan.into), facts={"timed": _TIMED})

    def profile(
        self, given: List[Spec], feeds: FeedFile, count: int, runs: int, into: str
    ) -> List[Dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="greencc-agent-") as work:
            session = _session(self._ort, self._path, self._options, os.path.join(work, "profile"))
            for index in range(runs):
                self._run(session, self._arrays(given, views(given, feeds[index % count])))
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        return _nodes(events, runs)

    def _run(self, session: Any, arrays: Dict[str, Any]) -> Any:
        try:
            return session.run([spec.name for spec in self.outputs], arrays)
        except Exception as error:  # as in _session
            raise Problem("input", "ONNX Runtime cannot run: %s" % _first(error)) from error

    def _arrays(self, given: List[Spec], data: Dict[str, memoryview]) -> Dict[str, Any]:
        found = {}
        for spec in given:
            try:
                dtype = self._numpy.dtype(spec.dtype)
            except TypeError as error:
                raise Problem("unavailable", "numpy has no type %s" % spec.dtype) from error
            found[spec.name] = self._numpy.frombuffer(data[spec.name], dtype).reshape(spec.shape)
        return found


def _nodes(events: List[Dict[str, Any]], runs: int) -> List[Dict[str, Any]]:
    """Mean microseconds of nodes by the events of ONNX Runtime's profile ("..._kernel_time")."""
    totals: Dict[Tuple[str, str], float] = {}
    suffix = "_kernel_time"
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(suffix):
            key = (name[: -len(suffix)], str((event.get("args") or {}).get("op_name", "")))
            totals[key] = totals.get(key, 0.0) + float(event.get("dur", 0.0))
    return [{"name": name, "op_type": kind, "us": total / runs} for (name, kind), total in totals.items()]
